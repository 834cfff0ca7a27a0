"""The report of a run on live services with the fake engine: what they counted and when their ticks ran is in it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steploom.testing import FakeGateway, serving
from steploom_common import errors
from steploom_loadtest.live import Load, run_live
from steploom_loadtest.report import OK, Record
from steploom_loadtest.report_figures import figures
from steploom_loadtest.report_html import page
from steploom_loadtest.report_model import Report
from steploom_loadtest.services import Watch
from steploom_loadtest.stack import Stack, running
from steploom_loadtest.target import Target, Unreachable
from steploom_loadtest.traces import RequestClass, poisson, steady

FAKE = {"encode_s": 0.004, "denoise_s": 0.008, "denoise_row_s": 0.001, "decode_s": 0.004}
PATIENT_S = 600.0  # a deadline that is met even where the machine stalls
MIX = (
    RequestClass("free", 3, 3, deadline_s=PATIENT_S, adapter=""),
    RequestClass("pro", 12, deadline_s=PATIENT_S, adapter="none", side=64),
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with (
        tempfile.TemporaryDirectory(prefix="steploom-test-") as directory,
        running(Path(directory), {"worker": {"engine": "fake", "slots": 8, "fake": FAKE}}) as stack,
    ):
        yield stack


async def test_every_tick_of_every_request_is_in_the_report(stack: Stack) -> None:
    trace = poisson(MIX, 12.0, 2.0, seed=3)
    load = Load(trace, 12.0, 2.0, price=2.0)
    report = await run_live(Target(stack.gateway), load, Watch(stack.metrics_url, stack.batcher))
    assert [record.status for record in report.requests] == [OK] * len(trace)
    assert report.lost_ticks == 0
    shares = [(share.request_id, tick.stage, share) for tick in report.ticks for share in tick.shares]
    assert {name for name, _, _ in shares} == {record.request_id for record in report.requests}
    for record in report.requests:
        mine = [(stage, share) for name, stage, share in shares if name == record.request_id]
        assert len(mine) == record.ticks == record.arrival.steps + 2
        assert [stage for stage, _ in mine] == ["encode", *["denoise"] * record.arrival.steps, "decode"]
        assert [share.step for _, share in mine] == [0, *range(1, record.arrival.steps + 1), 0]
    for tick in report.ticks:
        assert sum(share.rows for share in tick.shares) == tick.rows <= tick.bucket
        assert -1.0 < tick.start_s < tick.end_s
    assert report.work is not None
    assert report.work.workers == report.devices == 1
    counted = {stage: (work.ticks, work.rows) for stage, work in report.work.stages.items()}
    for stage, found in counted.items():
        ticks = [tick for tick in report.ticks if tick.stage == stage]
        assert found == (len(ticks), sum(tick.rows for tick in ticks))
    found_all = figures(report)
    assert found_all.devices is not None
    assert found_all.devices.busy is not None
    assert found_all.devices.busy_is_exact
    assert 0.0 < found_all.devices.busy <= 1.0
    assert found_all.cost_per_1000 is not None
    assert page(report).count('class="tick"') == len(report.ticks)
    assert Report.from_json(report.to_json()).ticks == tuple(report.ticks)


async def test_a_run_that_is_stopped_has_what_there_was(stack: Stack) -> None:
    stop = asyncio.Event()
    load = Load(poisson(MIX, 20.0, 600.0), 20.0, 600.0)
    report = await run_live(Target(stack.gateway), load, on_record=lambda _: stop.set(), stop=stop)
    assert report.is_interrupted
    assert {record.status for record in report.requests} >= {OK}
    assert len(report.requests) < 1000
    assert (len(report.ticks), report.work) == (0, None)  # nobody was asked


async def test_a_service_that_turns_strict_is_measured_to_the_end() -> None:
    """Its requests were right before: a model that is loaded anew, say, and is nowhere for a moment."""
    with serving(FakeGateway()) as gateway:

        def turn_strict(_: Record) -> None:
            gateway.error = errors.NotFound("model", "fake", [])

        load = Load(steady(MIX[:1], 8.0, 3.0), 8.0, 3.0)
        report = await run_live(Target(gateway.address), load, on_record=turn_strict)
    assert not report.is_interrupted
    assert len(report.requests) == len(load.trace)
    assert {record.status for record in report.requests} == {OK, "NOT_FOUND"}


async def test_nobody_at_the_address_is_an_error_in_time() -> None:
    with pytest.raises(Unreachable, match=r"no connection to 127.0.0.1:1 within 0.2 s"):
        await run_live(Target("127.0.0.1:1", connect_s=0.2), Load(poisson(MIX, 5.0, 1.0), 5.0, 1.0))
