"""A simulated load has the report of a live one: statuses and causes as callers see them, ticks, work, rows by tier."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steploom_batcher.config import SchedulerConfig, TierConfig
from steploom_common.adapter import AUTO, NONE
from steploom_loadtest.cost_tables import CostTable, DeviceCosts, linear
from steploom_loadtest.mix import WrongOption
from steploom_loadtest.report_figures import figures, summary
from steploom_loadtest.report_model import SIMULATED, Report
from steploom_loadtest.simulated import (
    SimulatedLoad,
    Site,
    run_simulated,
    trace_with_rows,
    with_rows,
)
from steploom_loadtest.traces import Arrival, RequestClass, poisson

COSTS = CostTable("a test", [DeviceCosts("small", 4, linear((0.010, 0.008), (0.008, 0.007), (0.004, 0.022)))])
CONFIG = SchedulerConfig(
    tiers={"free": TierConfig(steps=3, max_queued=3, adapter=AUTO), "pro": TierConfig(adapter=""), "x": TierConfig()}
)
MIX = (RequestClass("free", 3, 9, deadline_s=2.0, rows=1, cancel_share=0.1), RequestClass("pro", 35, deadline_s=8.0))


def load(rate: float, seconds: float = 20.0, has_ticks: bool = False) -> SimulatedLoad:
    return SimulatedLoad(poisson(MIX, rate, seconds, seed=1), rate, seconds, has_ticks=has_ticks, price=3.6)


def test_the_report_of_a_simulation_is_read_again_and_has_all_figures() -> None:
    report = run_simulated(Site(CONFIG, COSTS, 1), load(6.0, has_ticks=True))
    assert Report.from_json(report.to_json(summary(report))) == replace(
        report, requests=tuple(report.requests), ticks=tuple(report.ticks)
    )
    found = figures(report)
    assert report.origin.kind == SIMULATED
    assert found.devices
    assert found.devices.busy_is_exact
    assert found.devices.busy == pytest.approx(sum(tick.seconds for tick in report.ticks) / found.seconds)
    assert found.devices.ticks == {
        name: sum(tick.stage == name for tick in report.ticks) for name in found.devices.ticks
    }
    assert found.max_lag_s == 0.0
    assert found.cost_per_1000 is not None


def test_ticks_name_the_requests_in_them_and_their_steps() -> None:
    report = run_simulated(Site(CONFIG, COSTS, 1), load(2.0, has_ticks=True))
    parts = [
        (tick.stage, share.step)
        for tick in report.ticks
        for share in tick.shares
        if share.request_id == report.requests[0].request_id
    ]
    steps = report.requests[0].arrival.steps
    assert parts == [("encode", 0), *(("denoise", step) for step in range(1, steps + 1)), ("decode", 0)]
    for tick in report.ticks:
        assert tick.rows == sum(share.rows for share in tick.shares) <= tick.bucket


def test_refusals_have_the_statuses_and_words_of_live_ones() -> None:
    found = figures(run_simulated(Site(CONFIG, COSTS, 1), load(60.0)))
    assert set(found.statuses) == {"OK", "CANCELLED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert set(found.refused) <= {"full: tier:free", "full: slots", "deadline cannot be met", "deadline has passed"}
    assert found.refused["full: tier:free"] > 0
    assert found.refused["deadline cannot be met"] > 0
    assert sum(found.statuses.values()) == found.sent


def test_more_hosts_do_more() -> None:
    one, three = (figures(run_simulated(Site(CONFIG, COSTS, 1, nodes), load(20.0))) for nodes in (1, 3))
    assert three.goodput > 2 * one.goodput
    assert run_simulated(Site(CONFIG, COSTS, 2, 3), load(5.0)).devices == 6


def test_rows_follow_what_draws_a_request_unless_they_are_told() -> None:
    mix = (
        RequestClass("free", 3, adapter=""),  # the tier's: auto
        RequestClass("free", 5, adapter=""),  # too many steps for a student
        RequestClass("free", 3, adapter=NONE),
        RequestClass("pro", 35, adapter=""),
        RequestClass("pro", 35, adapter="named"),
    )
    assert [kind.rows for kind in with_rows(mix, CONFIG.tiers, {})] == [1, 3, 3, 3, 1]
    assert [kind.rows for kind in with_rows(mix, CONFIG.tiers, {"free": 2})] == [2, 2, 2, 3, 1]
    trace = [Arrival(0.0, "free", 3, 1, 9.0), Arrival(1.0, "pro", 3, 3, 9.0)]
    assert [item.rows for item in trace_with_rows(trace, CONFIG.tiers, {"pro": 1})] == [1, 1]


def test_what_the_scheduler_could_not_run_is_refused_before() -> None:
    with pytest.raises(WrongOption, match="tier 'gold' is not in the configuration, where there are free, pro, x"):
        with_rows([RequestClass("gold", 3)], CONFIG.tiers, {})
    with pytest.raises(WrongOption, match="tier 'gold'"):
        trace_with_rows([Arrival(0.0, "gold", 3, 1, 9.0)], CONFIG.tiers, {})
    narrow = CostTable("a test", [DeviceCosts("narrow", 4, linear((1, 0), (1, 0), (1, 0), rows=(1, 2)))])
    with pytest.raises(WrongOption, match="--costs: worker 'w0' has no bucket for a guided step of 3 rows"):
        Site(CONFIG, narrow, 1)
