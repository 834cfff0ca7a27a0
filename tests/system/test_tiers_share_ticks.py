"""Free and pro edits through real processes: one row a step with an adapter, three without, in the same ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from steploom.aio import Client
from steploom.errors import InvalidArgument, NotFound
from steploom.types import EditResult
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables

StartStack = Callable[[Tables], Stack]

FREE_STEPS = 3  # the tier's own
PRO_STEPS = 30  # there are some left when the free edit has had its own


@pytest.fixture(scope="module")
def stack(start_stack: StartStack) -> Stack:
    return start_stack({"worker": {"engine": "fake", "fake": {"denoise_s": 0.01, "adapters": ["student"]}}})


async def edit(client: Client, tier: str, **options: object) -> EditResult:
    return await client.edit(portrait(), "smile", tier=tier, seed=1, timeout=120.0, **options)  # type: ignore[arg-type]


async def submitted(stack: Stack, count: int) -> None:
    """Returns when so many edits have come to the batcher."""
    await asyncio.to_thread(stack.wait_until, lambda status: status.submitted == count, 60.0)


async def test_free_rows_ride_in_the_ticks_of_pro_rows(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        before = stack.status()
        with stack.paused("worker-0"):  # it has begun with the pro edits when the free one comes
            pro = [asyncio.create_task(edit(client, "pro", steps=PRO_STEPS)) for _ in range(2)]
            await submitted(stack, before.submitted + 2)
            await asyncio.to_thread(stack.wait_until, lambda status: status.ticks > before.ticks, 60.0)
            late = asyncio.create_task(edit(client, "free"))
            await submitted(stack, before.submitted + 3)
        free = await late
        drawn = await asyncio.gather(*pro)
        after = stack.status()
    assert free.adapter == "student"
    assert [result.adapter for result in drawn] == ["", ""]
    assert 3 + 1 <= free.timings.mean_rows_per_tick <= 2 * 3 + 1
    assert after.rows - before.rows == 2 * 3 * PRO_STEPS + FREE_STEPS


async def test_a_client_can_do_without_the_adapter_of_its_tier(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        with_it, without = await edit(client, "free"), await edit(client, "free", adapter="none")
    assert (with_it.adapter, without.adapter) == ("student", "")
    assert (with_it.timings.mean_rows_per_tick, without.timings.mean_rows_per_tick) == (1.0, 3.0)
    assert with_it.data != without.data


async def test_steps_that_the_adapter_was_not_trained_for(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        assert (await edit(client, "free", steps=5)).adapter == ""
        with pytest.raises(InvalidArgument) as refused:
            await edit(client, "free", steps=5, adapter="student")
        with pytest.raises(NotFound, match="there is: student"):
            await edit(client, "free", adapter="other")
    assert [(item.field, item.problem) for item in refused.value.violations] == [
        ("steps", "is 5, must be 1 to 4 with adapter student")
    ]
