"""Which recording a tick takes, which is made next, and when."""

from __future__ import annotations

import math

import pytest

from steploom_engine_worker.engine import Stage
from steploom_engine_worker.pace import IDLE_S, SHARE, Pace
from steploom_engine_worker.readiness import GATED, PLAIN, Kind, Readiness, Recording

STUDENT = 0  # an adapter's number
BUCKETS: dict[Kind, tuple[int, ...]] = {
    (Stage.DENOISE, PLAIN): (1, 3, 12),
    (Stage.DENOISE, STUDENT): (1, 3, 12),
    (Stage.ENCODE, PLAIN): (1, 4),
    (Stage.DECODE, PLAIN): (1, 4),
    (Stage.DENOISE, GATED): (3, 12),
}
ALONE = {
    (Stage.DENOISE, PLAIN): 3,
    (Stage.DENOISE, STUDENT): 1,
    (Stage.ENCODE, PLAIN): 1,
    (Stage.DECODE, PLAIN): 1,
}


def denoise(form: int, bucket: int) -> Recording:
    return Recording(Stage.DENOISE, form, bucket)


@pytest.fixture
def readiness() -> Readiness:
    """With what is needed to serve."""
    readiness = Readiness(BUCKETS, ALONE)
    for recording in readiness.needed:
        readiness.add(recording)
    return readiness


def test_the_largest_of_every_stage_are_needed_and_take_any_tick(readiness: Readiness) -> None:
    assert readiness.needed == [
        denoise(PLAIN, 12),
        Recording(Stage.ENCODE, PLAIN, 4),
        Recording(Stage.DECODE, PLAIN, 4),
        denoise(GATED, 12),
    ]
    for kind, buckets in BUCKETS.items():
        for count in range(1, buckets[-1] + 1):
            assert readiness.look_up(*kind, count).bucket >= count
    assert readiness.take(Stage.DENOISE, STUDENT, 1) == denoise(GATED, 12)
    assert readiness.take(Stage.DENOISE, PLAIN, 1) == denoise(PLAIN, 12)


def test_more_than_the_largest_bucket_are_refused(readiness: Readiness) -> None:
    with pytest.raises(ValueError, match="13 in a tick, the largest bucket is 12"):
        readiness.take(Stage.DENOISE, PLAIN, 13)


def test_what_is_not_recorded_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="1 in a tick, nothing recorded holds as many"):
        Readiness(BUCKETS, ALONE).take(Stage.ENCODE, PLAIN, 1)


def test_a_job_alone_comes_first_and_then_the_small_before_the_large(readiness: Readiness) -> None:
    order = []
    while (recording := readiness.next()) is not None:
        order.append(str(recording))
        readiness.add(recording)
    assert order == [
        "denoise adapter 0 1",
        "encode 1",
        "decode 1",
        "denoise 3",
        "denoise 1",
        "denoise adapter 0 3",
        "denoise gated 3",
        "denoise adapter 0 12",
    ]
    assert readiness.progress == (12, 12)


def test_what_ticks_wanted_comes_before_everything(readiness: Readiness) -> None:
    for count in (2, 3, 2):
        readiness.take(Stage.DENOISE, GATED, count)
    readiness.take(Stage.DENOISE, STUDENT, 7)
    assert readiness.next() == denoise(GATED, 3)
    readiness.add(denoise(GATED, 3))
    assert readiness.next() == denoise(STUDENT, 12)
    readiness.take(Stage.DENOISE, GATED, 3)  # there is one: nothing is wanted
    assert readiness.next() == denoise(STUDENT, 12)
    readiness.forget_wanted()
    assert readiness.next() == denoise(STUDENT, 1)


def test_looking_up_wants_nothing(readiness: Readiness) -> None:
    readiness.look_up(Stage.DENOISE, STUDENT, 12)
    assert readiness.next() == denoise(STUDENT, 1)


def test_a_tick_takes_the_smallest_that_holds_it_and_of_two_its_own_form(readiness: Readiness) -> None:
    readiness.add(denoise(GATED, 3))
    assert readiness.take(Stage.DENOISE, PLAIN, 1) == denoise(GATED, 3)
    assert readiness.take(Stage.DENOISE, STUDENT, 2) == denoise(GATED, 3)
    readiness.add(denoise(PLAIN, 3))
    assert readiness.take(Stage.DENOISE, PLAIN, 1) == denoise(PLAIN, 3)
    readiness.add(denoise(PLAIN, 1))
    assert readiness.take(Stage.DENOISE, PLAIN, 1) == denoise(PLAIN, 1)
    assert readiness.take(Stage.DENOISE, PLAIN, 2) == denoise(PLAIN, 3)
    assert readiness.take(Stage.DENOISE, STUDENT, 1) == denoise(GATED, 3)  # never a plain one


def test_what_cannot_be_recorded_is_not_tried_again(readiness: Readiness) -> None:
    first = readiness.next()
    assert first is not None
    readiness.drop(first)
    assert readiness.next() == Recording(Stage.ENCODE, PLAIN, 1)
    assert readiness.progress == (4, 11)
    readiness.take(Stage.DENOISE, STUDENT, 1)
    assert readiness.next() == Recording(Stage.ENCODE, PLAIN, 1)


def test_an_engine_without_a_job_prepares_at_once() -> None:
    pace = Pace()
    assert pace.wait_s(5.0, is_busy=False) == 0.0
    pace.add(5.0, 7.0, has_more=True)
    assert pace.wait_s(7.0, is_busy=False) == 0.0
    pace.add(7.0, 9.0, has_more=False)
    assert pace.wait_s(9.0, is_busy=False) is None


def test_with_jobs_it_prepares_for_a_share_of_the_time() -> None:
    """Its first part at once: all ticks are padded then."""
    pace, now, spent, end = Pace(), 0.0, 0.0, 1000.0
    assert pace.wait_s(now, is_busy=True) == 0.0
    while now < end:
        wait_s = pace.wait_s(now, is_busy=True)
        assert wait_s is not None
        now += wait_s
        pace.add(now, now + 2.0, has_more=True)
        now, spent = now + 2.0, spent + 2.0
    assert math.isclose(spent / now, SHARE, rel_tol=0.05)


def test_the_gap_between_two_jobs_is_no_idleness() -> None:
    pace = Pace()
    pace.add(0.0, 1.0, has_more=True)
    assert pace.wait_s(2.0, is_busy=True) == pytest.approx(8.0)
    assert pace.wait_s(2.1, is_busy=False) == pytest.approx(IDLE_S - 0.1)
    assert pace.wait_s(2.0 + IDLE_S, is_busy=False) == 0.0
    assert pace.wait_s(9.9, is_busy=True) == pytest.approx(0.1)
    assert pace.wait_s(9.95, is_busy=False) == pytest.approx(0.05)  # the rest has ended before that
