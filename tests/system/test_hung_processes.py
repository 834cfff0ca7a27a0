"""Processes that hang under load: they are noticed, killed, started again, and no picture is lost with a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from steploom.aio import Client
from steploom.errors import SteploomError, Unavailable
from steploom.types import EditResult
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables

StartStack = Callable[[Tables], Stack]

PATIENCE_S = 240.0
JOBS = 12
HANG_S = 5.0
WORKER = {
    "engine": "fake",
    "slots": 8,
    "tick_timeout_s": 2.0,
    "fake": {"denoise_s": 0.015, "encode_s": 0.005},
}
UP = {"min_backoff_s": 0.1, "max_backoff_s": 0.5, "hang_s": HANG_S}


@pytest.fixture(scope="module")
def stack(start_stack: StartStack) -> Stack:
    return start_stack({"worker": WORKER, "up": UP})


async def edit(client: Client, seed: int, instruction: str = "smile") -> EditResult:
    steps = 20 + seed % 10
    return await client.edit(portrait(), instruction, seed=seed, steps=steps, tier="pro", timeout=PATIENCE_S)


async def under_way(stack: Stack, ticks: int) -> None:
    """Returns when there have been so many ticks more."""
    target = (await asyncio.to_thread(stack.status)).ticks + ticks
    await asyncio.to_thread(stack.wait_until, lambda status: status.ticks >= target, 60.0)


async def test_a_machine_that_freezes_kills_nobody(stack: Stack) -> None:
    """All processes stand still for longer than each of them would be waited for."""
    before = stack.pids()
    everybody = [stack.pid, *before.values()]
    async with Client(stack.gateway) as client:
        running = [asyncio.create_task(edit(client, seed)) for seed in range(4)]
        await under_way(stack, 4)
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.5 * HANG_S)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        assert all(isinstance(result, EditResult) for result in await asyncio.gather(*running))
    assert stack.pids() == before
    assert "has said nothing for" not in stack.log
    assert " is down with" not in stack.log


async def test_a_worker_that_stands_still_costs_no_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        undisturbed = await asyncio.gather(*(edit(client, seed) for seed in range(JOBS)))
        running = [asyncio.create_task(edit(client, seed)) for seed in range(JOBS)]
        await under_way(stack, 8)
        stopped = stack.pids()["worker-0"]
        os.kill(stopped, signal.SIGSTOP)
        results = await asyncio.gather(*running)
        assert [result.data for result in results] == [result.data for result in undisturbed]
    await asyncio.to_thread(stack.wait_log, "worker-0 has said nothing for", 60.0)
    assert stack.pids()["worker-0"] != stopped
    assert stack.status().failed == 0


async def test_a_tick_that_never_ends_costs_its_own_job_alone(stack: Stack) -> None:
    """It takes three workers with it, each of which ends by itself; requests beside it survive them all."""
    async with Client(stack.gateway) as client:
        mates = [asyncio.create_task(edit(client, seed)) for seed in range(4)]
        with pytest.raises(SteploomError) as failure:
            await edit(client, 5, "hang")
        assert failure.value.status.name == "INTERNAL"
        assert all(isinstance(result, EditResult) for result in await asyncio.gather(*mates))
    # the answer may be there before the supervisor has seen the third end
    ended = "worker-0 ended with exit code 4"
    await asyncio.to_thread(stack.wait_until, lambda _: stack.log.count(ended) >= 3, 60.0)
    assert "the worker is stuck: the driving thread has been at tick" in stack.log
    await asyncio.to_thread(stack.wait_serving, 60.0)
    assert stack.log.count(ended) == 3


@pytest.mark.parametrize("name", ["batcher", "gateway"])
async def test_what_hangs_in_front_is_back_soon(stack: Stack, name: str) -> None:
    stopped = stack.pids()[name]
    async with Client(stack.gateway) as client:
        open_edits = [asyncio.create_task(edit(client, seed)) for seed in range(4)]
        await under_way(stack, 4)
        os.kill(stopped, signal.SIGSTOP)
        results = await asyncio.gather(*open_edits, return_exceptions=True)
        assert {type(result) for result in results if not isinstance(result, EditResult)} <= {Unavailable}
        await asyncio.to_thread(stack.wait_log, f"{name} has said nothing for", 60.0)
        await asyncio.to_thread(stack.wait_serving, 60.0)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await edit(client, 1)
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
    assert stack.pids()[name] != stopped
