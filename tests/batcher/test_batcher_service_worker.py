"""The batcher with the engine worker's own process, on its fake engine."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from certificates import authority, needs_openssl, signed
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom_batcher.config import BatcherConfig
from steploom_batcher.server import BatcherServer
from steploom_common.internal import Internal
from steploom_common.tls_files import InternalConfig
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

NUM_JOBS = 24


async def start_worker(address: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "steploom_engine_worker", "--listen", address, "--engine", "fake", *arguments
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


@needs_openssl
async def test_over_a_network_batcher_and_worker_show_certificates(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    worker_pair, batcher_pair = signed(tmp_path, "worker", ca), signed(tmp_path, "batcher", ca)
    config = tmp_path / "steploom.toml"
    table = f'[internal]\ncert = "{worker_pair.cert}"\nkey = "{worker_pair.key}"\nca = "{ca.cert}"\n'
    await asyncio.to_thread(config.write_text, table)
    internal = Internal(InternalConfig(batcher_pair.cert, batcher_pair.key, ca.cert))
    address, port = f"unix:{tmp_path}/b.sock", free_port()
    server = BatcherServer(BatcherConfig(max_backoff_s=0.2), address, [f"127.0.0.1:{port}"], internal)
    await server.start()
    worker = await start_worker(f"0.0.0.0:{port}", "--config", str(config))
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = batcher_pb2_grpc.BatcherStub(channel)
            await eventually(lambda: server.driver.can_serve)
            assert len(set(await pictures(stub, server))) == NUM_JOBS
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as stranger:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
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
