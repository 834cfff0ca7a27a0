"""How the moment at which a worker's next tick is planned follows what the device says."""

from __future__ import annotations

import pytest

from steploom_batcher.lead import Lead


def test_a_tick_that_came_too_late_makes_it_longer() -> None:
    lead = Lead(0.005)
    lead.learn(idle_s=0.008, seconds=0.025)
    assert lead.seconds == pytest.approx(0.021)


@pytest.mark.parametrize(("idle_s", "seconds"), [(0.0, 0.025), (0.0004, 0.001), (0.004, 0.3)])
def test_a_moment_beside_a_tick_is_in_time(idle_s: float, seconds: float) -> None:
    lead = Lead(0.005)
    lead.learn(0.1, seconds)
    before = lead.seconds
    lead.learn(idle_s, seconds)
    assert lead.seconds < before


def test_it_stays_between_its_bounds() -> None:
    lead = Lead(0.005)
    for _ in range(20):
        lead.learn(1.0, 0.025)
    assert lead.seconds == 0.1
    for _ in range(2000):
        lead.learn(0.0, 0.025)
    assert lead.seconds == 0.005
    longer = Lead(0.5)  # than what is learned at most
    longer.learn(1.0, 0.025)
    assert longer.seconds == 0.5


def test_it_settles_where_the_device_hardly_waits() -> None:
    """A tick comes 8 ms after it is planned, and the device is 15 ms sooner done than predicted."""
    lead, idle_s = Lead(0.005), 0.0
    for tick in range(2000):
        waited_s = max(0.0, 0.008 + 0.015 - lead.seconds)
        lead.learn(waited_s, 0.025)
        idle_s += waited_s if tick >= 20 else 0.0
    assert idle_s / (1980 * 0.025) < 0.02
    assert lead.seconds < 0.03
