"""What the three gRPC services have in common: channel options, binding, errors to statuses, an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import status_pb2

from steploom_common.errors import SteploomError

log = logging.getLogger(__name__)

# Internal streams carry whole pictures where there is no shared memory; keepalive notices a peer that hangs.
INTERNAL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 256 * 2**20),
    ("grpc.max_send_message_length", 256 * 2**20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.enable_http_proxy", 0),
]


class BindError(OSError):
    """The address to listen on cannot be had."""


def bind(server: grpc.aio.Server, address: str) -> int:
    """Binds `server` to host:port or unix:/path; returns the port (0 for a Unix socket).

    Raises:
        BindError: the port is taken, or the socket's folder cannot be written.
    """
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise BindError(f"cannot listen on {address}: is another service using it?") from error
    if address.startswith("unix:"):
        os.chmod(address.removeprefix("unix:"), 0o600)
    return port


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns a `SteploomError` into its status and details, and anything else into INTERNAL with an error id."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return handler


def _guard_unary(behaviour: Any) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await abort(context, error)

    return guarded


def _guard_stream(behaviour: Any) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except Exception as error:
            await abort(context, error)

    return guarded


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    """Ends a call with the status that `error` stands for."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, SteploomError):
        trailers = [*error.trailers()]
        details = error.details()
        if details:
            trailers.append(("grpc-status-details-bin", _rich_status(error, details)))  # type: ignore[arg-type]
        await context.abort(error.status, str(error), tuple(trailers))
    error_id = secrets.token_hex(6)
    log.error("error id %s", error_id, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error; error id {error_id}")


def _rich_status(error: SteploomError, details: Any) -> bytes:
    rows = []
    for detail in details:
        row = any_pb2.Any()
        row.Pack(detail)
        rows.append(row)
    return status_pb2.Status(code=error.status.value[0], message=str(error), details=rows).SerializeToString()


class Shutdown:
    """SIGTERM or SIGINT asks for an orderly end; a second one forces it."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def listen(self) -> None:
        """Installs the signal handlers on the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signal)

    def signal(self) -> None:
        """What a signal does."""
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()

    async def grace(self, work: Awaitable[Any], seconds: float) -> bool:
        """Awaits `work` for the grace; False where it was cut short by time or a second signal."""
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self.forced.wait())
        await asyncio.wait({task, forced}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        finished = task.done()
        task.cancel()
        return finished
