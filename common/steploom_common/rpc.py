"""What the three gRPC services have in common: channel options, binding, errors to statuses, an orderly end."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from steploom_common.errors import InvalidRequest, JobCancelled, SteploomError, Violation
from steploom_common.logs import about

log = logging.getLogger(__name__)

# Internal streams carry whole pictures where there is no shared memory; keepalive notices a peer that hangs.
INTERNAL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 256 * 2**20),
    ("grpc.max_send_message_length", 256 * 2**20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # of gRPC's own probes: while one is out, none of keepalive's is sent
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),  # a second service on a taken port is an error, not a silent share of its calls
]


EXIT_FORCED = 130  # of a process that a second signal has ended


class BindError(OSError):
    """The address to listen on cannot be had."""


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    """Binds `server` to host:port or unix:/path; returns the port (0 for a Unix socket).

    Args:
        server: not started yet.
        address: where it is to listen. A Unix socket is for its owner alone.
        credentials: of TLS; None: connections are plain.

    Raises:
        BindError: the port is taken, or the socket's folder cannot be written.
    """
    path = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
    try:
        if path is not None:
            _make_way(path)
        with _owner_only():
            port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        if path is not None:
            path.chmod(0o600)
    except (RuntimeError, OSError) as error:
        cause = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else "is another service using it?"
        raise BindError(f"cannot listen on {address}: {cause}") from error
    return port


@contextmanager
def _owner_only() -> Iterator[None]:
    """What is made within belongs to its owner alone from its first moment on."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _make_way(path: Path) -> None:
    """Makes the socket's folder, and removes a socket on which nobody listens any more.

    Raises:
        OSError: the folder cannot be made, a service listens there, or something other than a socket is in the way.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(17, "a file that is no socket is in the way", str(path))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(17, "another service listens there", str(path))


_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns a `SteploomError` into its status and details, and anything else into INTERNAL with an error id.

    A message that is no protobuf of its type is INVALID_ARGUMENT. A cancelled stream closes its generator at once, so
    that its `finally` runs then and not when the garbage is collected.

    Args:
        unread_s: seconds for which a caller may leave an answer of a stream unread, before its call is ended: until
            then it holds what the call holds. None: for ever.
    """

    def __init__(self, unread_s: float | None = None) -> None:
        self._unread_s = unread_s
        self._guarded: dict[str, tuple[_Handler, _Handler]] = {}  # by method: the handler and what stands around it

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = handler, self._around(handler)
        return known[1]

    def _around(self, handler: _Handler) -> _Handler:
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(handler.unary_unary), _tolerant(handler.request_deserializer), handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, self._unread_s),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                _guard_stream(handler.stream_stream, self._unread_s),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler


class _Unreadable:
    """Stands for a message that could not be parsed."""


def _tolerant(deserializer: Any) -> Any:
    def parse(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:  # whatever the parser says of bytes from outside, the bytes are wrong
            return _Unreadable()

    return parse if deserializer is not None else None


def _check_readable(request: Any) -> None:
    if isinstance(request, _Unreadable):
        raise _unreadable()


def _unreadable() -> InvalidRequest:
    return InvalidRequest(Violation("", "the message cannot be parsed: it is no protobuf of this method's type"))


def _guard_unary(behaviour: Any) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            _check_readable(request)
            return await behaviour(request, context)
        except Exception as error:
            await abort(context, error)

    return guarded


def _guard_stream(behaviour: Any, unread_s: float | None) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            _check_readable(request)
            if not inspect.isasyncgenfunction(behaviour):
                await behaviour(request, context)  # writes to the context itself
                return
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    await _write(context, response, unread_s)
        except _CallerGone:
            log.debug("nobody is left to answer", exc_info=True)
        except DecodeError:  # a stream of requests is parsed while it is read
            await abort(context, _unreadable())
        except Exception as error:
            await abort(context, error)

    return guarded


class _CallerGone(Exception):
    """The connection has ended while an answer was on its way."""


async def _write(context: grpc.aio.ServicerContext[Any, Any], response: Any, unread_s: float | None) -> None:
    try:
        async with asyncio.timeout(unread_s):
            await context.write(response)
    except TimeoutError:
        raise JobCancelled(f"an answer was left unread for {unread_s:g} s") from None
    except grpc.aio.InternalError as error:
        raise _CallerGone from error


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    """Ends a call with the status that `error` stands for."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if context.done():
        log.debug("nobody is left to hear of this", exc_info=error)
        return
    if isinstance(error, SteploomError):
        trailers = [*error.trailers()]
        details = error.details()
        if details:
            trailers.append(("grpc-status-details-bin", _rich_status(error, details)))
        await context.abort(error.status, str(error), tuple(trailers))
    error_id = secrets.token_hex(6)
    log.error("error id %s", error_id, exc_info=error, extra=about(error_id=error_id))
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error; error id {error_id}")


def _rich_status(error: SteploomError, details: Any) -> bytes:
    rows = []
    for detail in details:
        row = any_pb2.Any()
        row.Pack(detail)
        rows.append(row)
    status: bytes = status_pb2.Status(code=error.status.value[0], message=str(error), details=rows).SerializeToString()
    return status


# What a supervisor asks its services to end with. Unlike a second SIGTERM it forces nothing: who stops a whole group of
# processes sends each of them a SIGTERM, and the supervisor among them asks once more.
ASK_TO_END = signal.SIGUSR1


class Shutdown:
    """SIGTERM or SIGINT asks for an orderly end; a second one forces it. `ASK_TO_END` asks, however often it comes."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()
        self._is_signalled = False

    def listen(self) -> None:
        """Installs the signal handlers on the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signal)
        loop.add_signal_handler(ASK_TO_END, self.requested.set)

    @property
    def exit_code(self) -> int:
        """Of the process: whether its end was an orderly one."""
        return EXIT_FORCED if self.forced.is_set() else 0

    def signal(self) -> None:
        """What a signal does."""
        if self._is_signalled:
            self.forced.set()
        self._is_signalled = True
        self.requested.set()

    async def grace(self, work: Awaitable[Any], seconds: float) -> bool:
        """Awaits `work` for the grace; False where it was cut short by time or a second signal."""
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self.forced.wait())
        try:
            await asyncio.wait({task, forced}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task  # raises what the work raised
            return task.done()
        finally:
            for part in (task, forced):
                part.cancel()
            await asyncio.gather(task, forced, return_exceptions=True)
