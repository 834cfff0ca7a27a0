"""A picture through gateway, batcher and worker, alone and in company."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc.aio
import numpy as np
import pytest
from oip_requests import bytes_of, infer_request, told

from steploom.aio import Client
from steploom.errors import InternalError
from steploom.types import Done, EditResult, Queued, Started, Step
from steploom_loadtest.pictures import portrait, portrait_image
from steploom_loadtest.stack import Stack, Tables
from steploom_protos.inference import grpc_service_pb2, grpc_service_pb2_grpc

StartStack = Callable[[Tables], Stack]

# a step of 3 rows takes 10 ms, one of 24 takes 17 ms
FAKE = {"engine": "fake", "fake": {"denoise_s": 0.009, "denoise_row_s": 0.00034, "encode_s": 0.002, "decode_s": 0.002}}


@pytest.fixture(scope="module")
def stack(start_stack: StartStack) -> Stack:
    return start_stack({"worker": FAKE})


async def edit(client: Client, seed: int, instruction: str = "put on sunglasses", steps: int = 3) -> EditResult:
    return await client.edit(portrait(), instruction, seed=seed, steps=steps, tier="free", timeout=120.0)


async def test_one_edit(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        began = time.monotonic()
        first, again, other = [await edit(client, seed) for seed in (1, 1, 2)]
        took_s = time.monotonic() - began
    assert (first.height, first.width) == (128, 128)
    assert first.seed == 1
    assert first.timings.ticks == 5
    assert first.timings.denoise_s >= 0.03
    assert first.timings.denoise_s < first.timings.total_s < took_s
    assert first.data == again.data
    assert first.data != other.data
    # the fake engine draws its input, each colour shifted by one number: every pixel has come through unharmed
    shift = np.asarray(first.image) - np.asarray(portrait_image())
    assert len(np.unique(shift.reshape(-1, 3), axis=0)) == 1


async def test_a_stream_tells_each_step(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        stream = client.edit_stream(portrait(), "smile", steps=6, preview_every=3, timeout=120.0)
        events = [event async for event in stream]
    assert [type(event) for event in (events[0], events[1], events[-1])] == [Queued, Started, Done]
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].step == steps[-1].steps == 6
    assert [step.step for step in steps] == sorted({step.step for step in steps})
    # the last step's preview would be the picture itself; a step that is missed leaves its preview to the next
    (preview,) = (step for step in steps if step.preview is not None)
    assert preview.step >= 3


async def test_clients_share_ticks(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        before = stack.status()
        with stack.paused("worker-0"):  # until all have come
            edits = [asyncio.create_task(edit(client, seed)) for seed in range(24)]
            wanted = before.submitted + 24
            await asyncio.to_thread(stack.wait_until, lambda status: status.submitted == wanted, 60.0)
        results = await asyncio.gather(*edits)
        after = stack.status()
    mean_rows = sum(result.timings.mean_rows_per_tick for result in results) / len(results)
    assert mean_rows > 6  # a job alone has 3
    assert after.finished - before.finished == 24
    assert after.rows - before.rows == 24 * 3 * 3
    assert after.ticks - before.ticks < 24 * 5


async def test_company_does_not_change_a_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client:
        alone = await edit(client, 7, steps=5)
        mates = [edit(client, 100 + steps, steps=steps) for steps in range(1, 9)]
        crowded, *_ = await asyncio.gather(edit(client, 7, steps=5), *mates)
    assert crowded.data == alone.data


async def test_poisoned_requests_fail_alone(stack: Stack) -> None:
    poisoned = {1, 5, 6}  # each with others before and after it in its tick
    instructions = ["poison" if place in poisoned else "smile" for place in range(12)]
    async with Client(stack.gateway) as client:
        edits = (edit(client, place, instruction) for place, instruction in enumerate(instructions))
        results = await asyncio.gather(*edits, return_exceptions=True)
    failures = {place: result for place, result in enumerate(results) if not isinstance(result, EditResult)}
    assert set(failures) == poisoned
    for failure in failures.values():
        assert isinstance(failure, InternalError)
        assert "error id" in str(failure)
        stack.wait_log(str(failure).rpartition(" ")[2], 60.0)  # with the model's own words beside it


async def test_nothing_is_held_in_the_end(stack: Stack) -> None:
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0)
    status = stack.status()
    assert all(tier.queued == tier.running == 0 for tier in status.tiers)
    stack.wait_metric("steploom_gateway_in_flight", 0, 60.0)
    stack.wait_metric("steploom_gateway_arena_blocks_used", 0, 60.0)


async def test_the_open_inference_protocol_draws_the_same_picture(stack: Stack) -> None:
    async with Client(stack.gateway) as client, grpc.aio.insecure_channel(stack.gateway) as channel:
        drawn = await edit(client, 5)
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = await stub.RepositoryIndex(grpc_service_pb2.RepositoryIndexRequest(ready=True))
        name = index.models[0].name
        asked: dict[str, Any] = {"model_name": name, "instruction": "put on sunglasses", "seed": 5, "steps": 3}
        pixels = np.asarray(portrait_image())
        answer = await stub.ModelInfer(infer_request(pixels, **asked, priority=2, timeout=120_000_000))
        assert bytes_of(answer) == drawn.data
        assert told(answer)["tier"] == "free"
        with pytest.raises(grpc.aio.AioRpcError, match="Request timeout expired: cannot finish in 0"):
            await stub.ModelInfer(infer_request(pixels, **asked, timeout=1000))
        stats = (await stub.ModelStatistics(grpc_service_pb2.ModelStatisticsRequest())).model_stats
    assert [row.name for row in stats] == [name, f"{name}.encode", f"{name}.denoise", f"{name}.decode"]
    whole, _, denoise, _ = stats
    assert whole.inference_stats.success.count >= 2
    assert whole.inference_stats.fail.count >= 1
    assert whole.inference_stats.compute_infer.ns > 0
    assert denoise.inference_count >= denoise.execution_count >= 3
