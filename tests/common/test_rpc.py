"""Binding, the error interceptor, and shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import status_pb2

from steploom_common.errors import InvalidRequest, Unavailable, Violation
from steploom_common.rpc import ASK_TO_END, INTERNAL_OPTIONS, BindError, ErrorInterceptor, Shutdown, bind


def parse(data: bytes) -> str:
    return data.decode()  # raises on bytes that are no UTF-8


class Service:
    """Methods of each kind that fail as they are told."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def unary(self, request: str, context: Any) -> bytes:
        raise_for(request)
        return request.encode()

    async def stream(self, request: str, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            raise_for(request)
            yield b"second"
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def writing(self, request: str, context: Any) -> None:
        await context.write(b"written")
        raise_for(request)

    async def both(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            raise_for(request)
            yield request.encode()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Service",
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary, parse),
                "Stream": grpc.unary_stream_rpc_method_handler(self.stream, parse),
                "Writing": grpc.unary_stream_rpc_method_handler(self.writing, parse),
                "Both": grpc.stream_stream_rpc_method_handler(self.both, parse),
            },
        )


def raise_for(request: str) -> None:
    if request == "invalid":
        raise InvalidRequest(Violation("field", "is bad"))
    if request == "unavailable":
        raise Unavailable("away", 0.5)
    if request == "bug":
        raise KeyError("a secret detail")


class Served:
    """The service behind a channel."""

    def __init__(self, service: Service, channel: grpc.aio.Channel) -> None:
        self.service = service
        self.channel = channel

    async def send(self, method: str, request: bytes) -> list[bytes]:
        path = f"/test.Service/{method}"
        if method == "Unary":
            unary: Any = self.channel.unary_unary(path)
            return [await unary(request)]
        stream: Any
        if method == "Both":
            stream = self.channel.stream_stream(path)
            return [item async for item in stream(iter([request]))]
        stream = self.channel.unary_stream(path)
        return [item async for item in stream(request)]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    service = Service()
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=INTERNAL_OPTIONS)
    server.add_generic_rpc_handlers((service.handler(),))
    address = f"unix:{tmp_path}/test.sock"
    bind(server, address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Served(service, channel)
    await server.stop(None)


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


METHODS = ("Unary", "Stream", "Writing", "Both")


@pytest.mark.parametrize("method", METHODS)
async def test_an_error_becomes_its_status(served: Served, method: str) -> None:
    error = await error_of(served.send(method, b"invalid"))
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "field: is bad")
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    assert (status.code, status.message, len(status.details)) == (3, "field: is bad", 1)
    error = await error_of(served.send(method, b"unavailable"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "500"


@pytest.mark.parametrize("method", METHODS)
async def test_a_bug_is_internal_with_an_id_that_the_log_has(
    served: Served, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await error_of(served.send(method, b"bug"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    error_id = (error.details() or "").rpartition(" ")[2]
    assert error_id in caplog.text
    assert "a secret detail" in caplog.text


@pytest.mark.parametrize("method", ["Unary", "Stream", "Writing"])
async def test_an_unreadable_message_is_invalid(served: Served, method: str) -> None:
    error = await error_of(served.send(method, b"\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_pass(served: Served) -> None:
    assert await served.send("Unary", b"hello") == [b"hello"]
    assert await served.send("Writing", b"hello") == [b"written"]
    assert await served.send("Both", b"hello") == [b"hello"]


@pytest.mark.parametrize("num_read", [0, 1, 2])
async def test_a_cancelled_stream_is_closed_at_once(served: Served, num_read: int) -> None:
    stream: Any = served.channel.unary_stream("/test.Service/Stream")
    call = stream(b"")
    for _ in range(num_read):
        await call.read()
    if not num_read:
        await call.wait_for_connection()
    call.cancel()
    if num_read:
        await asyncio.wait_for(served.service.closed.wait(), 60)


async def test_a_taken_port_is_refused() -> None:
    first, second = (grpc.aio.server(options=INTERNAL_OPTIONS) for _ in range(2))
    port = bind(first, "127.0.0.1:0")
    await first.start()
    with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{port}"):
        bind(second, f"127.0.0.1:{port}")
    await first.stop(None)


async def test_a_live_socket_is_not_stolen(served: Served, tmp_path: Path) -> None:
    with pytest.raises(BindError, match="another service listens there"):
        bind(grpc.aio.server(), f"unix:{tmp_path}/test.sock")
    assert await served.send("Unary", b"hello") == [b"hello"]


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "test.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert bind(grpc.aio.server(), f"unix:{path}") >= 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_socket_is_its_owners_from_the_moment_on_that_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only once its rights have been changed: in between somebody could come in."""
    monkeypatch.setattr(Path, "chmod", lambda path, mode: None)
    before = os.umask(0o000)
    try:
        bind(grpc.aio.server(), f"unix:{tmp_path}/test.sock")
        assert stat.S_IMODE((tmp_path / "test.sock").stat().st_mode) & 0o077 == 0
    finally:
        assert os.umask(before) == 0o000  # as it was found


async def test_another_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("mine")
    with pytest.raises(BindError, match="no socket"):
        bind(grpc.aio.server(), f"unix:{path}")
    assert path.read_text() == "mine"


async def test_the_sockets_folder_is_made_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new" / "test.sock"
    bind(grpc.aio.server(), f"unix:{path}")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("address", ["nowhere.invalid:1", "unix:" + "x" * 200, "unix:/proc/none/test.sock"])
async def test_addresses_that_cannot_be_had(address: str) -> None:
    with pytest.raises(BindError, match="cannot listen on"):
        bind(grpc.aio.server(), address)


async def test_signals_ask_and_then_force() -> None:
    shutdown = Shutdown()
    shutdown.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(shutdown.requested.wait(), 60)
    assert not shutdown.forced.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(shutdown.forced.wait(), 60)
    forget_signals()


async def test_a_supervisor_may_ask_twice_and_after_a_signal() -> None:
    shutdown = Shutdown()
    shutdown.listen()
    for number in (ASK_TO_END, signal.SIGTERM, ASK_TO_END):
        shutdown.requested.clear()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(shutdown.requested.wait(), 60)
        assert not shutdown.forced.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(shutdown.forced.wait(), 60)
    forget_signals()


def forget_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, ASK_TO_END):
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_grace_ends_with_the_work_the_time_or_the_second_signal() -> None:
    before = asyncio.all_tasks()
    shutdown = Shutdown()
    assert await shutdown.grace(asyncio.sleep(0), 60)
    assert not await shutdown.grace(asyncio.Event().wait(), 0.01)
    shutdown.signal()
    waiting = asyncio.create_task(shutdown.grace(asyncio.Event().wait(), 600))
    await asyncio.sleep(0)
    shutdown.signal()
    assert not await asyncio.wait_for(waiting, 60)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_work_that_fails_within_the_grace_raises() -> None:
    async def fail() -> None:
        raise KeyError("work")

    with pytest.raises(KeyError):
        await Shutdown().grace(fail(), 60)
