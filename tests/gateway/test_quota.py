"""How much a caller may ask for, in a time of its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steploom_common.errors import Exhausted
from steploom_gateway.quota import Limits, Quota


def refused(quota: Quota, now: float) -> Exhausted:
    with pytest.raises(Exhausted) as caught:
        quota.enter(now)
    return caught.value


def test_without_bounds_nothing_is_refused() -> None:
    quota = Quota("token:a", Limits(), 0.0)
    for _ in range(1000):
        quota.enter(0.0)
    assert quota.num_open == 1000


def test_a_burst_then_the_rate() -> None:
    quota = Quota("token:a", Limits(rate=2.0, burst=3), 10.0)
    for _ in range(3):
        quota.enter(10.0)
    error = refused(quota, 10.0)
    assert (error.subject, error.retry_after_s) == ("token:a/rate", 0.5)
    assert refused(quota, 10.25).retry_after_s == 0.25
    quota.enter(10.5)
    refused(quota, 10.5)
    for _ in range(3):  # a long pause saves no more than a burst
        quota.enter(1000.0)
    refused(quota, 1000.0)


@pytest.mark.parametrize(("rate", "burst", "capacity"), [(0.1, 0, 1.0), (5.0, 0, 5.0), (5.0, 1, 1.0), (0.5, 9, 9.0)])
def test_without_a_burst_it_is_what_comes_in_a_second(rate: float, burst: int, capacity: float) -> None:
    assert Limits(rate, burst).capacity == capacity


def test_places_are_counted_and_a_refusal_takes_none() -> None:
    quota = Quota("token:a", Limits(rate=1.0, burst=3, concurrency=2), 0.0)
    quota.enter(0.0)
    quota.enter(0.0)
    error = refused(quota, 0.0)
    assert error.subject == "token:a/concurrency"
    assert "2 requests open and may have 2" in str(error)
    quota.leave()
    quota.enter(0.0)  # the refusal took nothing of the burst
    quota.leave()
    refused(quota, 0.0)
    assert quota.num_open == 1


def test_new_bounds_hold_at_once_and_give_nothing_back() -> None:
    quota = Quota("token:a", Limits(rate=1.0, burst=10), 0.0)
    quota.enter(0.0)
    quota.change(Limits(rate=1.0, burst=2, concurrency=3), 0.0)
    quota.enter(0.0)
    quota.enter(0.0)
    assert refused(quota, 5.0).subject == "token:a/concurrency"
    quota.change(Limits(rate=10.0, burst=1), 5.0)
    quota.enter(5.0)
    assert refused(quota, 5.0).retry_after_s == pytest.approx(0.1)


@given(
    rate=st.floats(0.01, 1000.0),
    burst=st.integers(0, 20),
    gaps=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=80),
)
def test_never_more_than_the_rate_and_a_burst_and_what_is_promised_comes_true(
    rate: float, burst: int, gaps: list[float]
) -> None:
    limits = Limits(rate, burst)
    quota = Quota("token:a", limits, 0.0)
    now = 0.0
    for num_taken, gap in enumerate(gaps, 1):
        now += gap
        wait_s = waited_s(quota, now)
        assert 0.0 <= wait_s <= (1.0 + 1e-6) / rate
        if wait_s:
            now += wait_s
            assert waited_s(quota, now) == 0.0
        assert num_taken <= limits.capacity + rate * now + 1e-6


def waited_s(quota: Quota, now: float) -> float:
    """What the quota says to a request; 0: it was taken."""
    try:
        quota.take(now)
    except Exhausted as error:
        return error.retry_after_s
    return 0.0
