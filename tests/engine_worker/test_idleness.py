"""For how long a device has nothing to do."""

from __future__ import annotations

from steploom_engine_worker.idleness import Idleness


def test_it_is_idle_between_the_last_end_and_the_next_start() -> None:
    now = 0.0
    idleness = Idleness(lambda: now)
    assert idleness.begin() == 0.0  # the first
    now = 1.0
    assert idleness.begin() == 0.0  # beside it
    now = 2.0
    idleness.end()
    now = 3.0
    assert idleness.begin() == 0.0  # the second is still under way
    idleness.end()
    idleness.end()
    now = 4.5
    assert idleness.begin() == 1.5
