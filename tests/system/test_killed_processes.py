"""kill -9 of worker, batcher and gateway under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from steploom.aio import Client
from steploom.errors import SteploomError, Unavailable
from steploom.types import EditResult
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables, arenas_of

StartStack = Callable[[Tables], Stack]

FAKE = {"engine": "fake", "slots": 8, "fake": {"denoise_s": 0.015, "denoise_row_s": 0.0005, "encode_s": 0.005}}
FAST_RESTARTS = {"min_backoff_s": 0.1, "max_backoff_s": 0.5}
JOBS = 20


@pytest.fixture(scope="module")
def stack(start_stack: StartStack) -> Stack:
    return start_stack({"worker": FAKE, "up": FAST_RESTARTS})


async def edit(client: Client, seed: int) -> EditResult:
    return await client.edit(portrait(), "put on sunglasses", seed=seed, steps=3 + seed % 10, tier="free", timeout=45.0)


async def edit_all(client: Client) -> list[EditResult | BaseException]:
    return await asyncio.gather(*(edit(client, seed) for seed in range(JOBS)), return_exceptions=True)


async def progress(stack: Stack, ticks: int) -> None:
    """Returns when so many more ticks have run."""
    target = (await asyncio.to_thread(stack.status)).ticks + ticks
    await asyncio.to_thread(stack.wait_until, lambda status: status.ticks >= target, 10.0)


async def test_a_killed_worker_costs_no_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        undisturbed = await edit_all(client)
        for _ in range(2):
            running = asyncio.create_task(edit_all(client))
            await progress(stack, 8)
            killed = stack.kill_service("worker-0")
            results = await running
            assert not [result for result in results if not isinstance(result, EditResult)]
            assert stack.pids()["worker-0"] != killed
            for result, expected in zip(results, undisturbed, strict=True):
                assert isinstance(result, EditResult)
                assert isinstance(expected, EditResult)
                assert result.data == expected.data
    status = stack.status()
    assert status.failed == 0
    assert "is up again" in stack.log


async def test_a_killed_batcher_is_unavailable_then_back(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        running = asyncio.create_task(edit_all(client))
        await progress(stack, 5)
        stack.kill_service("batcher")
        killed_at = time.monotonic()
        results = await running
        failures = [result for result in results if not isinstance(result, EditResult)]
        assert failures
        assert {type(failure) for failure in failures} == {Unavailable}
        await asyncio.to_thread(stack.wait_serving, 20.0)
        assert isinstance(await first_success(client), EditResult)
        assert time.monotonic() - killed_at < 20.0
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 10.0)
    await asyncio.to_thread(stack.wait_metric, "steploom_gateway_arena_blocks_used", 0, 10.0)


async def test_a_killed_gateway_is_back_and_its_jobs_are_gone(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        running = asyncio.create_task(edit_all(client))
        await progress(stack, 5)
        killed = stack.kill_service("gateway")
        results = await running
        assert {type(result) for result in results if not isinstance(result, EditResult)} == {Unavailable}
    await asyncio.to_thread(stack.wait_serving, 20.0)
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 10.0)
    async with Client(stack.gateway) as client:
        assert isinstance(await first_success(client), EditResult)
    # the new gateway has removed the arena of the one that died
    assert not arenas_of(killed)


async def first_success(client: Client) -> EditResult:
    """The first picture that is drawn again."""
    while True:
        try:
            return await edit(client, 0)
        except Unavailable:
            await asyncio.sleep(0.1)


async def test_a_job_that_kills_workers_is_given_up(stack: Stack) -> None:
    """It takes three workers with it; a request beside it survives them all."""
    async with Client(stack.gateway) as client:
        mate = asyncio.create_task(edit(client, 3))
        with pytest.raises(SteploomError) as failure:
            await client.edit(portrait(), "crash", steps=3, tier="free", timeout=60.0)
        assert failure.value.status.name == "INTERNAL"
        assert isinstance(await mate, EditResult)
        await asyncio.to_thread(stack.wait_serving, 20.0)
