"""The runtime folder, and which processes a configuration asks for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from steploom.channel import local
from steploom.config import SteploomConfig, UpConfig
from steploom.plan import plan, with_free_ports
from steploom.runtime import AlreadyRunning, RuntimeDir, Services
from steploom.up import _within_the_grace
from steploom_batcher.config import BatcherConfig
from steploom_batcher.plain.config import PlainConfig
from steploom_common.settings import ConfigError, replace
from steploom_engine_worker.plain.__main__ import _parser
from steploom_engine_worker.plain.config import HostConfig
from steploom_gateway.config import GatewayConfig, host_and_port
from steploom_gateway.server import Gateway


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path / "a" / "run")
    runtime.create()
    assert runtime.path.stat().st_mode & 0o777 == 0o700
    runtime.path.chmod(0o755)
    runtime.create()
    assert runtime.path.stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a folder of this user"):
        RuntimeDir(tmp_path / "run").create()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        RuntimeDir(tmp_path / "run").create()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"up.runtime_dir: .* too long for a Unix socket"):
        RuntimeDir(tmp_path / ("x" * 120)).create()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path)
    with runtime.locked():
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"), RuntimeDir(tmp_path).locked():
            pass
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    with runtime.locked():
        pass


def test_services_are_told_and_forgotten(tmp_path: Path) -> None:
    runtime = RuntimeDir(tmp_path)
    services = Services(1, "127.0.0.1:8001", "unix:/b.sock", ("unix:/w.sock",))
    runtime.write_services(services)
    assert runtime.read_services() == services
    runtime.clear()
    assert runtime.read_services() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', "not json"])
def test_an_unreadable_list_of_services_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "services.json").write_text(text)
    assert RuntimeDir(tmp_path).read_services() is None


def test_workers_get_sockets_of_their_own_and_the_batcher_knows_them(tmp_path: Path) -> None:
    planned = plan(SteploomConfig(up=UpConfig(workers=2)), RuntimeDir(tmp_path))
    assert [[spec.name for spec in group] for group in planned.groups] == [
        ["gateway"],
        ["batcher"],
        ["worker-0", "worker-1"],
    ]
    batcher = planned.groups[1][0]
    named = [after for flag, after in zip(batcher.command, batcher.command[1:], strict=False) if flag == "--worker"]
    assert tuple(named) == planned.workers == tuple(f"unix:{tmp_path}/worker-{index}.sock" for index in (0, 1))


def test_workers_elsewhere_are_not_started_here(tmp_path: Path) -> None:
    config = SteploomConfig(batcher=BatcherConfig(workers=("gpu-1:9000", "gpu-2:9000")))
    planned = plan(config, RuntimeDir(tmp_path))
    assert planned.groups[2] == ()
    assert planned.workers == ("gpu-1:9000", "gpu-2:9000")


def test_port_zero_becomes_a_free_port() -> None:
    config = SteploomConfig(gateway=GatewayConfig(listen="127.0.0.1:0", metrics_listen=""))
    with with_free_ports(config) as settled:
        assert settled.gateway.listen.startswith("127.0.0.1:")
        assert int(settled.gateway.listen.rpartition(":")[2]) > 0
        assert settled.gateway.metrics_listen == ""
    with with_free_ports(SteploomConfig()) as settled:
        assert settled == SteploomConfig()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_free_port_is_kept_for_the_gateway(host: str) -> None:
    config = SteploomConfig(gateway=GatewayConfig(listen=f"{host}:0", metrics_listen=f"{host}:0"))
    with with_free_ports(config) as settled:
        for _ in range(2):  # it may be started again
            gateway = Gateway(replace(settled.gateway, batcher="127.0.0.1:1"), Path())
            await gateway.start()
            assert f"{host}:{gateway.port}" == settled.gateway.listen
            assert f"{host}:{gateway.metrics_port}" == settled.gateway.metrics_listen
            await gateway.close()
        for address in (settled.gateway.listen, settled.gateway.metrics_listen):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(host_and_port(address))


def test_a_foreign_host_cannot_be_listened_on() -> None:
    config = SteploomConfig(gateway=GatewayConfig(listen="192.0.2.1:0"))  # reserved for documentation, RFC 5737
    with pytest.raises(ConfigError, match=r"gateway.listen: cannot listen on 192.0.2.1:0"), with_free_ports(config):
        pass


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("0.0.0.0:8001", "127.0.0.1:8001"),
        ("[::]:8001", "[::1]:8001"),
        ("10.0.0.7:1", "10.0.0.7:1"),
        ("unix:/a.sock",) * 2,
    ],
)
def test_clients_dial_an_address_that_exists(address: str, dialled: str) -> None:
    assert local(address) == dialled


def test_a_folder_of_plain_models_gets_a_host_that_gateway_and_batcher_know(tmp_path: Path) -> None:
    config = SteploomConfig(plain=PlainConfig(models=str(tmp_path / "models"), hosts=("unix:/far.sock",)))
    runtime = RuntimeDir(tmp_path)
    (gateway,), (batcher,), (worker, host) = plan(config, runtime).groups
    assert (worker.name, host.name, host.address) == ("worker-0", "models", runtime.address("models"))
    assert host.command[:2] == ("-m", "steploom_engine_worker.plain")
    assert host.command[host.command.index("--repository") + 1] == str(tmp_path / "models")
    for service in (gateway, batcher):
        named = [service.command[at + 1] for at, word in enumerate(service.command) if word == "--host"]
        assert named == ["unix:/far.sock", host.address]


def test_the_host_of_plain_models_has_its_settings_and_ends_within_the_grace(tmp_path: Path) -> None:
    plain = PlainConfig(models=str(tmp_path / "models"), threads=3, drain_s=20.0)
    for grace_s, drain_s in ((60.0, 20.0), (5.0, 5.0)):
        config = _within_the_grace(SteploomConfig(plain=plain, up=UpConfig(drain_s=grace_s)))
        *_, host = plan(config, RuntimeDir(tmp_path)).groups[-1]
        options = _parser().parse_args(host.command[2:])
        assert (options.threads, options.drain_s) == (3, drain_s)
        HostConfig(options.repository, (), options.threads, options.drain_s)  # it takes them


def test_without_workers_there_must_be_plain_models(tmp_path: Path) -> None:
    alone = SteploomConfig(up=UpConfig(workers=0), plain=PlainConfig(models="models"))
    assert [service.name for group in plan(alone, RuntimeDir(tmp_path)).groups for service in group] == [
        "gateway", "batcher", "models"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"up\.workers: is 0, must be at least 1 without plain models"):
        plan(SteploomConfig(up=UpConfig(workers=0)), RuntimeDir(tmp_path))
