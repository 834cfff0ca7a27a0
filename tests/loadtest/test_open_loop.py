"""When requests are sent and how many are open at once, in virtual time: no clock that a busy machine can stall."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from PIL import Image

from steploom_batcher.virtual_time import run
from steploom_loadtest import open_loop
from steploom_loadtest.open_loop import Payload, run_closed_loop, run_open_loop
from steploom_loadtest.report import Record, summarize
from steploom_loadtest.target import Target
from steploom_loadtest.traces import FREE_AND_PRO, Arrival, poisson
from steploom_protos.v1 import image_pb2 as pb


class SlowService:
    """Stands for a stub: each answer takes as long as it is told."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self.sent: list[tuple[float, pb.EditRequest, float]] = []  # when, what, and the seconds it may take

    def Edit(  # noqa: N802
        self, request: pb.EditRequest, timeout: float, metadata: tuple[tuple[str, str], ...]
    ) -> asyncio.Task[pb.EditResponse]:
        self.sent.append((asyncio.get_running_loop().time(), request, timeout))
        return asyncio.create_task(asyncio.sleep(self.answer_s, pb.EditResponse()))


Serve = Callable[[float], SlowService]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts a service in the place of the gateway."""

    def begin(answer_s: float) -> SlowService:
        service = SlowService(answer_s)

        @asynccontextmanager
        async def stubs(target: Target, count: int) -> AsyncIterator[Iterator[SlowService]]:
            yield itertools.repeat(service)

        monkeypatch.setattr(open_loop, "connected", stubs)
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


def test_what_is_stopped_ends_at_once_and_tells_what_became_of_all_that_was_sent(serve: Serve) -> None:
    service = serve(1.5)
    trace = [Arrival(float(at), "free", 3, 3, 20.0, cancel_after_s=9.0 if at == 2 else None) for at in range(10)]

    async def stopped() -> list[Record]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(3.25, stop.set)
        return await run_open_loop("", trace, stop=stop)

    records = run(stopped())
    assert [(record.status, record.ended_at) for record in records] == [
        ("OK", 1.5),
        ("OK", 2.5),
        ("INTERRUPTED", 3.25),
        ("INTERRUPTED", 3.25),
    ]
    assert len(service.sent) == 4


def test_a_stop_at_the_very_moment_of_a_request_loses_no_record(serve: Serve) -> None:
    serve(1.0)

    async def stopped() -> list[Record]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(1.0, stop.set)
        return await run_open_loop("", [Arrival(1.0, "free", 3, 3, 20.0)] * 3, stop=stop)

    assert {record.status for record in run(stopped())} <= {"INTERRUPTED"}


def test_a_failed_service_ends_the_run_with_its_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve(1.0)
    no_answer = lambda *_, **__: asyncio.create_task(asyncio.sleep(0.0, 3))  # noqa: E731
    monkeypatch.setattr(service, "Edit", no_answer)
    with pytest.raises(AttributeError):
        run(run_open_loop("", [Arrival(0.0, "free", 3, 3, 20.0)]))


def test_requests_carry_what_the_arrival_and_the_payload_say() -> None:
    arrival = Arrival(0.0, "free", 4, 1, 20.0, adapter="none", side=64)
    request = Payload(model="avatar").request(arrival, 7)
    assert (request.tier, request.steps, request.seed, request.model) == ("free", 4, 7, "avatar")
    assert (request.guidance_scale, request.image_guidance_scale) == (1.0, 1.0)
    with Image.open(io.BytesIO(request.image.encoded)) as picture:
        assert picture.size == (64, 64)
    by_tier = Payload().request(replace(arrival, adapter=""), 7)
    assert not by_tier.HasField("guidance_scale")
