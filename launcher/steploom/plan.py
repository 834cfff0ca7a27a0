"""What `steploom up` starts: the services of one configuration, as command lines."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from steploom.channel import local
from steploom.config import SteploomConfig
from steploom.runtime import RuntimeDir, Services
from steploom_common.settings import ConfigError, replace
from steploom_gateway.config import host_and_port


@dataclass(frozen=True)
class ServiceSpec:
    """One process to supervise."""

    name: str  # shown to people and put before its log
    address: str  # where it listens
    command: tuple[str, ...]  # arguments of the Python interpreter, but for where to listen if it has `homes`
    local: str = ""  # a socket for this user, where `address` wants certificates
    # Where its processes listen in turn, so that one can come up beside another: `address` is a link to one of them.
    # Empty: at `address`, one at a time.
    homes: tuple[str, ...] = ()

    @property
    def can_be_replaced(self) -> bool:
        """One process can come up beside another."""
        return bool(self.homes)

    @property
    def probe(self) -> str:
        """Where its health check answers."""
        return self.local or self.address

    def probe_of(self, turn: int) -> str:
        """Where the health check of the process of a turn answers."""
        return self.homes[turn] if self.homes else self.probe

    def command_of(self, turn: int) -> tuple[str, ...]:
        """Arguments of the Python interpreter for the process of a turn."""
        return (*self.command, "--listen", self.homes[turn]) if self.homes else self.command

    def publish(self, turn: int) -> None:
        """Makes `address` lead to the process of a turn; connections that are open stay where they are.

        Raises:
            OSError: the folder cannot be written.
        """
        if self.homes:
            link, home = (Path(address.removeprefix("unix:")) for address in (self.address, self.homes[turn]))
            draft = link.with_suffix(".new")
            draft.unlink(missing_ok=True)
            draft.symlink_to(home.name)
            draft.replace(link)


@dataclass(frozen=True)
class Plan:
    """All processes, in groups: started together, ended group by group in this order."""

    groups: tuple[tuple[ServiceSpec, ...], ...]
    gateway: str
    batcher: str
    workers: tuple[str, ...]
    local: str = ""  # the gateway's plain socket for this user; empty: none
    has_hosts: bool = False  # of plain models

    def services(self, pid: int) -> Services:
        """What the other commands need to know."""
        return Services(pid, local(self.gateway), self.batcher, self.workers, self.local)


def plan(config: SteploomConfig, runtime: RuntimeDir) -> Plan:
    """The processes for `config`, with their sockets in `runtime`.

    Workers that the configuration names by address run elsewhere: none is started here.
    """
    table = ("--config", str(runtime.config_file))
    batcher = runtime.address("batcher")
    local_workers = (
        () if config.batcher.workers else tuple(_worker(index, runtime, table) for index in range(config.up.workers))
    )
    workers = config.batcher.workers or tuple(worker.address for worker in local_workers)
    local_hosts = _hosts(config, runtime, table)
    hosts = (*config.plain.hosts, *(host.address for host in local_hosts))
    if not (workers or hosts):
        raise ConfigError("up.workers", "is 0, must be at least 1 without plain models (plain.models or plain.hosts)")
    named = tuple(argument for worker in workers for argument in ("--worker", worker))
    shown = tuple(argument for host in hosts for argument in ("--host", host))
    control = ("--supervisor", str(runtime.control)) if local_workers else ()
    gateway = _gateway(config, runtime, *table, "--batcher", batcher, *control, *shown)
    return Plan(
        groups=(
            (gateway,),
            (_service("batcher", batcher, *table, "--listen", batcher, *named, *shown),),
            (*local_workers, *local_hosts),
        ),
        gateway=config.gateway.listen,
        batcher=batcher,
        workers=workers,
        local=gateway.local,
        has_hosts=bool(hosts),
    )


@contextmanager
def with_free_ports(config: SteploomConfig) -> Iterator[SteploomConfig]:
    """`config` with each port 0 replaced by a free one, so that it can be told to clients.

    The ports stay bound here while the block lasts, and nobody listens on what is bound: the gateway can, and no other
    program is given its port before it does, or while it is started again.

    Raises:
        ConfigError: the host is none of this machine's.
    """
    gateway = config.gateway
    with ExitStack() as held:
        yield replace(
            config,
            gateway=replace(
                gateway,
                listen=_with_port("gateway.listen", gateway.listen, held),
                metrics_listen=_with_port("gateway.metrics_listen", gateway.metrics_listen, held),
            ),
        )


def _worker(index: int, runtime: RuntimeDir, table: tuple[str, ...]) -> ServiceSpec:
    name = f"worker-{index}"
    homes = (runtime.address(f"{name}.a"), runtime.address(f"{name}.b"))
    command = ("-m", "steploom_engine_worker", "--name", name, *table)
    return ServiceSpec(name, runtime.address(name), command, homes=homes)


def _hosts(config: SteploomConfig, runtime: RuntimeDir, table: tuple[str, ...]) -> tuple[ServiceSpec, ...]:
    """The host of the models in the folder that the configuration names, if any."""
    if not config.plain.models:
        return ()
    address = runtime.address("models")
    repository = str(Path(config.plain.models).expanduser().absolute())
    command = ("-m", "steploom_engine_worker.plain", *table, "--repository", repository, "--address", address)
    settings = ("--threads", str(config.plain.threads), "--drain-s", str(config.plain.drain_s))
    return (ServiceSpec("models", address, (*command, *settings)),)


def _gateway(config: SteploomConfig, runtime: RuntimeDir, *arguments: str) -> ServiceSpec:
    """With TLS it gets a socket beside its port: to check its health takes no certificate then."""
    local_listen = config.gateway.local_listen or (runtime.address("gateway") if config.gateway.tls else "")
    spec = _service("gateway", config.gateway.listen, *arguments)
    if not local_listen:
        return spec
    return replace(spec, command=(*spec.command, "--local-listen", local_listen), local=local_listen)


def _service(name: str, address: str, *arguments: str) -> ServiceSpec:
    return ServiceSpec(name, address, ("-m", f"steploom_{name}", *arguments))


def _with_port(key: str, address: str, held: ExitStack) -> str:
    if address.startswith("unix:") or not address or host_and_port(address)[1]:
        return address
    host = host_and_port(address)[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        holder = held.enter_context(socket.socket(family))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # another that says so too may listen beside it
        holder.bind((host, 0))
        return f"{address.rpartition(':')[0]}:{holder.getsockname()[1]}"
    except OSError as error:
        raise ConfigError(key, f"cannot listen on {address}: {error.strerror}") from None
