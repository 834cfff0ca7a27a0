"""`python -m steploom_engine_worker` as a process: exit codes, messages, signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from steploom_engine_worker.errors import EXIT_FATAL
from steploom_engine_worker.fake_engine import CRASH_EXIT_CODE
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

Start = Callable[..., subprocess.Popen[str]]
PATIENCE_S = 120.0  # for a process to start, or to end


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "steploom_engine_worker", "--listen", f"unix:{tmp_path}/w.sock", *arguments]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


def drive(tmp_path: Path, instruction: str) -> None:
    """Runs a job up to its first denoise tick."""
    pixels = worker_pb2.Pixels(height=128, width=128, inline=np.zeros((128, 128, 3), np.uint8).tobytes())
    commands = [
        worker_pb2.Command(
            admit=worker_pb2.Admit(
                job_id="a",
                instruction=instruction,
                pixels=pixels,
                steps=1,
                guidance_scale=7.5,
                image_guidance_scale=1.5,
            )
        ),
        worker_pb2.Command(tick=worker_pb2.Tick(tick_id=1, stage=worker_pb2.STAGE_ENCODE, slots=[0])),
        worker_pb2.Command(tick=worker_pb2.Tick(tick_id=2, stage=worker_pb2.STAGE_DENOISE, slots=[0], steps=[0])),
    ]
    with grpc.insecure_channel(f"unix:{tmp_path}/w.sock") as channel:
        ended = threading.Event()

        def stay() -> Iterator[worker_pb2.Command]:
            """A batcher keeps its stream open: a worker forgets what waits when it closes."""
            yield from commands
            ended.wait(PATIENCE_S)

        reports = worker_pb2_grpc.WorkerStub(channel).Drive(stay(), wait_for_ready=True, timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError):
            list(reports)
        ended.set()


def test_ends_in_order_on_a_signal(start: Start, tmp_path: Path) -> None:
    process = start("--engine", "fake")
    with grpc.insecure_channel(f"unix:{tmp_path}/w.sock") as channel:
        reports = worker_pb2_grpc.WorkerStub(channel).Drive(iter(()), wait_for_ready=True, timeout=PATIENCE_S)
        assert next(reports).ready.engine == "fake"
    process.send_signal(signal.SIGTERM)
    code, errors = end(process)
    assert code == 0, errors
    assert "INFO steploom_engine_worker" in errors


def test_out_of_memory_has_its_own_exit_code(start: Start, tmp_path: Path) -> None:
    process = start("--engine", "fake")
    drive(tmp_path, "exhaust")
    code, errors = end(process)
    assert code == EXIT_FATAL
    assert "the engine cannot go on: MemoryError" in errors


def test_a_crash_is_a_crash(start: Start, tmp_path: Path) -> None:
    process = start("--engine", "fake")
    drive(tmp_path, "crash")
    assert end(process)[0] == CRASH_EXIT_CODE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "/nowhere/steploom.toml"], "error: /nowhere/steploom.toml: cannot be read"),
        (["--engine", "abacus"], "error: engine: is 'abacus', must be one of torch, tensorrt, fake"),
        (["--model", "/nowhere"], "error: /nowhere: is not a directory"),
        (["--engine", "fake", "--listen", "unix:/proc/w.sock"], "error: "),
    ],
)
def test_a_usage_error_is_one_line_and_code_2(start: Start, arguments: list[str], message: str) -> None:
    code, errors = end(start(*arguments))
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
