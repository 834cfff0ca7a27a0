"""The gateway as a process: arguments, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from gateway_house import arenas, eventually, request, status_of
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom_common.arena import remove_stale
from steploom_common.rpc import EXIT_FORCED
from steploom_gateway.fake_batcher import FakeBatcher, serving_model
from steploom_protos.v1 import image_pb2_grpc

COMMAND = [sys.executable, "-m", "steploom_gateway"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a gateway that is expected to end by itself."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)


def fails_clearly(*arguments: str, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        batcher = f"unix:{tmp_path}/batcher.sock"
        fails_clearly("--batcher", batcher, "--listen", address, "--metrics-listen", "", words=address)
        fails_clearly("--batcher", batcher, "--listen", "127.0.0.1:0", "--metrics-listen", address, words=address)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    config = tmp_path / "steploom.toml"
    config.write_text("[gateway]\ncodec_threads = 0\n")
    fails_clearly("--config", str(config), words="gateway.codec_threads: is 0, must be at least 1")
    fails_clearly("--config", str(tmp_path / "none.toml"), words="none.toml: cannot be read")
    config.write_text('[gateway]\ntokens = "none.toml"\n')
    fails_clearly("--config", str(config), words="gateway.tokens: none.toml cannot be read: No such file")
    config.write_text('[gateway.tls]\ncert = "none.pem"\nkey = "none.key"\n')
    arguments = ("--config", str(config), "--listen", "127.0.0.1:0", "--batcher", f"unix:{tmp_path}/batcher.sock")
    fails_clearly(*arguments, words="gateway.tls.cert: none.pem cannot be read: No such file")
    fails_clearly("--listen", "nonsense", words="listen: is 'nonsense', must be host:port")
    fails_clearly("--unknown", words="--unknown")


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, steploom_gateway.__main__, steploom_gateway.fake_batcher;"
        "print([name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


class Running:
    """A gateway process over a fake batcher."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, batcher: FakeBatcher) -> None:
        self.process = process
        self.batcher = batcher
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = image_pb2_grpc.ImageServiceStub(self.channel)
        self._log = b""

    async def says(self, words: str) -> None:
        """Returns when the log has a line with these words."""
        assert self.process.stderr
        line = b"-"
        while line and words.encode() not in line:
            line = await asyncio.wait_for(self.process.stderr.readline(), 60)
            self._log += line
        assert line, self._log

    async def end(self) -> tuple[int | None, str]:
        _, rest = await asyncio.wait_for(self.process.communicate(), 60)
        return self.process.returncode, (self._log + rest).decode()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    batcher = FakeBatcher(f"unix:{tmp_path}/batcher.sock", Path("/dev/shm"), serving_model())
    await batcher.start()
    address = f"unix:{tmp_path}/gateway.sock"
    arguments = ["--batcher", batcher.address, "--listen", address, "--metrics-listen", ""]
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stderr=asyncio.subprocess.PIPE)
    running = Running(process, address, batcher)
    try:
        health = health_pb2_grpc.HealthStub(running.channel).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=120
        )
        async for answer in health:
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        health.cancel()
        yield running
    finally:
        await running.channel.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await batcher.stop()


def own_arenas(running: Running) -> list[Path]:
    return [file for file in arenas(Path("/dev/shm")) if f"-{running.process.pid}-" in file.name]


async def test_sigterm_lets_open_edits_end(running: Running) -> None:
    running.batcher.play(hold_at="started")
    call = running.stub.Edit(request(instruction="a secret wish"))
    await running.batcher.reached.wait()
    assert len(own_arenas(running)) == 1
    running.process.send_signal(signal.SIGTERM)
    await running.says("draining")
    assert (await status_of(running.stub.Edit(request()))).code() is grpc.StatusCode.UNAVAILABLE
    running.batcher.resume.set()
    await call
    code, log = await running.end()
    assert code == 0
    assert not own_arenas(running)
    assert "status=OK" in log
    assert "Traceback" not in log
    assert "secret" not in log


async def test_a_second_signal_forces_the_end(running: Running) -> None:
    running.batcher.play(hold_at="started")
    end = asyncio.create_task(status_of(running.stub.Edit(request())))
    await running.batcher.reached.wait()
    running.process.send_signal(signal.SIGINT)
    await running.says("draining")
    running.process.send_signal(signal.SIGINT)
    assert (await end).code() is grpc.StatusCode.UNAVAILABLE
    code, log = await running.end()
    assert code == EXIT_FORCED
    assert not own_arenas(running)
    assert "Traceback" not in log


async def test_a_killed_gateways_memory_is_removed_by_the_next(running: Running) -> None:
    await running.stub.Edit(request())
    assert len(own_arenas(running)) == 1
    os.kill(running.process.pid, signal.SIGKILL)
    await running.process.wait()
    remove_stale(Path("/dev/shm"))
    # any other process that makes an arena does the same, and may be at it now
    assert await eventually(lambda: not own_arenas(running))
    assert await eventually(lambda: running.batcher.num_live == 0)
