"""`python -m steploom_batcher` as a process: flags, exit codes, signals."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest

from steploom_batcher.fake_worker import fake_ready, flat_costs
from steploom_batcher.fake_worker_service import FakeWorkerService, serve_fake_worker
from steploom_common.rpc import EXIT_FORCED
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

PIXELS = worker_pb2.Pixels(height=4, width=4, inline=bytes(48))


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "steploom_batcher", *arguments, stderr=asyncio.subprocess.PIPE
    )


async def said(process: asyncio.subprocess.Process, words: str) -> str:
    """Its log up to the line with these words."""
    assert process.stderr is not None
    lines = [""]
    async with asyncio.timeout(60):
        while words not in lines[-1]:
            line = await process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line.decode())
    return "".join(lines)


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(60):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--listen"),
        (["--listen", "unix:{folder}/b"], "no worker: give --worker"),
        (["--listen", "unix:{folder}/b", "--worker", "x:1", "--config", "{folder}/none.toml"], "cannot be read"),
        (["--listen", "unix:{folder}/b", "--worker", "x:1", "--config", "{folder}/bad.toml"], "batcher.max_rows"),
        (["--listen", "127.0.0.1:{port}", "--worker", "localhost:1"], "is another service using it?"),
    ],
)
async def test_a_usage_error_is_said_in_a_line(tmp_path: Path, flags: list[str], words: str) -> None:
    (tmp_path / "bad.toml").write_text("[batcher]\nmax_rows = 1\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await start(*(flag.format(folder=tmp_path, port=taken.getsockname()[1]) for flag in flags))
        code, stderr = await end_of(process)
    assert code == 2
    assert words in stderr
    assert "Traceback" not in stderr


async def status_of(call: grpc.aio.UnaryStreamCall[pb.SubmitRequest, pb.JobEvent]) -> grpc.StatusCode:
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[str]:
    address = f"unix:{tmp_path}/w.sock"
    server = await serve_fake_worker(address, FakeWorkerService(fake_ready(flat_costs(0.001, 0.003, 0.001))))
    yield address
    await server.stop(None)


async def running_job(process: asyncio.subprocess.Process, address: str) -> grpc.aio.Channel:
    channel = grpc.aio.insecure_channel(address, options=[("grpc.initial_reconnect_backoff_ms", 50)])
    stub = batcher_pb2_grpc.BatcherStub(channel)
    async with asyncio.timeout(60):
        while not (await stub.Status(pb.StatusRequest(), wait_for_ready=True)).HasField("model"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert process.returncode is None
    return channel


async def test_sigterm_lets_running_jobs_end(tmp_path: Path, worker: str) -> None:
    address = f"unix:{tmp_path}/b.sock"
    process = await start("--listen", address, "--worker", worker)
    channel = await running_job(process, address)
    call = batcher_pb2_grpc.BatcherStub(channel).Submit(pb.SubmitRequest(job_id="a", pixels=PIXELS, steps=60))
    await call.read()
    process.send_signal(signal.SIGTERM)
    before = await said(process, "draining 1 jobs")
    assert await status_of(call) is grpc.StatusCode.OK
    code, stderr = await end_of(process)
    assert code == 0
    assert "Traceback" not in before + stderr
    await channel.close()


async def test_a_second_signal_cuts_jobs_short(tmp_path: Path, worker: str) -> None:
    address = f"unix:{tmp_path}/b.sock"
    (tmp_path / "steploom.toml").write_text(f'[batcher]\nworkers = ["{worker}"]\n')
    process = await start("--listen", address, "--config", str(tmp_path / "steploom.toml"))
    channel = await running_job(process, address)
    stub = batcher_pb2_grpc.BatcherStub(channel)
    calls = [stub.Submit(pb.SubmitRequest(job_id=f"j{number}", pixels=PIXELS, steps=100)) for number in range(16)]
    await asyncio.gather(*(call.read() for call in calls))
    process.send_signal(signal.SIGINT)
    before = await said(process, "draining 16 jobs")
    process.send_signal(signal.SIGINT)
    for call in calls:
        assert await status_of(call) is grpc.StatusCode.UNAVAILABLE
        assert dict(await call.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    code, stderr = await end_of(process)
    assert code == EXIT_FORCED
    assert "16 jobs are cut short" in stderr
    assert "Traceback" not in before + stderr
    await channel.close()


async def test_the_batcher_never_imports_torch() -> None:
    code = "import sys, steploom_batcher.__main__; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
