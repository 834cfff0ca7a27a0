"""The supervisor's state machine, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steploom.backoff import Backoff
from steploom.lifecycle import GiveUp, Lifecycle, Restart, State, Stopped

BACKOFF = Backoff(min_s=0.2, max_s=10.0, stable_s=30.0)


def life(start_tries: int = 5) -> Lifecycle:
    return Lifecycle(BACKOFF, start_tries, random=lambda: 1.0)


def up(service: Lifecycle, now: float = 0.0) -> Lifecycle:
    service.started()
    service.ready(now)
    return service


def test_delays_double_up_to_the_bound() -> None:
    delays = [BACKOFF.delay(crashes, lambda: 1.0) for crashes in range(1, 9)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 10**6), st.floats(0.0, 1.0))
def test_jitter_keeps_between_half_and_all(crashes: int, share: float) -> None:
    whole = BACKOFF.delay(crashes, lambda: 1.0)
    assert whole / 2 <= BACKOFF.delay(crashes, lambda: share) <= whole <= BACKOFF.max_s


def test_a_crashed_service_is_started_again() -> None:
    service = up(life())
    assert service.exited(-9, now=1.0) == Restart(0.2)
    assert service.state is State.WAITING
    service.started()
    assert (service.state, service.restarts) == (State.STARTING, 1)


def test_crashes_in_a_row_wait_longer_and_a_stable_time_forgets_them() -> None:
    service = up(life(), now=0.0)
    assert service.exited(1, now=1.0) == Restart(0.2)
    up(service, now=2.0)
    assert service.exited(1, now=31.9) == Restart(0.4)
    up(service, now=33.0)
    assert service.exited(1, now=63.0) == Restart(0.2)


def test_a_configuration_error_at_the_start_ends_everything() -> None:
    service = life()
    service.started()
    verdict = service.exited(2, now=0.5)
    assert isinstance(verdict, GiveUp)
    assert verdict.exit_code == 2
    assert service.state is State.ENDED


def test_the_same_exit_code_after_it_was_up_is_a_crash() -> None:
    assert isinstance(up(life()).exited(2, now=1.0), Restart)


def test_a_service_that_never_comes_up_is_given_up() -> None:
    service = life(start_tries=3)
    verdicts = []
    for now in range(3):
        service.started()
        verdicts.append(service.exited(-11, now))
    assert verdicts[:2] == [Restart(0.2), Restart(0.4)]
    assert isinstance(verdicts[2], GiveUp)
    assert "3 times" in verdicts[2].reason
    assert "signal 11" in verdicts[2].reason


def test_a_service_that_was_up_once_is_never_given_up() -> None:
    service = up(life(start_tries=1))
    for now in range(50):
        assert isinstance(service.exited(1, now), Restart)
        service.started()


def test_an_end_that_was_asked_for_is_no_crash() -> None:
    service = up(life())
    service.stop()
    assert service.exited(-15, now=1.0) == Stopped()
    assert service.state is State.ENDED


def test_stopping_while_waiting_needs_no_process() -> None:
    service = up(life())
    service.exited(1, now=1.0)
    service.stop()
    assert service.state is State.ENDED


def test_asking_twice_is_asking_once() -> None:
    service = up(life())
    service.stop()
    service.stop()
    assert service.exited(0, now=1.0) == Stopped()
    service.stop()
    assert service.state is State.ENDED


def test_an_illegal_move_raises_and_changes_nothing() -> None:
    service = life()
    with pytest.raises(ValueError, match="not started cannot become up"):
        service.ready(0.0)
    assert service.state is State.IDLE
