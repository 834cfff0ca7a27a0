"""Signals to each process, and to all at once: what callers see, and that nothing is left. `-rP` shows the times."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_matrix import (
    BACK_S,
    End,
    Outcome,
    Traces,
    ask_until_back,
    eventually,
    failures,
    files_of,
    open_requests,
    processes_of,
)

from steploom.aio import Client
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables, arenas_of, running

FAKE = {"engine": "fake", "slots": 8, "fake": {"denoise_s": 0.01, "denoise_row_s": 0.0005, "encode_s": 0.005}}
TABLES = {
    "worker": FAKE,
    "up": {"min_backoff_s": 0.1, "max_backoff_s": 0.2, "stable_s": 0.0},
    "gateway": {"settle_s": 0.5},
}
EMBEDDED_S = 240.0  # for a picture of the embedded model, its worker's start included
STOPPED_S = 0.3  # between SIGSTOP and SIGCONT
DEADLY = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SIGNALS = (*DEADLY, signal.SIGSTOP)
LOADS = ("idle", "load")

# What callers may be told: how the details begin, and seconds after which to try again.
OF_THE_CONNECTION = ("", None)  # gRPC's own words
CUT = End("CANCELLED", "CANCELLED")
LOST = ("the batcher cannot be reached; it is expected back", 1.0)
DRAINING = ("the gateway is draining", 1.0)
STOPPING = ("the service is draining", 1.0)
NO_WORKER = ("no worker has been up yet", 1.0)


@dataclass(frozen=True)
class Promise:
    """Of requests that do not get their picture; their status is UNAVAILABLE.

    gRPC's own word for what comes in the very moment of a server's end is CANCELLED: a gateway leaves no time for it,
    unless the machine does.
    """

    open: tuple[tuple[str, float | None], ...] = ()  # that were open when the signal came; empty: all get theirs
    later: tuple[tuple[str, float | None], ...] = ()  # that came while the process was away


ASKED = {signal.SIGTERM, signal.SIGINT}
PROMISES = {
    **{("worker-0", number): Promise() for number in SIGNALS},
    ("batcher", signal.SIGKILL): Promise(open=(LOST,), later=(LOST, NO_WORKER)),
    **{("batcher", number): Promise(later=(STOPPING, LOST, NO_WORKER)) for number in ASKED},
    ("batcher", signal.SIGSTOP): Promise(),
    ("gateway", signal.SIGKILL): Promise(open=(OF_THE_CONNECTION,), later=(OF_THE_CONNECTION, NO_WORKER)),
    **{("gateway", number): Promise(later=(DRAINING, OF_THE_CONNECTION, NO_WORKER)) for number in ASKED},
    ("gateway", signal.SIGSTOP): Promise(),
    ("all", signal.SIGKILL): Promise(open=(OF_THE_CONNECTION,)),
    **{("all", number): Promise() for number in ASKED},
    ("all", signal.SIGSTOP): Promise(),
}


@pytest.fixture(scope="module")
def stack(start_stack: Callable[[Tables], Stack]) -> Stack:
    return start_stack(TABLES)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as path:
        yield Path(path)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("target", ["gateway", "batcher", "worker-0"])
async def test_signal(stack: Stack, target: str, number: signal.Signals, load: str) -> None:
    traces, outcome = Traces(stack), Outcome()

    async def strike() -> None:
        send(number, [stack.pids()[target]])
        asking.append(asyncio.create_task(ask_until_back(stack, client, outcome)))
        if number == signal.SIGSTOP:
            await asyncio.sleep(STOPPED_S)
            send(signal.SIGCONT, [stack.pids()[target]])

    asking: list[asyncio.Task[None]] = []
    async with Client(stack.gateway) as client:
        await struck(stack, client, outcome, load, strike)
        await asyncio.gather(*asking)
    print(outcome)
    check(outcome, PROMISES[target, number])
    if number in DEADLY:
        await eventually(lambda: stack.pids().get(target, traces.pids[target]) != traces.pids[target], lambda: target)
    await traces.assert_none()


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("number", DEADLY, ids=lambda number: number.name)
async def test_deadly_signal_to_all(directory: Path, number: signal.Signals, load: str) -> None:
    outcome, begin = Outcome(), 0.0

    async def strike() -> None:
        nonlocal begin
        begin = time.monotonic()
        send(number, everyone)

    with running(directory, TABLES) as stack:
        services = stack.pids()
        everyone = [stack.pid, *services.values()]
        async with Client(stack.gateway) as client:
            await struck(stack, client, outcome, load, strike)
        code = await asyncio.to_thread(stack.wait_end, BACK_S)
        await eventually(lambda: not set(processes_of(stack)), lambda: f"these run: {[*processes_of(stack)]}")
        if number != signal.SIGKILL:
            assert code == 0
            assert not arenas_of(services["gateway"])
            assert not [name for name in files_of(stack) if name.endswith(".sock")]
    with running(directory, TABLES) as again:  # over what the other has left
        async with Client(again.gateway) as client:
            await ask_until_back(again, client, outcome)
        outcome.back_s = time.monotonic() - begin
        print(outcome)
        check(outcome, PROMISES["all", number])
        assert not arenas_of(services["gateway"])
        await Traces(again).assert_none()


@pytest.mark.parametrize("load", LOADS)
async def test_all_stand_still_for_a_while(stack: Stack, load: str) -> None:
    traces, outcome = Traces(stack), Outcome()

    async def strike() -> None:
        send(signal.SIGSTOP, everyone)
        asking.append(asyncio.create_task(ask_until_back(stack, client, outcome)))
        await asyncio.sleep(STOPPED_S)
        send(signal.SIGCONT, everyone)

    everyone = [stack.pid, *traces.pids.values()]
    asking: list[asyncio.Task[None]] = []
    async with Client(stack.gateway) as client:
        await struck(stack, client, outcome, load, strike)
        await asyncio.gather(*asking)
    print(outcome)
    check(outcome, PROMISES["all", signal.SIGSTOP])
    assert stack.pids() == traces.pids
    await traces.assert_none()


async def struck(
    stack: Stack, client: Client, outcome: Outcome, load: str, strike: Callable[[], Awaitable[None]]
) -> None:
    """A fault, with requests open or without."""
    if load == "idle":
        await strike()
        return
    async with open_requests(stack, client, outcome):
        await strike()


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


def check(outcome: Outcome, promise: Promise) -> None:
    for ends, allowed in ((outcome.open, promise.open), (outcome.later, promise.later)):
        for end in failures(ends):
            if end == CUT and OF_THE_CONNECTION in allowed:
                continue
            assert end.status == "UNAVAILABLE", end
            assert any(is_told(end, *words) for words in allowed), end
    if promise.open and outcome.open:  # some were held open until the signal came
        assert failures(outcome.open)


def is_told(end: End, words: str, retry_after: float | None) -> bool:
    return end.details.startswith(words) and end.retry_after == retry_after


async def test_a_killed_worker_of_the_embedded_model(start_stack: Callable[[Tables], Stack]) -> None:
    """Pictures of a real model are the same, whether or not its worker was killed meanwhile."""
    buckets = {"denoise_buckets": [1, 3, 6], "encode_buckets": [1, 2], "decode_buckets": [1, 2]}
    worker = {"slots": 4, "warmup_repeats": 1, "threads": 1, **buckets}
    stack = await asyncio.to_thread(
        start_stack, {**TABLES, "worker": worker, "batcher": {"worker_grace_s": EMBEDDED_S}}
    )
    async with Client(stack.gateway) as client:

        async def drawn(seed: int) -> np.ndarray[Any, Any]:
            result = await client.edit(portrait(), "put on sunglasses", seed=seed, tier="free", timeout=EMBEDDED_S)
            return result.array.astype(int)

        undisturbed = await asyncio.gather(*(drawn(seed) for seed in range(3)))
        traces = Traces(stack)
        before = (await asyncio.to_thread(stack.status)).ticks
        running = [asyncio.create_task(drawn(seed)) for seed in range(3)]
        await asyncio.to_thread(stack.wait_until, lambda status: status.ticks > before, BACK_S)
        begin = time.monotonic()
        stack.kill_service("worker-0")
        pictures = await asyncio.gather(*running)
        print(f"back after {time.monotonic() - begin:.2f} s; 0 of 3 open requests failed")
    for picture, expected in zip(pictures, undisturbed, strict=True):
        assert np.abs(picture - expected).max() <= 1  # in other batches than before, and so with other roundings
    await traces.assert_none()
