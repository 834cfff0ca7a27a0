"""The search for limits and the knee, on services whose limits are known: queues that are computed, not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from steploom_batcher.virtual_time import run
from steploom_loadtest.report import OK, Record
from steploom_loadtest.report_model import LIVE, Origin, Point, Report, Sweep
from steploom_loadtest.sweep import SweepPlan, growth_of, point_of, sweep
from steploom_loadtest.traces import Arrival, RequestClass, exactly, poisson

MIX = (RequestClass("free", 3, 1, deadline_s=0.5), RequestClass("pro", 3, 1, deadline_s=2.0))
PLAN = SweepPlan(first=1.0, highest=100.0, precision=0.1, seconds=60.0, max_seconds=60.0, samples=100)


def served(rate: float, seconds: float, service_s: float, mix: tuple[RequestClass, ...] = MIX) -> Report:
    """One server, one request after the other: M/D/1."""
    trace = exactly(lambda length_s: poisson(mix, rate, length_s, seed=1), rate, seconds)
    free_at = 0.0
    records = []
    for arrival in trace:
        free_at = max(free_at, arrival.at) + service_s
        records.append(Record(arrival, OK, free_at))
    return Report(Origin(LIVE, ""), rate, seconds, records)


def found(
    plan: SweepPlan, answer: Callable[[float], Report], heard: list[Point] | None = None
) -> tuple[Report | None, Sweep]:
    async def measure(rate: float) -> Report:
        return answer(rate)

    return run(sweep(measure, plan, heard.append if heard is not None else None))


def test_each_tier_has_its_own_limit_within_the_precision() -> None:
    heard: list[Point] = []
    best, result = found(PLAN, lambda rate: served(rate, 60.0, 0.1), heard)
    limits = {limit.tier: limit for limit in result.limits}
    for limit in limits.values():
        assert limit.fails_at is not None
        assert 1.0 < limit.fails_at / limit.holds_at <= 1.1
    assert 5.0 < limits["free"].holds_at < limits["pro"].holds_at < 10.5  # no more than 10 a second can be served
    assert best is not None
    assert best.offered_rate == limits["free"].holds_at
    assert sorted(heard, key=lambda point: point.rate) == list(result.points)
    rates = [point.rate for point in result.points]
    assert rates == sorted(set(rates))
    assert max(rates) <= 32.0  # it ends where no tier holds


def test_the_knee_is_where_power_is_most() -> None:
    """Of M/D/1 with a service of 0.1 s: rate / (0.1 + rate 0.01 / (2 (1 - 0.1 rate))) is most at 5.86 a second."""
    _, result = found(PLAN, lambda rate: served(rate, 60.0, 0.1))
    assert result.knee is not None
    assert len(result.knee_range) >= 2
    assert min(result.knee_range) <= result.knee <= max(result.knee_range)
    assert max(result.knee_range) / result.knee <= 1.3 >= result.knee / min(result.knee_range)
    assert min(result.knee_range) < 6.5
    assert max(result.knee_range) > 5.0


def test_a_long_deadline_does_not_hide_that_the_service_cannot_keep_up() -> None:
    patient = tuple(replace(kind, deadline_s=600.0) for kind in MIX)
    _, result = found(PLAN, lambda rate: served(rate, 60.0, 0.1, patient))
    for limit in result.limits:
        assert 8.0 < limit.holds_at < 11.5
        assert limit.fails_at is not None
    assert result.knee is not None
    assert max(result.knee_range) / result.knee <= 1.3 >= result.knee / min(result.knee_range)  # no limit is near it
    over = next(point for point in result.points if point.rate > 12.0)
    assert all(tier.in_time == 1.0 and tier.growth > 0.05 and not tier.holds for tier in over.tiers)


def test_growth_of_a_queue_at_one_and_a_half_times_its_capacity() -> None:
    assert growth_of(served(15.0, 60.0, 0.1).requests, 60.0) == pytest.approx(1 / 3, abs=0.03)
    assert growth_of(served(8.0, 60.0, 0.1).requests, 60.0) == 0.0
    assert growth_of([], 60.0) == 0.0


def test_what_held_above_a_rate_that_fails_held_by_chance() -> None:
    def answer(rate: float) -> Report:
        report = served(rate, 60.0, 0.001)
        is_bad = 3.5 < rate < 4.5
        late = [replace(item, ended_at=item.ended_at + 1.0) if is_bad else item for item in report.requests]
        return replace(report, requests=late)  # too late for free, not for pro

    _, result = found(replace(PLAN, highest=16.0), answer)
    free, pro = result.limits
    assert free.fails_at is not None
    assert 2.0 <= free.holds_at < free.fails_at <= 4.0
    assert (pro.holds_at, pro.fails_at) == (16.0, None)


def test_a_service_that_bears_everything_is_tried_up_to_the_highest_rate() -> None:
    _, result = found(replace(PLAN, highest=24.0), lambda rate: served(rate, 10.0, 0.001))
    assert [limit.holds_at for limit in result.limits] == [24.0, 24.0]
    assert [limit.fails_at for limit in result.limits] == [None, None]
    assert [point.rate for point in result.points] == [1.0, 2.0, 4.0, 8.0, 16.0, 24.0]
    assert result.knee is None  # power still grows there


def test_a_service_that_bears_nothing_is_tried_below_the_first_rate_and_says_so() -> None:
    best, result = found(PLAN, lambda rate: served(rate, 600.0, 3.0))
    assert [limit.holds_at for limit in result.limits] == [0.0, 0.0]
    assert best is not None
    assert best.offered_rate == min(point.rate for point in result.points) == 1 / 64


def test_refused_requests_are_late_ones() -> None:
    def refusing(rate: float) -> Report:
        report = served(rate, 60.0, 0.01)
        full = Record(Arrival(0.0, "free", 3, 3, 0.5), "RESOURCE_EXHAUSTED", 0.0, cause="full")
        return replace(report, requests=[full] * (len(report.requests) // 20) + list(report.requests))

    point = point_of(refusing(4.0))
    free, pro = point.tiers
    assert (free.holds, pro.holds) == (False, True)
    assert free.in_time == pytest.approx(10 / 11, abs=0.01)


def test_an_interrupted_run_ends_the_sweep_with_what_there_is() -> None:
    tried: list[float] = []

    def answer(rate: float) -> Report:
        tried.append(rate)
        return replace(served(rate, 60.0, 0.1), is_interrupted=len(tried) == 3)

    best, result = found(PLAN, answer)
    assert tried == [1.0, 2.0, 4.0]
    assert [point.rate for point in result.points] == [1.0, 2.0]
    assert best is not None
    assert best.offered_rate == 2.0
    assert not best.is_interrupted


def test_a_sweep_that_is_interrupted_at_once_has_the_run_as_it_was() -> None:
    best, result = found(PLAN, lambda rate: replace(served(rate, 60.0, 0.1), is_interrupted=True))
    assert result.points == ()
    assert best is not None
    assert best.is_interrupted


@pytest.mark.parametrize(
    ("rate", "weights", "length_s"),
    [
        (1.0, {"free": 9, "pro": 1}, 50.0),  # for ten requests of pro 100 s are too many
        (10.0, {"free": 9, "pro": 1}, 20.0),
        (100.0, {"free": 9, "pro": 1}, 5.0),
        (4.0, {"free": 1}, 5.0),
        (0.5, {"free": 1}, 40.0),
    ],
)
def test_a_rate_is_tried_until_the_rarest_tier_has_its_samples(
    rate: float, weights: Mapping[str, int], length_s: float
) -> None:
    plan = SweepPlan(1.0, 100.0, 0.1, seconds=5.0, max_seconds=50.0, samples=20)
    mix = [RequestClass(tier, 3, weight) for tier, weight in weights.items()]
    assert plan.length_s(rate, mix) == length_s
