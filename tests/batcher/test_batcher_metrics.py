"""What the batcher counts for its metrics."""

from __future__ import annotations

import asyncio

import pytest
from live_metrics import value

from steploom_batcher import virtual_time
from steploom_batcher.messages import TickReport
from steploom_batcher.metrics import BatcherMetrics, current
from steploom_batcher.types import Cause, JobSpec, Key, Outcome, Refused, SchedulerStats, Stage, Status, Tick

from .driver_rig import KEY, config, payload, result_of, rig


def tick(rows: int = 5, bucket: int = 6, predicted_s: float = 0.02) -> Tick:
    return Tick(1, "w", Stage.DENOISE, Key("m", ()), (), rows, bucket, predicted_s)


def test_a_tick_that_ran_is_in_every_histogram_of_ticks() -> None:
    metrics = BatcherMetrics()
    metrics.tick_done("w", tick(), TickReport(1, Outcome(Status.OK, 0.03)))
    text = metrics.text([])
    assert value(text, "steploom_batcher_tick_rows_sum", stage="denoise") == 5
    assert value(text, "steploom_batcher_tick_seconds_sum", stage="denoise", bucket="6") == 0.03
    assert value(text, "steploom_batcher_tick_measured_ratio_sum", stage="denoise") == pytest.approx(1.5)
    assert "status=" not in text


@pytest.mark.parametrize("status", [Status.FAILED, Status.SKIPPED])
def test_a_tick_that_did_not_run_is_in_none(status: Status) -> None:
    metrics = BatcherMetrics()
    metrics.tick_done("w", tick(), TickReport(1, Outcome(status, 0.03)))
    text = metrics.text([])
    assert value(text, "steploom_worker_ticks_not_run_total", worker="w", status=status.name.lower()) == 1
    assert "stage=" not in text


def test_every_cause_is_there_before_anything_was_refused() -> None:
    text = BatcherMetrics().text(current(SchedulerStats({}, {}, refused={"deadline": 3}), [], False))
    for cause in Cause:
        if cause is not Cause.POISON:
            assert value(text, "steploom_batcher_refused_total", cause=cause.value) == 3 * (cause is Cause.DEADLINE)


def test_every_job_is_in_one_place_and_every_tick_in_its_histogram() -> None:
    async def scenario() -> None:
        async with rig(config()) as here:
            metrics = BatcherMetrics()
            for link in here.links:
                link._on_tick_done = metrics.tick_done
            done = [here.submit(f"d{n}") for n in range(4)]
            for feed in done:
                await result_of(feed)
            late = here.driver.submit(JobSpec("late", KEY, "pro", 35, 3, here.loop.time() + 0.01), payload(35))
            assert isinstance(late, Refused)
            here.submit("gone", 50)
            running = here.submit("runs", 50)
            await asyncio.sleep(0.1)
            here.driver.cancel("gone")
            await asyncio.sleep(0.1)
            text = metrics.text(current(here.driver.statistics(), here.links, False))
            assert value(text, "steploom_batcher_submitted_total") == 7
            assert value(text, "steploom_batcher_refused_total", cause="deadline") == 1
            assert value(text, "steploom_batcher_ended_total", outcome="finished") == 4
            assert value(text, "steploom_batcher_ended_total", outcome="cancelled") == 1
            assert value(text, "steploom_batcher_running", tier="free") == 1
            assert value(text, "steploom_worker_slots_used", worker="w0") == 1
            for stage in ("encode", "denoise", "decode"):
                ticks = value(text, "steploom_worker_ticks_total", stage=stage)
                assert ticks == value(text, "steploom_batcher_tick_rows_count", stage=stage) > 0
                rows = value(text, "steploom_worker_rows_total", stage=stage)
                assert rows == value(text, "steploom_batcher_tick_rows_sum", stage=stage)
            here.driver.cancel("runs")
            del running

    virtual_time.run(scenario())


def test_a_worker_that_is_down_is_shown_with_what_it_has_done() -> None:
    async def scenario() -> None:
        async with rig() as here:
            await result_of(here.submit("a"))
            here.hosts[0].kill()
            await asyncio.sleep(0.01)
            assert not here.links[0].is_up
            text = BatcherMetrics().text(current(here.driver.statistics(), here.links, True))
            assert value(text, "steploom_worker_up", worker="w0") == 0
            assert value(text, "steploom_worker_slots", worker="w0") == 0
            assert value(text, "steploom_worker_ticks_total", worker="w0", stage="denoise") == 3
            assert value(text, "steploom_batcher_draining") == 1

    virtual_time.run(scenario())
