"""SIGTERM: what runs ends well, what is new is refused, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steploom.aio import Client
from steploom.errors import Unavailable
from steploom.types import EditResult
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, arenas_of, running

FAKE = {"engine": "fake", "fake": {"denoise_s": 0.03}}


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as path:
        yield Path(path)


def assert_nothing_left(stack: Stack, pids: dict[str, int], directory: Path) -> None:
    assert not [pid for pid in pids.values() if is_alive(pid)]
    assert not list(directory.rglob("*.sock"))
    assert not arenas_of(pids["gateway"])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def edit(client: Client, steps: int) -> EditResult:
    return await client.edit(portrait(), "smile", steps=steps, timeout=30.0)


async def test_sigterm_drains(directory: Path) -> None:
    with running(directory, {"worker": FAKE}) as stack:
        pids = stack.pids()
        assert set(pids) == {"gateway", "batcher", "worker-0"}
        async with Client(stack.gateway) as client:
            open_edits = [asyncio.create_task(edit(client, 40)) for _ in range(4)]
            await asyncio.sleep(0.4)
            assert stack.metric("steploom_gateway_in_flight") == 4
            stack.terminate()
            await asyncio.sleep(0.2)
            with pytest.raises(Unavailable):
                await edit(client, 3)
            results = await asyncio.gather(*open_edits)
        assert all(isinstance(result, EditResult) for result in results)
        assert await asyncio.to_thread(stack.wait_end, 20.0) == 0
        assert_nothing_left(stack, pids, directory)
        assert "Traceback" not in stack.log


async def test_a_second_signal_forces(directory: Path) -> None:
    with running(directory, {"worker": FAKE}) as stack:
        pids = stack.pids()
        async with Client(stack.gateway) as client:
            open_edit = asyncio.create_task(edit(client, 100))
            await asyncio.sleep(0.4)
            began = time.monotonic()
            os.kill(stack.pid, signal.SIGTERM)
            await asyncio.sleep(0.3)
            os.kill(stack.pid, signal.SIGTERM)
            await asyncio.to_thread(stack.wait_end, 10.0)
            assert time.monotonic() - began < 2.5  # the edit alone would take three seconds
            with pytest.raises(Unavailable):
                await open_edit
        assert not [pid for pid in pids.values() if is_alive(pid)]


async def test_services_die_with_a_killed_supervisor(directory: Path) -> None:
    with running(directory, {"worker": FAKE}) as stack:
        pids = stack.pids()
        async with Client(stack.gateway) as client:
            await edit(client, 3)
        os.kill(stack.pid, signal.SIGKILL)
        deadline = time.monotonic() + 5.0
        while any(is_alive(pid) for pid in pids.values()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    with running(directory, {"worker": FAKE}) as again:  # and a new one starts over what is left
        async with Client(again.gateway) as client:
            assert (await edit(client, 3)).timings.ticks == 5
        assert not arenas_of(pids["gateway"])
