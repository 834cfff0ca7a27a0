"""Is a service ready? Asks grpc.health.v1."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from enum import Enum

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom.access import Tls
from steploom.channel import local

_POLL_S = 0.1
_ANSWER_S = 2.0
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)


async def wait_serving(address: str) -> None:
    """Returns when the service at `address` says SERVING; waits for ever otherwise."""
    async with channel_to(address) as channel:
        while await ask(channel) is not Answer.SERVING:  # noqa: ASYNC110  another process has no event to wait for
            await asyncio.sleep(_POLL_S)


class Answer(Enum):
    """What a service says of itself."""

    SERVING = "it serves"
    OTHER = "it lives, and does not serve"
    NONE = "nothing"


def channel_to(address: str) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """A plain channel to a service of this host."""
    return grpc.aio.insecure_channel(local(address), _OPTIONS)


async def ask(channel: grpc.aio.Channel, timeout_s: float = _ANSWER_S) -> Answer:
    """Asks once. An answer that is an error is one too: it was not the service that said nothing."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        is_silent = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return Answer.NONE if is_silent else Answer.OTHER
    return Answer.SERVING if answer.status == health_pb2.HealthCheckResponse.SERVING else Answer.OTHER


def check(address: str, tls: Tls | None = None) -> str:
    """What the service at `address` says: 'SERVING', 'NOT_SERVING', or 'unreachable'.

    Raises:
        ConfigError: a file of `tls` cannot be read or is wrong.
    """
    address = local(address)
    credentials = tls.credentials() if tls else None
    with (
        grpc.secure_channel(address, credentials, _OPTIONS)
        if credentials
        else grpc.insecure_channel(address, _OPTIONS) as channel
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
        except grpc.RpcError:
            return "unreachable"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
