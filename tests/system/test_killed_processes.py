"""kill -9 of worker, batcher and gateway under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

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
    return await client.edit(
        portrait(), "put on sunglasses", seed=seed, steps=3 + seed % 10, tier="free", timeout=240.0
    )


async def edit_all(client: Client) -> list[EditResult | BaseException]:
    return await asyncio.gather(*(edit(client, seed) for seed in range(JOBS)), return_exceptions=True)


async def ticks(stack: Stack) -> int:
    """How many there have been."""
    return (await asyncio.to_thread(stack.status)).ticks


async def progress(stack: Stack, target: int) -> None:
    """Returns when there have been so many ticks."""
    await asyncio.to_thread(stack.wait_until, lambda status: status.ticks >= target, 60.0)


@asynccontextmanager
async def under_load(stack: Stack, client: Client) -> AsyncIterator[list[asyncio.Task[EditResult]]]:
    """Edits in every stage; those that are open do not end within the block."""
    before = await ticks(stack)
    edits = [asyncio.create_task(edit(client, seed)) for seed in range(JOBS)]
    await progress(stack, before + 5)
    with stack.paused("worker-0"):
        submitted = (await asyncio.to_thread(stack.status)).submitted
        edits.append(asyncio.create_task(edit(client, JOBS)))  # the others may have ended before the pause
        await asyncio.to_thread(stack.wait_until, lambda status: status.submitted > submitted, 60.0)
        yield edits


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60.0):
        while not condition():  # noqa: ASYNC110  other processes have no event to wait for
            await asyncio.sleep(0.05)


async def test_a_killed_worker_costs_no_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        undisturbed = await edit_all(client)
        for _ in range(2):
            before = await ticks(stack)
            running = asyncio.create_task(edit_all(client))
            await progress(stack, before + 8)
            killed = stack.kill_service("worker-0")
            results = await running
            assert not [result for result in results if not isinstance(result, EditResult)]
            await eventually(lambda killed=killed: stack.pids().get("worker-0", killed) != killed)  # type: ignore[misc]
            for result, expected in zip(results, undisturbed, strict=True):
                assert isinstance(result, EditResult)
                assert isinstance(expected, EditResult)
                assert result.data == expected.data
    status = stack.status()
    assert status.failed == 0
    stack.wait_log("is up again", 60.0)


async def test_a_killed_batcher_is_unavailable_then_back(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        async with under_load(stack, client) as edits:
            stack.kill_service("batcher")
        results = await asyncio.gather(*edits, return_exceptions=True)
        assert {type(result) for result in results if not isinstance(result, EditResult)} == {Unavailable}
        await asyncio.to_thread(stack.wait_serving, 60.0)
        assert isinstance(await first_success(client), EditResult)
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0)
    await asyncio.to_thread(stack.wait_metric, "steploom_gateway_arena_blocks_used", 0, 60.0)


async def test_a_killed_gateway_is_back_and_its_jobs_are_gone(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        async with under_load(stack, client) as edits:
            killed = stack.kill_service("gateway")
        results = await asyncio.gather(*edits, return_exceptions=True)
        assert {type(result) for result in results if not isinstance(result, EditResult)} == {Unavailable}
    await asyncio.to_thread(stack.wait_serving, 60.0)
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0)
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
            await client.edit(portrait(), "crash", steps=3, tier="free", timeout=240.0)
        assert failure.value.status.name == "INTERNAL"
        assert isinstance(await mate, EditResult)
        await asyncio.to_thread(stack.wait_serving, 60.0)
