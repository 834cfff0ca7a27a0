"""Puts a load on a server, checks every answer, and tells how long each took."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from steploom_benchmarks.callers import Caller, CallError
from steploom_benchmarks.loads import Load

_MAX_OPEN = 2000  # calls of an open loop; a server that falls so far behind has lost it
_END_S = 20.0  # for the calls that are open when the time is over


class WrongAnswer(Exception):
    """A server answers, and what it says is wrong: its figures would mean nothing."""


@dataclass
class Timings:
    """What has been measured of one load."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)  # of good answers
    errors: int = 0
    first_error: str = ""


def check_answer(payload: bytes, answer: bytes) -> None:
    """Raises:
    WrongAnswer: the answer is not what was asked for; says how it differs.
    """
    if answer == payload:
        return
    if len(answer) != len(payload):
        raise WrongAnswer(f"{len(answer)} bytes came back, of {len(payload)} that were sent")
    if not any(answer):
        raise WrongAnswer(f"{len(answer)} bytes came back, all of them zero")
    wrong = sum(a != b for a, b in zip(answer, payload, strict=True))
    raise WrongAnswer(f"{wrong} of {len(answer)} bytes came back changed")


async def check_answers(caller: Caller, payloads: Sequence[bytes]) -> None:
    """Asks for all of them at once, so that they share batches.

    Raises:
        WrongAnswer: one of them came back wrong.
        CallError: one of them was not answered.
    """
    for payload, answer in zip(payloads, await asyncio.gather(*map(caller.call, payloads)), strict=True):
        check_answer(payload, answer)


async def drive(
    caller: Caller, load: Load, payloads: Sequence[bytes], warm_s: float, seconds: float, mark: Callable[[], None]
) -> Timings:
    """Warms up, then measures for `seconds`; `mark` is called as that begins and as it ends.

    Raises:
        WrongAnswer: an answer was wrong.
    """
    runner = _open_loop if load.is_open else _closed_loop
    await runner(caller, load, payloads, warm_s)
    mark()
    began = time.perf_counter()
    timings = await runner(caller, load, payloads, seconds)
    timings.seconds = time.perf_counter() - began
    mark()
    return timings


async def _closed_loop(caller: Caller, load: Load, payloads: Sequence[bytes], seconds: float) -> Timings:
    """Each caller sends its next request when it has the answer to the last."""
    timings = Timings()
    until = time.perf_counter() + seconds
    source = itertools.cycle(payloads)

    async def go_on() -> None:
        while time.perf_counter() < until:
            await _once(caller, next(source), time.perf_counter(), timings)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.callers):
            group.create_task(go_on())
    return timings


async def _open_loop(caller: Caller, load: Load, payloads: Sequence[bytes], seconds: float) -> Timings:
    """Latency counts from when a request should have been sent."""
    timings = Timings()
    arrivals = poisson(load.rate, seconds, seed=1)
    began = time.perf_counter()
    calls: set[asyncio.Task[None]] = set()
    for at, payload in zip(arrivals, itertools.cycle(payloads), strict=False):
        due = began + at
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(calls) >= _MAX_OPEN:
            timings.errors += 1
            continue
        task = asyncio.create_task(_once(caller, payload, due, timings))
        calls.add(task)
        task.add_done_callback(calls.discard)
    if calls:
        done, late = await asyncio.wait(calls, timeout=_END_S)
        for task in late:
            task.cancel()
        timings.errors += len(late)
        for task in done:
            task.result()
    return timings


async def _once(caller: Caller, payload: bytes, since: float, timings: Timings) -> None:
    try:
        answer = await caller.call(payload)
    except CallError as error:
        timings.errors += 1
        timings.first_error = timings.first_error or str(error)
        await asyncio.sleep(0.01)  # a server that refuses at once is not asked ever faster
        return
    timings.latencies_s.append(time.perf_counter() - since)
    check_answer(payload, answer)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments of arrivals, the same for every server."""
    source = random.Random(seed)
    arrivals, at = [], source.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += source.expovariate(rate)
    return arrivals
