"""Callers that go away under load leave nothing behind: no slot, no shared memory, no open call, no process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from steploom.aio import Client
from steploom.errors import DeadlineExceeded
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables, arenas_of
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

StartStack = Callable[[Tables], Stack]

FAKE = {"engine": "fake", "slots": 16, "fake": {"denoise_s": 0.01, "denoise_row_s": 0.0002, "encode_s": 0.003}}
CANCELS = 200


async def cancel_at_random(stub: Any, rng: random.Random) -> str:
    """One request, cancelled at a moment drawn from its whole life; returns its status."""
    # two of three last for seconds: they are cancelled before their end even where this process comes late
    steps = rng.choice((rng.randint(3, 30), 100, 100))
    request = pb.EditRequest(image=pb.Image(encoded=portrait()), instruction="x", tier="free", steps=steps)
    if rng.random() < 0.5:
        call = stub.Edit(request, timeout=240.0)
        answer = asyncio.ensure_future(_awaited(call))
    else:
        call = stub.EditStream(request, timeout=240.0)
        answer = asyncio.ensure_future(_read_to_end(call))
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    call.cancel()
    await asyncio.wait({answer})
    return "CANCELLED" if answer.cancelled() else answer.result()


async def _awaited(call: Awaitable[pb.EditResponse]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def _read_to_end(call: AsyncIterator[pb.EditEvent]) -> str:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def keep_busy(client: Client, stop: asyncio.Event) -> int:
    """Requests that are not cancelled, one after the other; returns how many got their picture."""
    done = 0
    while not stop.is_set():
        await client.edit(portrait(), "y", tier="free", steps=4, timeout=240.0)
        done += 1
    return done


def has_nothing_left(status: StatusResponse) -> bool:
    """No slot, no tick, no job; and each that came has had one end."""
    ended = status.finished + status.failed + status.cancelled + status.expired + sum(status.refused.values())
    is_free = all(worker.slots_used == worker.ticks_in_flight == 0 for worker in status.workers)
    return is_free and all(tier.queued == tier.running == 0 for tier in status.tiers) and status.submitted == ended


async def test_cancelled_requests_leave_nothing(start_stack: StartStack) -> None:
    stack: Stack = start_stack({"worker": FAKE})
    rng = random.Random(5)
    stop = asyncio.Event()
    async with Client(stack.gateway) as client, grpc.aio.insecure_channel(stack.gateway) as channel:
        load = [asyncio.create_task(keep_busy(client, stop)) for _ in range(6)]
        stub = ImageServiceStub(channel)
        ends: list[str] = []
        for _ in range(CANCELS // 25):
            ends += await asyncio.gather(*(cancel_at_random(stub, rng) for _ in range(25)))
        stop.set()
        done = sum(await asyncio.gather(*load))
    assert ends.count("CANCELLED") > CANCELS // 2
    assert set(ends) <= {"CANCELLED", "OK"}
    assert done > 10

    # first the gateway: it may still have to hear of the last cancels
    await asyncio.to_thread(stack.wait_metric, "steploom_gateway_in_flight", 0, 60.0)
    stack.wait_until(has_nothing_left, 60.0)
    assert stack.status().cancelled > CANCELS // 4
    await asyncio.to_thread(stack.wait_metric, "steploom_gateway_arena_blocks_used", 0, 60.0)

    async with Client(stack.gateway) as client:  # and it still serves
        assert (await client.edit(portrait(), "z", tier="free", timeout=240.0)).timings.ticks == 5
    gateway = stack.pids()["gateway"]
    assert await asyncio.to_thread(stack.stop) == 0
    assert not arenas_of(gateway)
    for word in ("Traceback", "Task was destroyed", "never retrieved", "never awaited"):
        assert word not in stack.log


async def test_a_deadline_ends_a_job_and_frees_its_slot(start_stack: StartStack) -> None:
    slow = {"engine": "fake", "fake": {"denoise_s": 0.05}}
    stack: Stack = start_stack({"worker": slow})
    async with Client(stack.gateway) as client:
        with pytest.raises(DeadlineExceeded):
            await client.edit(portrait(), "x", steps=100, timeout=0.5)
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0)
