"""The Batcher service over real sockets, with a fake worker in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest

from steploom_batcher.config import BatcherConfig, TierConfig
from steploom_batcher.fake_worker import fake_ready, flat_costs
from steploom_batcher.fake_worker_service import FakeWorkerService, serve_fake_worker
from steploom_batcher.server import BatcherServer
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

COSTS = flat_costs(0.001, 0.0005, 0.001)


class System:
    """A batcher, a fake worker, and a stub to ask it with."""

    def __init__(self, folder: Path, config: BatcherConfig) -> None:
        self.worker_address = f"unix:{folder}/w.sock"
        self.address = f"unix:{folder}/b.sock"
        self.worker_service = FakeWorkerService(fake_ready(COSTS))
        self.server = BatcherServer(config, self.address, [self.worker_address])
        self.driver = self.server.driver

    async def start(self) -> None:
        self.worker_server = await serve_fake_worker(self.worker_address, self.worker_service)
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = batcher_pb2_grpc.BatcherStub(self.channel)
        await eventually(lambda: self.driver.can_serve)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop()
        await self.worker_server.stop(None)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def config() -> BatcherConfig:
    return BatcherConfig(
        tiers={"free": TierConfig(steps=3, deadline_s=20), "pro": TierConfig(steps=35, deadline_s=60)},
        min_backoff_s=0.02,
        max_backoff_s=0.05,
    )


@pytest.fixture
async def system(tmp_path: Path, config: BatcherConfig) -> AsyncIterator[System]:
    made = System(tmp_path, config)
    await made.start()
    yield made
    await made.stop()


def request(job_id: str = "a", **changes: object) -> pb.SubmitRequest:
    pixels = worker_pb2.Pixels(height=4, width=4, inline=bytes(48))
    fields = {"job_id": job_id, "tier": "free", "instruction": "smile", "pixels": pixels, "seed": 2**63 + 1, **changes}
    return pb.SubmitRequest(**fields)  # type: ignore[arg-type]


async def test_a_job_goes_through(system: System) -> None:
    events = [event async for event in system.stub.Submit(request())]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "admitted"
    assert kinds[-1] == "finished"
    assert events[0].admitted.steps == 3
    assert events[-1].finished.pixels.inline.startswith(f"{2**63 + 1}:smile:".encode())
    assert events[-1].finished.timings.ticks == 5
