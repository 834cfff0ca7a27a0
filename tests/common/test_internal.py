"""How services reach each other: plain within a host, elsewhere by certificates of each side."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates import Pair, authority, needs_openssl, signed

from steploom_common.internal import PLAIN, Internal
from steploom_common.rpc import bind
from steploom_common.settings import ConfigError
from steploom_common.tls_files import InternalConfig

LOCAL = ("unix:/run/a.sock", "127.0.0.1:9000", "localhost:9000", "[::1]:9000")
REMOTE = ("10.0.0.2:9000", "0.0.0.0:9000", "[::]:9000", "gpu-1:9000", "localhost.example:9000", "127.0.0.1.example:1")


@pytest.mark.parametrize("address", LOCAL)
def test_within_a_host_connections_are_plain(address: str) -> None:
    assert PLAIN.credentials(address) is None
    assert PLAIN.server_credentials(address) is None


@pytest.mark.parametrize("address", REMOTE)
def test_over_a_network_they_are_not_unless_that_is_asked_for(address: str) -> None:
    for call in (PLAIN.credentials, PLAIN.server_credentials, PLAIN.channel):
        with pytest.raises(ConfigError) as caught:
            call(address)
        assert str(caught.value).startswith(f"internal.cert: is empty, and {address} is on a network")
        assert "internal.allow_plain" in str(caught.value)
    assert Internal(InternalConfig(allow_plain=True)).credentials(address) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cert": "a.pem"}, "key: is empty"),
        ({"cert": "a.pem", "key": "a.key"}, "ca: is empty, must be set: TLS between services is mutual"),
        ({"ca": "ca.pem"}, "cert: is empty, must be set"),
    ],
)
def test_settings_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        InternalConfig(**settings)


def test_a_wrong_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"internal\.cert: none\.pem cannot be read: No such file"):
        Internal(InternalConfig("none.pem", "none.key", "none.pem"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("steploom_gateway", "--batcher", "10.0.0.2:9000"),
        ("steploom_batcher", "--listen", "0.0.0.0:0", "--worker", "unix:/nonexistent/w.sock"),
        ("steploom_batcher", "--listen", "127.0.0.1:0", "--worker", "10.0.0.2:9000"),
        ("steploom_engine_worker", "--engine", "fake", "--listen", "0.0.0.0:0"),
    ],
    ids=lambda arguments: " ".join(arguments[:3]),
)
def test_a_service_that_would_talk_in_the_clear_says_so_and_ends(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-P", "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert "internal.cert: is empty, and " in done.stderr
    assert "Traceback" not in done.stderr


def internal(own: Pair, ca: Pair) -> Internal:
    return Internal(InternalConfig(own.cert, own.key, ca.cert))


@needs_openssl
def test_with_certificates_every_port_asks_for_them_and_no_socket_does(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    secured = internal(signed(tmp_path, "batcher", ca), ca)
    assert secured.credentials("unix:/run/a.sock") is None
    for address in (*LOCAL[1:], *REMOTE):
        assert secured.credentials(address) is not None
    assert repr(secured) == "Internal(mutual TLS)"


@asynccontextmanager
async def listening(secured: Internal) -> AsyncIterator[str]:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Say": method}),))
    port = bind(server, "127.0.0.1:0", secured.server_credentials("127.0.0.1:0"))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def can_talk(by: Internal, address: str) -> bool:
    async with by.channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        say: Any = channel.unary_unary("/test.Echo/Say")
        try:
            return bool(await say(b"hello") == b"hello")
        except grpc.aio.AioRpcError:
            return False


@needs_openssl
async def test_both_sides_show_certificates_and_new_ones_are_taken(tmp_path: Path) -> None:
    ca, stranger = authority(tmp_path), authority(tmp_path, "stranger")
    worker_pair, batcher_pair = signed(tmp_path, "worker", ca), signed(tmp_path, "batcher", ca)
    worker, batcher = internal(worker_pair, ca), internal(batcher_pair, ca)
    foreign = internal(signed(tmp_path, "foreign", stranger), ca)
    async with listening(worker) as address:
        assert await can_talk(batcher, address)
        assert not await can_talk(PLAIN, address)
        assert not await can_talk(foreign, address)
        assert not await can_talk(internal(batcher_pair, stranger), address)
        new = authority(tmp_path, "new")
        signed(tmp_path, "new-worker", new).move_to(worker_pair)
        signed(tmp_path, "new-batcher", new).move_to(batcher_pair)
        new.move_to(ca)
        assert await can_talk(batcher, address)
        assert not await can_talk(foreign, address)
