"""What is slow is told from what is stuck."""

from __future__ import annotations

import threading

import pytest

from steploom_engine_worker.pulse import Pulse, Watch

PATIENCE_S = 60.0


def looks(pulse: Pulse, *times: float) -> list[bool]:
    return [bool(pulse.overdue(now)) for now in times]


def test_a_thread_that_is_at_nothing_is_never_stuck() -> None:
    assert looks(Pulse("driving"), 0.0, 1.0, 2.0, 1000.0) == [False] * 4


def test_one_thing_for_too_long_is_stuck_and_says_at_what() -> None:
    pulse = Pulse("driving")
    with pulse.at("tick 7 (denoise)", 3.0):
        assert looks(pulse, 0.0, 1.0, 2.0, 3.0) == [False] * 4
        assert pulse.overdue(4.0) == "the driving thread has been at tick 7 (denoise) for 4 s"
    assert looks(pulse, 5.0, 6.0) == [False] * 2


def test_many_short_things_are_no_long_one() -> None:
    """They follow each other so closely that no look finds the thread at nothing."""
    pulse = Pulse("driving")
    for now in range(100):
        with pulse.at("tick", 3.0):
            assert not pulse.overdue(now)


def test_what_is_within_something_has_its_own_limit() -> None:
    pulse = Pulse("driving")
    with pulse.at("a tick", 2.0):
        with pulse.at("a preparation", 100.0):
            assert looks(pulse, *range(50)) == [False] * 50
        assert looks(pulse, 50.0, 51.0, 52.0, 53.0) == [False, False, False, True]


def test_a_machine_that_stands_still_makes_nobody_stuck() -> None:
    pulse = Pulse("driving")
    with pulse.at("a tick", 30.0):
        assert looks(pulse, 0.0, 1.0, 600.0, 601.0) == [False] * 4


def test_a_watch_tells_once_and_an_ended_one_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steploom_engine_worker.pulse._LOOK_S", 0.01)
    told: list[str] = []
    stuck = threading.Event()

    def tell(what: str) -> None:
        told.append(what)
        stuck.set()

    pulse, ended = Pulse("driving"), Pulse("landing")
    watch, other = Watch([pulse], tell, lambda: None), Watch([ended], tell, lambda: None)
    with pulse.at("a tick", 0.0), ended.at("a tick", 0.0):
        other.end()
        other.start()
        watch.start()
        assert stuck.wait(PATIENCE_S)
        watch._thread.join(PATIENCE_S)
        other._thread.join(PATIENCE_S)
    assert len(told) == 1
    assert told[0].startswith("the driving thread has been at a tick")
