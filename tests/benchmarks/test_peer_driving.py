"""Loads on a caller that answers as a test wants: nothing is measured of a server that answers wrongly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from steploom_benchmarks.callers import CallError
from steploom_benchmarks.driving import WrongAnswer, check_answer, check_answers, drive, poisson
from steploom_benchmarks.loads import LOADS, Load

SMALL = replace(LOADS["small"], num_bytes=64, callers=4)
OPEN = replace(LOADS["costly"], num_bytes=64)


class FakeCaller:
    """Answers by a function of the payload, after a turn of the loop."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self.calls = self.open = self.most_open = 0
        self.asked: set[bytes] = set()

    async def call(self, payload: bytes) -> bytes:
        self.calls += 1
        self.asked.add(payload)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0.001)
        self.open -= 1
        return self._answer(payload)

    async def close(self) -> None:
        pass


def nothing() -> None:
    """A mark that nobody looks at."""


def refuse(_: bytes) -> bytes:
    raise CallError("full")


def swapped(payloads: Sequence[bytes]) -> Callable[[bytes], bytes]:
    """The answer to the payload before."""
    return lambda payload: payloads[payloads.index(payload) - 1]


def test_zeroed_answers_are_told_apart_from_changed_and_short_ones() -> None:
    check_answer(b"abc", b"abc")
    with pytest.raises(WrongAnswer, match="3 bytes came back, all of them zero"):
        check_answer(b"abc", bytes(3))
    with pytest.raises(WrongAnswer, match="1 of 3 bytes came back changed"):
        check_answer(b"abc", b"abd")
    with pytest.raises(WrongAnswer, match="2 bytes came back, of 3"):
        check_answer(b"abc", b"ab")


async def test_a_server_that_zeroes_its_inputs_is_found_before_the_load() -> None:
    payloads = SMALL.payloads()
    await check_answers(FakeCaller(lambda payload: payload), payloads)
    with pytest.raises(WrongAnswer, match="all of them zero"):
        await check_answers(FakeCaller(lambda payload: bytes(len(payload))), payloads)
    with pytest.raises(WrongAnswer, match="came back changed"):
        await check_answers(FakeCaller(swapped(payloads)), payloads)


@pytest.mark.parametrize("load", [SMALL, OPEN], ids=["closed", "open"])
async def test_answers_are_checked_under_load_too(load: Load) -> None:
    payloads = load.payloads()
    calls = 0

    def answer(payload: bytes) -> bytes:
        nonlocal calls
        calls += 1
        return payload if calls < 10 else bytes(len(payload))

    with pytest.raises((WrongAnswer, ExceptionGroup)) as caught:
        await drive(FakeCaller(answer), load, payloads, 0.0, 0.5, nothing)
    assert caught.group_contains(WrongAnswer) if isinstance(caught.value, ExceptionGroup) else True


async def test_a_closed_loop_keeps_as_many_calls_open_as_there_are_callers() -> None:
    caller = FakeCaller(lambda payload: payload)
    timings = await drive(caller, SMALL, SMALL.payloads(), 0.0, 0.1, nothing)
    assert caller.most_open == SMALL.callers
    assert caller.asked == set(SMALL.payloads())  # the answer to another one would be noticed
    assert len(timings.latencies_s) == caller.calls
    assert timings.errors == 0


async def test_an_open_loop_sends_what_is_due_however_late_the_answers_are() -> None:
    caller = FakeCaller(lambda payload: payload)
    timings = await drive(caller, OPEN, OPEN.payloads(), 0.0, 0.3, nothing)
    assert len(timings.latencies_s) == len(poisson(OPEN.rate, 0.3, seed=1)) == caller.calls


async def test_refusals_are_errors_and_no_answers() -> None:
    timings = await drive(FakeCaller(refuse), SMALL, SMALL.payloads(), 0.0, 0.05, nothing)
    assert timings.latencies_s == []
    assert timings.errors > 0
    assert timings.first_error == "full"


async def test_latency_in_an_open_loop_counts_from_when_a_request_was_due() -> None:
    held_s = 0.2

    def hold(payload: bytes) -> bytes:
        if caller.calls == 1:
            time.sleep(held_s)
        return payload

    caller = FakeCaller(hold)
    timings = await drive(caller, OPEN, OPEN.payloads(), 0.0, 0.3, nothing)
    due = [at for at in poisson(OPEN.rate, 0.3, seed=1) if at < held_s / 2]
    assert sum(latency >= held_s / 2 for latency in timings.latencies_s) >= len(due) > 3


async def test_measuring_begins_after_the_warm_up() -> None:
    caller = FakeCaller(lambda payload: payload)
    counts: list[int] = []
    await drive(caller, SMALL, SMALL.payloads(), 0.05, 0.05, lambda: counts.append(caller.calls))
    assert counts[0] > 0
    assert counts[1] > counts[0]


def test_arrivals_are_the_same_each_time_and_as_many_as_the_rate_says() -> None:
    arrivals = poisson(150.0, 20.0, seed=1)
    assert arrivals == poisson(150.0, 20.0, seed=1) == sorted(arrivals)
    assert arrivals[-1] < 20.0
    assert 0.9 < len(arrivals) / 3000 < 1.1


def test_the_load_of_a_costly_model_follows_from_its_capacity() -> None:
    assert LOADS["costly"].capacity == pytest.approx(8 / 0.036)
    assert LOADS["costly"].rate == pytest.approx(0.7 * 8 / 0.036)
    assert LOADS["small"].capacity == 0
    assert not LOADS["small"].is_open


def test_payloads_differ_and_none_is_zero() -> None:
    payloads = LOADS["small"].payloads()
    assert len(set(payloads)) == len(payloads)
    assert {len(payload) for payload in payloads} == {1024}
    assert all(any(payload) for payload in payloads)
