"""Is a service ready? Asks grpc.health.v1."""

from __future__ import annotations

import asyncio

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
    async with grpc.aio.insecure_channel(local(address), _OPTIONS) as channel:
        while not await _is_serving(channel):  # noqa: ASYNC110  another process has no event to wait for
            await asyncio.sleep(_POLL_S)


async def _is_serving(channel: grpc.aio.Channel) -> bool:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


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
