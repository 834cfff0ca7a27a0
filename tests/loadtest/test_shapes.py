"""How many users there are when."""

from __future__ import annotations

from steploom_loadtest.shapes import Day, Ramp, Spike


def test_a_spike_comes_and_goes() -> None:
    spike = Spike(base=4, peak=40, at_s=20.0, peak_s=10.0, total_s=60.0)
    moments = (0.0, 19.9, 20.0, 29.9, 30.0, 59.9, 60.0)
    assert [spike.users(moment) for moment in moments] == [4, 4, 40, 40, 4, 4, None]


def test_a_day_goes_from_midnight_over_noon_to_midnight() -> None:
    day = Day(low=2, high=20, day_s=120.0, days=2.0)
    assert [day.users(moment) for moment in (0.0, 30.0, 60.0, 90.0, 120.0, 180.0, 240.0)] == [
        2,
        11,
        20,
        11,
        2,
        20,
        None,
    ]


def test_a_ramp_rises_until_answers_take_too_long() -> None:
    ramp = Ramp(step=4, step_s=10.0, most=100, factor=3.0)
    assert ramp.users(0.0, {}) == 4
    assert ramp.users(9.0, {"free": 50.0}) == 4
    assert ramp.users(10.0, {"free": 60.0, "pro": None}) == 8
    assert ramp.first_ms == {"free": 60.0}
    assert ramp.users(20.0, {"free": 180.0, "pro": 900.0}) == 12  # three times as long is not too long; pro is new
    assert ramp.users(25.0, {"free": 181.0, "pro": 900.0}) is None
    assert ramp.knee == 8  # of the last step before
    assert ramp.users(26.0, {"free": 50.0}) is None


def test_each_kind_of_request_is_held_against_itself() -> None:
    ramp = Ramp(step=4, step_s=10.0, most=100, factor=3.0)
    assert ramp.users(10.0, {"free": 60.0, "pro": 900.0}) == 8
    assert ramp.users(15.0, {"free": 60.0, "pro": 2800.0}) is None


def test_a_ramp_ends_at_the_most_users() -> None:
    ramp = Ramp(step=4, step_s=10.0, most=8, factor=3.0)
    assert [ramp.users(moment, {"free": 50.0}) for moment in (0.0, 10.0, 20.0)] == [4, 8, None]
    assert ramp.knee is None
