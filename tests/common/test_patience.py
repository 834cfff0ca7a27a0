"""How long a wait counts."""

from __future__ import annotations

import pytest

from steploom_common.patience import Overdue, Patience


def test_waiting_adds_up_until_something_is_heard() -> None:
    patience = Patience(look_s=1.0)
    assert [patience.look(10.0 + turn) for turn in range(4)] == [0.0, 1.0, 2.0, 3.0]
    patience.heard()
    assert [patience.look(20.0), patience.look(21.0)] == [0.0, 1.0]


def test_a_look_that_comes_late_does_not_count_in_full() -> None:
    """Whoever was frozen has heard nothing meanwhile."""
    patience = Patience(look_s=1.0)
    patience.look(0.0)
    assert patience.look(600.0) == 2.0
    assert patience.look(601.0) == 3.0


@pytest.mark.parametrize(("predicted_s", "limit_s"), [(0.01, 60.0), (3.0, 60.0), (10.0, 200.0)])
def test_what_is_slow_gets_more_time(predicted_s: float, limit_s: float) -> None:
    assert Overdue(least_s=60.0, times=20.0).limit_s(predicted_s) == limit_s
