"""A caller that goes away: the job is cancelled at once, and its memory is kept until no worker can touch it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from gateway_house import House, decoded, eventually, late_status_of, opened, picture, request, status_of

from steploom_gateway.fake_batcher import MOMENTS


def start(house: House, is_stream: bool, **options: Any) -> Any:
    """A call that is under way."""
    return (house.stub.EditStream if is_stream else house.stub.Edit)(request(), **options)


async def consume(call: Any) -> None:
    async for _ in call:
        pass


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_cancel_at_each_moment_leaves_nothing(house: House, moment: str, is_stream: bool) -> None:
    house.batcher.play(hold_at=moment)
    call = start(house, is_stream)
    reader = asyncio.create_task(consume(call)) if is_stream else None
    await house.batcher.reached.wait()
    assert house.gateway.loans.num_used == 1
    call.cancel()
    if reader:
        await asyncio.wait({reader})
    assert await eventually(lambda: house.batcher.num_cancelled == 1)
    assert await house.is_clean()
    house.batcher.play()
    await house.stub.Edit(request())


@pytest.mark.parametrize("delay_ms", range(0, 12, 2))
async def test_cancel_at_any_time_leaves_nothing(house: House, delay_ms: int) -> None:
    calls = [start(house, is_stream=False) for _ in range(4)]
    await asyncio.sleep(delay_ms / 1000)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert await house.is_clean()


async def test_a_dropped_connection_cancels(house: House) -> None:
    house.batcher.play(hold_at="stepped")
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{house.gateway.port}")
    call = type(house.stub)(channel).Edit(request())
    await house.batcher.reached.wait()
    await channel.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await eventually(lambda: house.batcher.num_cancelled == 1)
    assert await house.is_clean()


async def test_the_deadline_of_the_call_cancels(house: House) -> None:
    house.batcher.play(hold_at="started")
    error = await late_status_of(house, lambda seconds: start(house, is_stream=False, timeout=seconds))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await eventually(lambda: house.batcher.num_cancelled == len(house.batcher.requests))
    assert await house.is_clean()


async def test_a_stream_that_nobody_reads_ends_with_its_caller(house: House) -> None:
    call = house.stub.EditStream(request(steps=50, preview_every=1))
    await call.read()
    call.cancel()
    assert await house.is_clean()


async def test_an_error_in_the_gateway_cancels_the_job(house: House) -> None:
    house.batcher.play(hold_at="stepped", short_preview=True)
    error = await status_of(consume(house.stub.EditStream(request(preview_every=1))))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert await eventually(lambda: house.batcher.num_cancelled == 1)
    assert await house.is_clean()


async def test_a_block_is_not_lent_while_a_worker_may_write_into_it(tmp_path: Path) -> None:
    async with opened(tmp_path, arena_blocks=1) as house:
        house.batcher.play(hold_at="stepped", writes_late=True)
        call = start(house, is_stream=False)
        await house.batcher.reached.wait()
        call.cancel()
        assert await eventually(lambda: house.gateway.loans.num_settling == 1)
        house.batcher.play()
        sent = picture(seed=2)
        answer = await house.stub.Edit(request(sent))
        assert np.array_equal(decoded(answer.image.encoded), 255 - sent)
        assert house.batcher.requests[-1].pixels.HasField("inline")
        house.batcher.release.set()
        assert await house.is_clean()
        await house.stub.Edit(request(sent))
        assert house.batcher.requests[-1].pixels.HasField("region")


@pytest.mark.parametrize("settle_s", [0.1, 600])
async def test_a_block_comes_back_a_while_after_the_batcher_is_lost(tmp_path: Path, settle_s: float) -> None:
    async with opened(tmp_path, settle_s=settle_s) as house:
        house.batcher.play(hold_at="stepped")
        call = start(house, is_stream=False)
        await house.batcher.reached.wait()
        await house.batcher.stop()
        await status_of(call)
        if settle_s < 1:
            assert await eventually(lambda: house.gateway.loans.num_used == 0)
        else:
            await status_of(start(house, is_stream=False))  # the batcher has been asked in vain by now
            assert (house.gateway.loans.num_used, house.gateway.loans.num_settling) == (2, 2)


async def test_blocks_that_settle_do_not_hold_up_the_end(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with opened(tmp_path, settle_s=600) as house:
        house.batcher.play(hold_at="stepped", writes_late=True)
        call = start(house, is_stream=False)
        await house.batcher.reached.wait()
        call.cancel()
        assert await eventually(lambda: house.gateway.loans.num_settling == 1)
    assert await eventually(lambda: asyncio.all_tasks() <= before)


async def test_two_hundred_cancelled_under_load(house: House) -> None:
    async def one(number: int) -> None:
        call = start(house, is_stream=False)
        if number % 2:
            await call
        else:
            await asyncio.sleep((number % 13) / 1000)
            call.cancel()
            await asyncio.wait({asyncio.ensure_future(swallow(call))})

    for first in range(0, 400, 20):
        await asyncio.gather(*(one(number) for number in range(first, first + 20)))
    assert await house.is_clean()


async def swallow(call: Any) -> None:
    try:
        await call
    except (asyncio.CancelledError, grpc.aio.AioRpcError):
        return
