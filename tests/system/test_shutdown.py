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

GRACE_S = 600.0  # of every service: nothing ends because it has passed
TABLES = {
    "worker": {"engine": "fake", "fake": {"denoise_s": 0.03}},
    **{name: {"drain_s": GRACE_S} for name in ("gateway", "batcher", "up")},
}


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
    except OSError:
        return False


async def edit(client: Client, steps: int) -> EditResult:
    return await client.edit(portrait(), "smile", steps=steps, timeout=120.0)


async def test_sigterm_drains(directory: Path) -> None:
    with running(directory, TABLES) as stack:
        pids = stack.pids()
        assert set(pids) == {"gateway", "batcher", "worker-0"}
        async with Client(stack.gateway) as client:
            with stack.paused("worker-0"):  # no edit ends before another was refused
                open_edits = [asyncio.create_task(edit(client, 10)) for _ in range(4)]
                await asyncio.to_thread(stack.wait_metric, "steploom_gateway_in_flight", 4, 60.0)
                stack.terminate()
                await asyncio.to_thread(stack.wait_log, "draining: 4 open", 60.0)
                with pytest.raises(Unavailable):
                    await edit(client, 3)
            results = await asyncio.gather(*open_edits)
        assert all(isinstance(result, EditResult) for result in results)
        assert await asyncio.to_thread(stack.wait_end, 60.0) == 0
        assert_nothing_left(stack, pids, directory)
        assert "Traceback" not in stack.log


async def test_a_second_signal_forces(directory: Path) -> None:
    with running(directory, TABLES) as stack:
        pids = stack.pids()
        async with Client(stack.gateway) as client:
            with stack.paused("worker-0"):  # the edit does not end by itself
                open_edit = asyncio.create_task(edit(client, 10))
                await asyncio.to_thread(stack.wait_metric, "steploom_gateway_in_flight", 1, 60.0)
                os.kill(stack.pid, signal.SIGTERM)
                await asyncio.to_thread(stack.wait_log, "draining: 1 open", 60.0)
                os.kill(stack.pid, signal.SIGTERM)
                await asyncio.to_thread(stack.wait_end, GRACE_S / 10)
            with pytest.raises(Unavailable):
                await open_edit
        assert not [pid for pid in pids.values() if is_alive(pid)]


@pytest.mark.parametrize("name", ["gateway", "batcher", "up"])
async def test_what_is_not_done_within_the_grace_is_told_when_to_try_again(directory: Path, name: str) -> None:
    """Whichever of the bounds it is that passes: that of `steploom up` is one for all."""
    tables = {**TABLES, name: {"drain_s": 1.0}}
    with running(directory, tables) as stack:
        pids = stack.pids()
        async with Client(stack.gateway) as client:
            with stack.paused("worker-0"):  # the edit does not end by itself
                open_edit = asyncio.create_task(edit(client, 10))
                await asyncio.to_thread(stack.wait_metric, "steploom_gateway_in_flight", 1, 60.0)
                if name == "batcher":  # it ends before the gateway does
                    os.kill(pids["batcher"], signal.SIGTERM)
                else:
                    stack.terminate()
                with pytest.raises(Unavailable) as told:
                    await open_edit
        assert told.value.retry_after == 1.0
        stack.terminate()
        assert await asyncio.to_thread(stack.wait_end, 120.0) == (0 if name == "batcher" else 130)
        assert "Traceback" not in stack.log


async def test_services_die_with_a_killed_supervisor(directory: Path) -> None:
    with running(directory, TABLES) as stack:
        pids = stack.pids()
        async with Client(stack.gateway) as client:
            await edit(client, 3)
        os.kill(stack.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60.0
        while any(is_alive(pid) for pid in pids.values()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    with running(directory, TABLES) as again:  # and a new one starts over what is left
        async with Client(again.gateway) as client:
            assert (await edit(client, 3)).timings.ticks == 5
        assert not arenas_of(pids["gateway"])
