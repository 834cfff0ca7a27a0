"""The soak's judgement, on figures and pages whose truth is known; and a short soak of real processes."""

from __future__ import annotations

import random

import pytest

from steploom_loadtest import soak
from steploom_loadtest.books import Books
from steploom_loadtest.soak import FILES, Plan, Seen, Series, problems
from steploom_loadtest.steadiness import Bound, slope, trend

MIB = 2**20
TIMES = [float(second) for second in range(0, 600)]


def noisy(level: float, rise: float, seed: int = 3) -> list[float]:
    """A figure that rises by so much over the time, with noise, and now and then something else altogether."""
    dice = random.Random(seed)
    values = [level + rise * at / TIMES[-1] + dice.gauss(0, MIB) for at in TIMES]
    for place in dice.sample(range(len(values)), len(values) // 10):
        values[place] += dice.uniform(0, 200 * MIB)
    return values


def test_a_slope_is_that_of_most_pairs() -> None:
    assert slope([0, 1, 2, 3, 4], [1, 3, 5, 7, 1000]) == 2
    assert slope([0], [7]) == 0
    assert slope([], []) == 0


@pytest.mark.parametrize("rise", [0, -50 * MIB, 2 * MIB])
def test_what_stays_or_falls_is_flat_whatever_its_noise(rise: float) -> None:
    assert trend(TIMES, noisy(100 * MIB, rise), soak.BYTES).is_flat


@pytest.mark.parametrize("rise", [20 * MIB, 100 * MIB])
def test_what_leaks_is_not(rise: float) -> None:
    seen = trend(TIMES, noisy(100 * MIB, rise), soak.BYTES)
    assert not seen.is_flat
    assert seen.rise == pytest.approx(rise, rel=0.2)


def test_a_trend_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample"):
        trend([], [], Bound(1))


PAGE = """# TYPE steploom_gateway_in_flight gauge
steploom_gateway_in_flight {open}
# TYPE steploom_gateway_requests counter
steploom_gateway_requests_total{{method="Edit",tier="free",status="OK"}} {ok}
steploom_gateway_requests_total{{method="EditStream",tier="pro",status="{status}"}} 3.0
# TYPE steploom_batcher_submitted counter
steploom_batcher_submitted_total {submitted}
# TYPE steploom_batcher_refused counter
steploom_batcher_refused_total{{cause="queue_full"}} 2.0
# TYPE steploom_batcher_ended counter
steploom_batcher_ended_total{{outcome="finished"}} {finished}
steploom_batcher_ended_total{{outcome="cancelled"}} 2.0
steploom_batcher_ended_total{{outcome="failed"}} {failed}
"""
GOOD = {"open": 0, "ok": 10, "status": "CANCELLED", "submitted": 15, "finished": 11, "failed": 0}


def page(**other: object) -> str:
    return PAGE.format(**{**GOOD, **other})


def test_books_that_add_up() -> None:
    books = Books(page())
    assert not [*books.mistakes({"OK": 9})]
    assert (books.submitted, books.refused, books.outcomes["finished"]) == (15, 2, 11)


@pytest.mark.parametrize(
    ("other", "told", "words"),
    [
        ({"open": 1}, {}, "steploom_gateway_in_flight is 1 when all is quiet"),
        ({"submitted": 16}, {}, "16 jobs came, 2 were refused and 13 ended"),
        ({"status": "INTERNAL"}, {}, "requests ended with INTERNAL: 3 as the gateway counts"),
        ({}, {"UNAVAILABLE": 2}, "requests ended with UNAVAILABLE: 0 as the gateway counts, 2 as callers were told"),
        ({"failed": 1, "submitted": 16}, {}, "1 jobs failed"),
        ({}, {"OK": 11}, "callers got 11 pictures, the gateway counts 10"),
        ({"finished": 9, "submitted": 13}, {}, "9 jobs were drawn, 10 were answered"),
        ({"finished": 14, "submitted": 18}, {}, "14 jobs were drawn, 10 were answered and 3 calls cancelled"),
    ],
)
def test_books_that_do_not(other: dict[str, object], told: dict[str, int], words: str) -> None:
    assert any(mistake.startswith(words) for mistake in Books(page(**other)).mistakes(told))


def seen_of(files: list[float], resident: list[float]) -> Seen:
    seen = Seen(page=page(), num_cancelled=1, num_left=1, num_killed=1)
    seen.told["OK"] = 9
    seen.processes = {1: Series("gateway", TIMES, resident, files)}
    return seen


def test_a_process_that_grows_or_keeps_files_open_fails_the_run() -> None:
    plan, flat = Plan(TIMES[-1]), noisy(100 * MIB, 0)
    few = [20.0] * len(TIMES)
    many = [20.0 + at / 20 for at in TIMES]
    assert problems(seen_of(few, flat), plan) == []
    assert problems(seen_of(many, flat), plan)[0].startswith("open files of gateway rose by 20")
    assert problems(seen_of(few, noisy(100 * MIB, 90 * MIB)), plan)[0].startswith("bytes of gateway rose by")


def test_what_the_warm_up_takes_does_not_count() -> None:
    plan = Plan(TIMES[-1])
    filling = [min(at, 150.0) for at in TIMES]
    assert filling[-1] > FILES.least
    assert problems(seen_of(filling, noisy(0, 0)), plan) == []


def test_a_run_without_a_fault_proves_nothing() -> None:
    seen = seen_of([20.0] * len(TIMES), noisy(0, 0))
    seen.num_killed = 0
    assert problems(seen, Plan(TIMES[-1])) == ["the run was too short for a cancel, a lost caller and a killed worker"]


def test_a_short_soak(capfd: pytest.CaptureFixture[str]) -> None:
    code = soak.main(["--minutes", "0.12", "--kill-every", "2"])
    said = capfd.readouterr()
    assert code == 0, said.out + said.err
    assert "workers killed: " in said.out
    assert "worker-0" in said.out
