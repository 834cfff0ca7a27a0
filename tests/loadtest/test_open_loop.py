"""When requests are sent and how many are open at once, in virtual time: no clock that a busy machine can stall."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from steploom_batcher.virtual_time import run
from steploom_loadtest import open_loop
from steploom_loadtest.open_loop import run_closed_loop, run_open_loop
from steploom_loadtest.report import summarize
from steploom_loadtest.traces import FREE_AND_PRO, Arrival, poisson
from steploom_protos.v1 import image_pb2 as pb


class SlowService:
    """Stands for a stub: each answer takes as long as it is told."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self.sent: list[tuple[float, pb.EditRequest, float]] = []  # when, what, and the seconds it may take

    def Edit(self, request: pb.EditRequest, timeout: float) -> asyncio.Task[pb.EditResponse]:  # noqa: N802
        self.sent.append((asyncio.get_running_loop().time(), request, timeout))
        return asyncio.create_task(asyncio.sleep(self.answer_s, pb.EditResponse()))


Serve = Callable[[float], SlowService]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts a service in the place of the gateway."""

    def begin(answer_s: float) -> SlowService:
        service = SlowService(answer_s)

        @asynccontextmanager
        async def stubs(address: str, count: int) -> AsyncIterator[Iterator[SlowService]]:
            yield itertools.repeat(service)

        monkeypatch.setattr(open_loop, "_stubs", stubs)
        return service

    return begin


def test_open_loop_sends_at_the_intended_moments_however_long_answers_take(serve: Serve) -> None:
    service = serve(7.0)
    trace = poisson(FREE_AND_PRO, 12.0, 3.0, seed=2)
    records = run(run_open_loop("", trace))
    assert [record.arrival for record in records] == trace
    assert [moment for moment, _, _ in service.sent] == pytest.approx([arrival.at for arrival in trace], abs=1e-6)
    assert [request.steps for _, request, _ in service.sent] == [arrival.steps for arrival in trace]
    assert [record.latency_s for record in records] == pytest.approx([7.0] * len(trace), abs=1e-6)
    assert summarize(records).max_lag_s == pytest.approx(0.0, abs=1e-6)


def test_a_request_that_goes_out_late_has_less_time_left_and_a_longer_latency(serve: Serve) -> None:
    service = serve(0.25)
    on_time, late = (Arrival(at, "free", 3, 3, deadline_s=2.0) for at in (1.0, 0.5))
    records = run(run_open_loop("", [on_time, late]))
    assert [record.lag_s for record in records] == pytest.approx([0.0, 0.5])
    assert [record.latency_s for record in records] == pytest.approx([0.25, 0.75])
    assert [timeout for _, _, timeout in service.sent] == pytest.approx([2.0, 1.5])


def test_a_caller_cancels_at_its_moment_unless_the_answer_has_come(serve: Serve) -> None:
    serve(0.5)
    trace = [Arrival(0.0, "free", 3, 3, 20.0, cancel_after_s=seconds) for seconds in (0.2, 0.7)]
    records = run(run_open_loop("", trace))
    assert [(record.status, record.ended_at) for record in records] == [("CANCELLED", 0.2), ("OK", 0.5)]


def test_closed_loop_keeps_so_many_open_and_lets_them_end(serve: Serve) -> None:
    service = serve(0.3)
    kinds = [Arrival(0.0, "free", steps, 3, 20.0) for steps in (3, 4)]
    records = run(run_closed_loop("", kinds, callers=4, seconds=1.0))
    moments = [moment for moment, _, _ in service.sent]
    assert moments == pytest.approx([0.0] * 4 + [0.3] * 4 + [0.6] * 4 + [0.9] * 4)
    assert [request.steps for _, request, _ in service.sent] == [3, 4] * 8
    assert sorted(record.arrival.at for record in records) == moments
    assert max(record.ended_at for record in records) == pytest.approx(1.2)
