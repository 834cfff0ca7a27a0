"""The gateway that a load goes to: its address, certificates and token, and connections that are there in time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

# a connection of its own for each channel, whose calls share nothing with the others'
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
)


class Unreachable(ConnectionError):
    """Nobody answers at the address."""


@dataclass(frozen=True)
class Target:
    """Where a load goes, and who sends it."""

    address: str  # host:port
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)  # None: a plain connection
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # of every call: the token
    connect_s: float = 30.0  # until the connections must be there

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.address, OPTIONS)
        return grpc.aio.secure_channel(self.address, self.credentials, OPTIONS)


@asynccontextmanager
async def connected(target: Target, count: int) -> AsyncIterator[Iterator[Any]]:
    """Stubs without end, in turn over `count` connections.

    Raises:
        Unreachable: there is no connection in time.
    """
    channels = [target.channel() for _ in range(count)]
    try:
        try:
            async with asyncio.timeout(target.connect_s):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
        except TimeoutError:
            problem = f"no connection to {target.address} within {target.connect_s:g} s"
            raise Unreachable(problem) from None
        yield in_turn([ImageServiceStub(channel) for channel in channels])
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def in_turn(stubs: Sequence[Any]) -> Iterator[Any]:
    """Each of them again and again."""
    return itertools.cycle(stubs)
