from __future__ import annotations

import itertools

import pytest

from steploom_loadtest.traces import FREE_AND_PRO, RequestClass, burst, bursty, exactly, poisson, steady


def test_a_seed_gives_one_trace() -> None:
    assert poisson(FREE_AND_PRO, 5.0, 30.0, seed=1) == poisson(FREE_AND_PRO, 5.0, 30.0, seed=1)
    assert poisson(FREE_AND_PRO, 5.0, 30.0, seed=1) != poisson(FREE_AND_PRO, 5.0, 30.0, seed=2)


def test_arrivals_are_in_order_at_the_rate() -> None:
    trace = poisson(FREE_AND_PRO, 20.0, 500.0)
    times = [arrival.at for arrival in trace]
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] < 500.0
    assert len(trace) == pytest.approx(20.0 * 500.0, rel=0.04)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)  # of an exponential distribution


def test_every_deal_has_the_shares_of_the_mix() -> None:
    trace = poisson(FREE_AND_PRO, 50.0, 40.0, seed=3)
    for start in range(0, len(trace) - 10, 10):
        assert sum(arrival.steps == 35 for arrival in trace[start : start + 10]) == 1


def test_some_are_cancelled() -> None:
    kind = RequestClass("free", 3, cancel_share=0.25, cancel_within_s=2.0)
    cancels = [arrival.cancel_after_s for arrival in poisson([kind], 100.0, 40.0)]
    moments = [moment for moment in cancels if moment is not None]
    assert len(moments) / len(cancels) == pytest.approx(0.25, abs=0.03)
    assert 0.0 <= min(moments) <= max(moments) <= 2.0


def test_a_trace_without_rate_or_mix_is_an_error() -> None:
    for mix, rate in ((FREE_AND_PRO, 0.0), ((), 1.0)):
        with pytest.raises(ValueError, match="rate above 0 and a mix"):
            poisson(mix, rate, 10.0)


def test_a_burst_is_one_moment() -> None:
    assert [arrival.at for arrival in burst(FREE_AND_PRO[0], 3, at=2.0)] == [2.0] * 3


def gaps_of(times: list[float]) -> tuple[float, float]:
    """Mean and coefficient of variation of the gaps."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    return mean, (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_bursts_have_the_variation_that_is_asked_for_at_the_rate(cv: float) -> None:
    mean, found = gaps_of([arrival.at for arrival in bursty(FREE_AND_PRO, 20.0, 4000.0, cv, seed=4)])
    assert mean == pytest.approx(1 / 20.0, rel=0.05)
    assert found == pytest.approx(cv, rel=0.05)


def test_a_steady_trace_has_equal_gaps_and_the_mix() -> None:
    trace = steady(FREE_AND_PRO, 4.0, 10.1)
    assert [arrival.at for arrival in trace] == pytest.approx([place / 4 for place in range(1, 41)])
    assert sum(arrival.tier == "pro" for arrival in trace) == 4


def test_a_burst_needs_a_variation() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        bursty(FREE_AND_PRO, 1.0, 10.0, cv=0.0)


def test_arrivals_carry_what_their_class_says() -> None:
    kind = RequestClass("free", 4, rows=1, deadline_s=2.0, adapter="few-step", side=256)
    (arrival, *_) = poisson([kind], 10.0, 5.0)
    assert (arrival.tier, arrival.steps, arrival.rows, arrival.deadline_s) == ("free", 4, 1, 2.0)
    assert (arrival.adapter, arrival.side, arrival.cancel_after_s) == ("few-step", 256, None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cv", [0.5, 1.0, 5.0])
def test_a_trace_can_hold_just_as_many_requests_as_its_rate_says(seed: int, cv: float) -> None:
    trace = exactly(lambda seconds: bursty(FREE_AND_PRO, 8.0, seconds, cv, seed), 8.0, 5.0)
    times = [arrival.at for arrival in trace]
    assert len(times) == 40
    assert times == sorted(times)
    assert 0.0 <= times[0] < times[-1] <= 5.0  # gaps of bursts may be none
    assert sum(arrival.tier == "pro" for arrival in trace) == 4


def test_a_trace_of_less_than_one_request_has_one() -> None:
    assert len(exactly(lambda seconds: poisson(FREE_AND_PRO, 0.01, seconds), 0.01, 5.0)) == 1
