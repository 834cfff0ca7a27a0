"""Workers are replaced under a steady load, and no request fails of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from steploom.aio import Client
from steploom.exit_codes import ExitCode
from steploom.types import EditResult
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables

StartStack = Callable[[Tables], Stack]

FAKE = {"engine": "fake", "slots": 8, "fake": {"denoise_s": 0.015, "encode_s": 0.005}}
PATIENCE_S = 120.0
AT_ONCE = 8  # requests: some wait for a slot


@pytest.fixture(scope="module")
def stack(start_stack: StartStack) -> Stack:
    return start_stack({"worker": FAKE, "up": {"workers": 2}})


@pytest.fixture(scope="module")
def narrow(start_stack: StartStack) -> Stack:
    """One worker, and no memory for a second beside it."""
    return start_stack({"worker": FAKE, "up": {"beside": False}})


class Load:
    """Edits without a pause, so many at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_over = False
        self.results: list[EditResult | Exception] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._one_after_the_other(number) for number in range(AT_ONCE)))

    async def more(self, count: int) -> None:
        """Returns when so many more have ended."""
        target = len(self.results) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.results) < target:  # noqa: ASYNC110  tasks of our own that nobody else waits for
                await asyncio.sleep(0.02)

    def end(self) -> None:
        self._is_over = True

    async def _one_after_the_other(self, number: int) -> None:
        while not self._is_over:
            try:
                # no retries: what fails would be seen
                edit = self._client.edit(portrait(), "smile", seed=number, steps=3 + number, timeout=PATIENCE_S)
                self.results.append(await edit)
            except Exception as error:
                self.results.append(error)
                self._is_over = True


@asynccontextmanager
async def steady_load(stack: Stack) -> AsyncIterator[Load]:
    """Holds at the end that every picture has come."""
    async with Client(stack.gateway) as client:
        load = Load(client)
        running = asyncio.create_task(load.run())
        try:
            await load.more(AT_ONCE)
            yield load
            await load.more(AT_ONCE)
        finally:
            load.end()
            await running
        assert not [result for result in load.results if not isinstance(result, EditResult)]


def restart(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steploom", "restart", "--runtime-dir", str(runtime(stack)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)


def runtime(stack: Stack) -> Path:
    return Path(stack.batcher.removeprefix("unix:")).parent


async def test_sighup_replaces_all_workers_and_no_request_fails(stack: Stack) -> None:
    before = stack.pids()
    async with steady_load(stack):
        os.kill(stack.pid, signal.SIGHUP)
        await asyncio.to_thread(stack.wait_log, "worker-1: replaced", 2 * PATIENCE_S)
    after = stack.pids()
    assert (after["gateway"], after["batcher"]) == (before["gateway"], before["batcher"])
    assert not {after["worker-0"], after["worker-1"]} & set(before.values())
    status = stack.status()
    assert (status.failed, status.expired, list(status.refused.values())) == (0, 0, [])
    assert [worker.is_up for worker in status.workers] == [True, True]
    assert " is down with" not in stack.log  # none was lost
    assert "Traceback" not in stack.log


async def test_one_worker_is_replaced_by_its_number(stack: Stack) -> None:
    before = stack.pids()
    async with steady_load(stack):
        done = await asyncio.to_thread(restart, stack, "--worker", "1")
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout.splitlines() == ["worker-1: replacing it", "worker-1: replaced"]
    after = stack.pids()
    assert after["worker-0"] == before["worker-0"]
    assert after["worker-1"] != before["worker-1"]


def test_what_is_no_worker_is_not_replaced(stack: Stack) -> None:
    done = restart(stack, "--worker", "7")
    assert done.returncode == ExitCode.FAILED
    assert "worker-7 cannot be replaced; there is: worker-0, worker-1" in done.stderr


def test_without_a_supervisor_there_is_nothing_to_restart(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steploom", "restart", "--runtime-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "no `steploom up` listens" in done.stderr


async def test_in_its_place_where_two_do_not_fit(narrow: Stack) -> None:
    before = narrow.pids()
    async with steady_load(narrow):
        done = await asyncio.to_thread(restart, narrow)
    assert done.returncode == ExitCode.OK, done.stderr
    after = narrow.pids()
    assert (after["gateway"], after["batcher"]) == (before["gateway"], before["batcher"])
    assert after["worker-0"] != before["worker-0"]
    assert " is down with" not in narrow.log
    assert "ended with" not in narrow.log  # no crash


async def test_a_successor_that_cannot_start_leaves_all_as_it_was(stack: Stack) -> None:
    """Its configuration is damaged; the old process does not read it any more."""
    config = runtime(stack) / "steploom.toml"
    before, good = stack.pids(), config.read_text()
    config.write_text(good.replace("[worker]", "[worker]\nslots = -1\n# ", 1))
    try:
        async with steady_load(stack):
            done = await asyncio.to_thread(restart, stack)
    finally:
        config.write_text(good)
    assert done.returncode == ExitCode.FAILED
    assert "worker-0 is not replaced: its successor ended with exit code 2" in done.stderr
    assert stack.pids() == before
