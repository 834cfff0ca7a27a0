"""For tests of the gateway: one over a fake batcher, on real sockets, and pictures to send."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from opentelemetry.trace import Tracer
from PIL import Image

from steploom_common.arena import Pixels
from steploom_common.tracing import NO_TRACER
from steploom_gateway.config import GatewayConfig
from steploom_gateway.fake_batcher import FakeBatcher, serving_model
from steploom_gateway.server import Gateway
from steploom_protos.v1 import image_pb2, image_pb2_grpc


@dataclass
class House:
    """Gateway, fake batcher and a client's channel."""

    gateway: Gateway
    batcher: FakeBatcher
    channel: grpc.aio.Channel

    @property
    def stub(self) -> image_pb2_grpc.ImageServiceAsyncStub:
        return image_pb2_grpc.ImageServiceStub(self.channel)

    async def is_clean(self) -> bool:
        """Whether no edit, block, job or settling is left; waits a moment for it."""
        return await eventually(
            lambda: (
                self.gateway.service.num_open == 0
                and self.gateway.loans.num_used == 0
                and self.gateway.loans.num_settling == 0
                and self.batcher.num_live == 0
            )
        )


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether `condition` becomes true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


@asynccontextmanager
async def opened(
    tmp_path: Path,
    is_remote: bool = False,
    has_worker: bool = True,
    arena_dir: Path | None = None,
    tracer: Tracer = NO_TRACER,
    **settings: Any,
) -> AsyncIterator[House]:
    """A house of its own settings; `is_remote` puts the batcher behind a TCP port."""
    address = "127.0.0.1:0" if is_remote else f"unix:{tmp_path}/batcher.sock"
    batcher = FakeBatcher(address, tmp_path, serving_model() if has_worker else None)
    await batcher.start()
    config = GatewayConfig(
        **{
            "listen": "127.0.0.1:0",
            "metrics_listen": "",  # its thread takes half a second to end
            "batcher": f"127.0.0.1:{batcher.port}" if is_remote else address,
            "poll_s": 0.05,
            "settle_s": 0.1,
            "arena_blocks": 4,
            **settings,
        }
    )
    gateway = Gateway(config, arena_dir or tmp_path, tracer=tracer)
    await gateway.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}")
    try:
        assert await eventually(lambda: gateway.batcher.is_serving or not has_worker)
        yield House(gateway, batcher, channel)
    finally:
        await channel.close()
        await gateway.close()
        await batcher.stop()


def arenas(folder: Path) -> list[Path]:
    """The arena files in a folder."""
    return list(folder.glob("steploom-arena-*"))


def picture(height: int = 32, width: int = 32, seed: int = 0) -> Pixels:
    """A smooth picture, so that lossy formats keep it."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def encoded(pixels: Pixels, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def decoded(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def request(pixels: Pixels | None = None, **fields: Any) -> image_pb2.EditRequest:
    image = image_pb2.Image(encoded=encoded(picture() if pixels is None else pixels))
    return image_pb2.EditRequest(**{"image": image, "instruction": "make the hair blond", **fields})


async def status_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def late_status_of(house: House, call: Callable[[float], Awaitable[Any]]) -> grpc.aio.AioRpcError:
    """The error of a call whose deadline, in seconds, passes while the batcher holds its job.

    A machine that stalls gets a longer one, for the job to come that far.
    """
    for seconds in (0.2, 2.0, 20.0):
        error = await status_of(call(seconds))
        if house.batcher.reached.is_set():
            return error
    raise AssertionError("no job came to the batcher before its deadline")
