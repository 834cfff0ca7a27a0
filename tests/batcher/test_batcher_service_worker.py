"""The batcher with the engine worker's own process, on its fake engine."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio

from steploom_batcher.config import BatcherConfig
from steploom_batcher.server import BatcherServer
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

NUM_JOBS = 24


async def start_worker(address: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "steploom_engine_worker", "--listen", address, "--engine", "fake"
    )


async def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def pictures(stub: batcher_pb2_grpc.BatcherAsyncStub, server: BatcherServer) -> list[bytes]:
    """Of jobs whose seeds are their numbers."""
    model = next(iter(server.driver.models.values()))
    pixels = worker_pb2.Pixels(
        height=model.height, width=model.width, inline=bytes([9]) * (model.height * model.width * 3)
    )

    deadline = time.time() + 600

    async def picture(number: int) -> bytes:
        request = pb.SubmitRequest(
            job_id=f"j{number}", pixels=pixels, seed=number, steps=10 + number % 3, deadline_unix_s=deadline
        )
        events = [event async for event in stub.Submit(request)]
        return events[-1].finished.pixels.inline

    return await asyncio.gather(*(picture(number) for number in range(NUM_JOBS)))


async def test_a_killed_worker_costs_no_picture(tmp_path: Path) -> None:
    worker_address, address = f"unix:{tmp_path}/w.sock", f"unix:{tmp_path}/b.sock"
    server = BatcherServer(BatcherConfig(max_backoff_s=0.2), address, [worker_address])
    await server.start()
    worker = await start_worker(worker_address)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = batcher_pb2_grpc.BatcherStub(channel)
        await eventually(lambda: server.driver.can_serve)
        undisturbed = await pictures(stub, server)
        assert len(set(undisturbed)) == NUM_JOBS
        before = server.driver.statistics().denoise_rows

        disturbed = asyncio.create_task(pictures(stub, server))
        await eventually(lambda: server.driver.statistics().denoise_rows > before)
        worker.kill()
        await worker.wait()
        worker = await start_worker(worker_address)
        assert await disturbed == undisturbed
    await server.stop()
    worker.terminate()
    assert await worker.wait() == 0


async def test_a_worker_that_stands_still_is_lost_within_the_time_of_keepalive(tmp_path: Path) -> None:
    """Its socket stays open, so only an unanswered ping tells."""
    worker_address, address = f"unix:{tmp_path}/w.sock", f"unix:{tmp_path}/b.sock"
    server = BatcherServer(BatcherConfig(max_backoff_s=0.2), address, [worker_address])
    await server.start()
    worker = await start_worker(worker_address)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = batcher_pb2_grpc.BatcherStub(channel)
        await eventually(lambda: server.driver.can_serve)
        undisturbed = await pictures(stub, server)
        before = server.driver.statistics().denoise_rows
        disturbed = asyncio.create_task(pictures(stub, server))
        await eventually(lambda: server.driver.statistics().denoise_rows > before)
        worker.send_signal(signal.SIGSTOP)
        await eventually(lambda: not server.driver.can_serve, seconds=55)  # gRPC's own default alone: a minute
        worker.send_signal(signal.SIGCONT)
        assert await disturbed == undisturbed
    await server.stop()
    worker.terminate()
    assert await worker.wait() == 0
