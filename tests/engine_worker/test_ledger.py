"""Which ticks may run, and what they change."""

from __future__ import annotations

import pytest

from steploom_engine_worker.commands import Admit, Picture, Tick
from steploom_engine_worker.engine import Stage
from steploom_engine_worker.ledger import IllegalMove, Ledger, Verdict


def admit(slot: int, steps: int = 2) -> Admit:
    return Admit(f"job-{slot}", slot, "x", Picture(1, 1, b"abc"), None, steps, 7.5, 1.5, 0)


def tick(stage: Stage, slots: list[int], steps: list[int] | None = None) -> Tick:
    return Tick(1, stage, slots, steps or [])


def verdict(ledger: Ledger, *arguments: object) -> Verdict:
    return ledger.judge(tick(*arguments))[0]  # type: ignore[arg-type]


def run(ledger: Ledger, *arguments: object) -> None:
    assert verdict(ledger, *arguments) is Verdict.RUN
    ledger.commit(tick(*arguments))  # type: ignore[arg-type]


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger(4)
    ledger.admit(admit(0))
    ledger.admit(admit(3))
    return ledger


def test_a_job_goes_through_its_stages_once(ledger: Ledger) -> None:
    course = [(Stage.ENCODE, []), (Stage.DENOISE, [0]), (Stage.DENOISE, [1]), (Stage.DECODE, [])]
    for place, (stage, steps) in enumerate(course):
        for other, (other_stage, other_steps) in enumerate(course):
            if other != place:
                assert verdict(ledger, other_stage, [0], other_steps) is Verdict.SKIP
        run(ledger, stage, [0], steps)
    assert all(verdict(ledger, stage, [0], steps) is Verdict.SKIP for stage, steps in course)
    assert verdict(ledger, Stage.DENOISE, [0], [2]) is Verdict.SKIP  # one more than its steps


def test_one_job_at_another_step_skips_the_whole_tick(ledger: Ledger) -> None:
    run(ledger, Stage.ENCODE, [0, 3])
    run(ledger, Stage.DENOISE, [3], [0])
    assert verdict(ledger, Stage.DENOISE, [0, 3], [0, 0]) is Verdict.SKIP
    assert verdict(ledger, Stage.DENOISE, [0, 3], [0, 1]) is Verdict.RUN
    assert verdict(ledger, Stage.DENOISE, [0, 1], [0, 0]) is Verdict.SKIP  # slot 1 is free


def test_a_broken_job_fails_its_ticks_with_the_reason(ledger: Ledger) -> None:
    ledger.break_slot(0, "steps is 0")
    assert ledger.judge(tick(Stage.ENCODE, [0, 3])) == (Verdict.FAIL, "steps is 0")
    assert verdict(ledger, Stage.ENCODE, [3]) is Verdict.RUN


@pytest.mark.parametrize(
    "wrong",
    [
        tick(Stage.ENCODE, []),
        tick(Stage.ENCODE, [0, 0]),
        tick(Stage.ENCODE, [0], [0]),
        tick(Stage.DENOISE, [0, 3], [0]),
        tick(Stage.DENOISE, [0]),
    ],
    ids=repr,
)
def test_a_malformed_tick_fails(ledger: Ledger, wrong: Tick) -> None:
    found, reason = ledger.judge(wrong)
    assert found is Verdict.FAIL
    assert reason.startswith("the tick ")


def test_illegal_moves_change_nothing(ledger: Ledger) -> None:
    for slot, problem in ((0, "slot 0 holds job 'job-0'"), (4, "there is no slot 4"), (-1, "there is no slot -1")):
        with pytest.raises(IllegalMove, match=problem):
            ledger.admit(admit(slot))
    with pytest.raises(IllegalMove, match="slot 1 is free"):
        ledger.release(1)
    assert ledger.used == [0, 3]


def test_a_released_slot_takes_another_job(ledger: Ledger) -> None:
    run(ledger, Stage.ENCODE, [0])
    ledger.release(0)
    assert verdict(ledger, Stage.DENOISE, [0], [0]) is Verdict.SKIP
    ledger.admit(admit(0, steps=1))
    run(ledger, Stage.ENCODE, [0])
    assert ledger.statistics() == {"free": 2, "encoded": 1, "admitted": 1}


def test_nothing_that_is_said_of_a_job_holds_its_picture(ledger: Ledger) -> None:
    assert "abc" not in repr(ledger[0])
    assert "abc" not in ledger.judge(tick(Stage.DECODE, [0]))[1]
