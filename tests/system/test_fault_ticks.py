"""Ticks that raise, overflow, find no memory, never end, or end their process: who pays, and that nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fault_matrix import BACK_S, JOBS, Outcome, Traces, ask, ask_until_back, failures, open_requests

from steploom.aio import Client
from steploom_loadtest.stack import Stack, Tables

COSTS = {"denoise_s": 0.01, "denoise_row_s": 0.0005, "encode_s": 0.005}
WORKER = {"engine": "fake", "slots": 8, "tick_timeout_s": 2.0, "fake": COSTS}
TABLES = {
    "worker": WORKER,
    "up": {"min_backoff_s": 0.1, "max_backoff_s": 0.2, "stable_s": 0.0},
    "gateway": {"settle_s": 0.5},
}
FAIL_TICK = 6  # three are in flight at most when the first request has come
FAILED = "the model failed on this request; error id "

# An instruction for the fake engine, and how many workers its job may take with it before it is given up.
TICKS = {"poison": 0, "overflow": 0, "exhaust": 3, "hang": 3, "crash": 3}


@pytest.fixture(scope="module")
def stack(start_stack: Callable[[Tables], Stack]) -> Stack:
    return start_stack(TABLES)


@pytest.mark.parametrize("load", ["idle", "load"])
@pytest.mark.parametrize("instruction", TICKS)
async def test_tick(stack: Stack, instruction: str, load: str) -> None:
    """The job that makes its ticks fail is told so; every other gets its picture."""
    traces, outcome = Traces(stack), Outcome()
    deaths = stack.log.count("worker-0 ended with")
    async with Client(stack.gateway) as client:
        if load == "load":
            async with open_requests(stack, client, outcome):
                bad = asyncio.create_task(ask(client, 99, instruction))
        else:
            bad = asyncio.create_task(ask(client, 99, instruction))
        end = await bad
        await ask_until_back(stack, client, outcome)
    print(outcome, end)
    assert (end.status, end.retry_after) == ("INTERNAL", None), end
    assert end.details.startswith(FAILED), end
    assert not failures([*outcome.open, *outcome.later])
    assert stack.log.count("worker-0 ended with") - deaths == TICKS[instruction]
    await traces.assert_none(may_trace=True)


@pytest.mark.parametrize("load", ["idle", "load"])
async def test_tick_that_fails_once(start_stack: Callable[[Tables], Stack], load: str) -> None:
    """Nobody's fault: its jobs run again in halves. A job that was alone in it is taken for the cause, and told so."""
    stack = start_stack({**TABLES, "worker": {**WORKER, "fake": {**COSTS, "fail_tick": FAIL_TICK}}})
    traces, outcome = Traces(stack), Outcome()
    num_jobs = JOBS if load == "load" else 1
    async with Client(stack.gateway) as client:
        with stack.paused("worker-0"):  # ticks that were planned before all have come hold one job, but these are few
            asked = [asyncio.create_task(ask(client, seed, steps=FAIL_TICK)) for seed in range(num_jobs)]
            await asyncio.to_thread(stack.wait_until, lambda status: status.submitted == num_jobs, BACK_S)
        outcome.open += await asyncio.gather(*asked)
        await ask_until_back(stack, client, outcome)
    print(outcome)
    assert f"tick {FAIL_TICK} fails as it was told to" in stack.log
    assert [end.status for end in failures(outcome.open)] == ([] if load == "load" else ["INTERNAL"])
    assert not failures(outcome.later)
    await traces.assert_none(may_trace=True)
