"""Disks and shared memory without room. RLIMIT_FSIZE makes each write fail as on a full disk, whoever asks for it."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fault_matrix import BACK_S, Outcome, Traces, ask, ask_until_back, eventually, failures, open_requests

from steploom.aio import Client
from steploom_engine_worker.tensorrt.plan_store import write_whole
from steploom_loadtest.stack import Stack, Tables, arenas_of
from steploom_protos.v1 import image_pb2
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

COSTS = {"denoise_s": 0.01, "denoise_row_s": 0.0005, "encode_s": 0.005}
TABLES = {
    "worker": {"engine": "fake", "slots": 8, "fake": COSTS},
    "up": {"min_backoff_s": 0.1, "max_backoff_s": 0.2, "stable_s": 0.0},
    "gateway": {"settle_s": 0.5},
}
LOADS = ["idle", "load"]
AT_ONCE = 500
LINES = 4 * AT_ONCE  # of log, more than fit into the pipe between a service and its supervisor


@contextmanager
def full_disk(pid: int, size: int = 0) -> Iterator[None]:
    """No file of a process grows beyond a size, in bytes; what lies in memory file systems included."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("load", LOADS)
async def test_no_shared_memory(start_stack: Callable[[Tables], Stack], load: str) -> None:
    """Pictures travel in messages."""
    stack = start_stack(TABLES)
    traces, outcome = Traces(stack), Outcome()
    with full_disk(stack.pids()["gateway"]):
        async with Client(stack.gateway) as client:
            if load == "load":
                async with open_requests(stack, client, outcome):
                    pass
            await ask_until_back(stack, client, outcome)
    print(outcome)
    assert not failures([*outcome.open, *outcome.later])
    assert "pictures travel in messages: File too large" in stack.log
    assert not arenas_of(stack.pids()["gateway"])
    await traces.assert_none()


@pytest.mark.parametrize("load", LOADS)
async def test_no_room_for_the_log(start_stack: Callable[[Tables], Stack], load: str) -> None:
    """What cannot be written is lost; nobody waits for it."""
    stack = start_stack(TABLES)
    traces, outcome = Traces(stack), Outcome()
    async with Client(stack.gateway) as client, grpc.aio.insecure_channel(stack.gateway) as channel:
        await ask(client, 1)
        with full_disk(stack.pid, len(stack.log)):
            if load == "load":
                async with open_requests(stack, client, outcome):
                    await many_lines(channel)
            else:
                await many_lines(channel)
            await ask_until_back(stack, client, outcome)
        print(outcome)
        assert not failures([*outcome.open, *outcome.later])
        await ask(client, 1)
    assert stack.pids() == traces.pids
    await traces.assert_none()
    assert "status=OK" in stack.log.splitlines()[-1]  # it is written again


async def many_lines(channel: grpc.aio.Channel) -> None:
    """Requests that are refused at once, each with a line in the log."""
    stub: Any = ImageServiceStub(channel)
    for _ in range(LINES // AT_ONCE):
        calls = [stub.Edit(image_pb2.EditRequest(), timeout=BACK_S) for _ in range(AT_ONCE)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {end.code().name for end in ends if isinstance(end, grpc.aio.AioRpcError)} == {"INVALID_ARGUMENT"}


@pytest.mark.parametrize("load", LOADS)
async def test_no_room_in_the_runtime_folder(start_stack: Callable[[Tables], Stack], load: str) -> None:
    """A service that is started again there comes back when there is room: it never reads half a configuration."""
    stack = start_stack(TABLES)
    traces, outcome = Traces(stack), Outcome()
    config = stack.directory / "run" / "steploom.toml"
    before = config.read_text()

    async def strike() -> None:
        with full_disk(stack.pid, 16):
            config.unlink()
            killed = stack.kill_service("worker-0")
            await eventually(lambda: stack.pids().get("worker-0", killed) != killed, lambda: "it is not started again")
            assert not config.exists()

    async with Client(stack.gateway) as client:
        if load == "load":
            async with open_requests(stack, client, outcome):
                await strike()
        else:
            await strike()
        await ask_until_back(stack, client, outcome)
    print(outcome)
    assert config.read_text() == before
    assert not failures([*outcome.open, *outcome.later])
    assert stack.status().workers[0].engine == "fake"
    await traces.assert_none()


def test_no_room_for_an_engine(tmp_path: Path) -> None:
    """The cache of built engines keeps what it has, and nothing that is half written."""
    file = tmp_path / "a.plan"
    write_whole(file, b"old")
    with full_disk(0, 1000), pytest.raises(OSError, match="File too large"):
        write_whole(file, bytes(2000))
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.plan"]
