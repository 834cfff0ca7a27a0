"""The torch engine behind the front door, with a tiny model of random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from steploom.aio import Client
from steploom.types import EditResult
from steploom_engine_worker.tiny_model import write_tiny_model
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables

JOBS = 8


@pytest.fixture(scope="module")
def stack(start_stack: Callable[[Tables], Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    small = {"denoise_buckets": [1, 3, 6, 12], "encode_buckets": [1, 2], "decode_buckets": [1, 2]}
    worker = {"engine": "torch", "model": str(model), "threads": 1, "warmup_repeats": 1, **small}
    return start_stack({"worker": worker, "up": {"min_backoff_s": 0.1}})


async def edit(client: Client, seed: int, instruction: str = "make the hair blond") -> EditResult:
    return await client.edit(portrait(), instruction, seed=seed, steps=3 + seed, tier="free", timeout=240.0)


async def edit_all(client: Client) -> list[EditResult]:
    return list(await asyncio.gather(*(edit(client, seed) for seed in range(JOBS))))


def difference(one: EditResult, other: EditResult) -> int:
    return int(np.abs(one.array.astype(int) - other.array.astype(int)).max())


async def test_seed_and_instruction_decide_the_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        first, again = await edit(client, 1), await edit(client, 1)
        other_words = await edit(client, 1, "close the eyes")
    assert first.data == again.data
    assert difference(first, other_words) > 0
    assert first.array.std() > 1.0


async def test_a_killed_worker_costs_no_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        undisturbed = await edit_all(client)
        before = stack.status().ticks
        running = asyncio.create_task(edit_all(client))
        await asyncio.to_thread(stack.wait_until, lambda status: status.ticks > before + 4, 60.0)
        stack.kill_service("worker-0")
        results = await running
    # the second run has other batches than the first, and so other roundings: by one level of 255 at most
    assert max(difference(*pair) for pair in zip(results, undisturbed, strict=True)) <= 1
