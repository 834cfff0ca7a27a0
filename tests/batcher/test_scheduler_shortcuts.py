"""What makes the scheduler quick changes nothing: each shortcut against the long way round."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.cost_model import CostModel
from steploom_batcher.fairness import Backlog, Flow, Flows
from steploom_batcher.job import Job, JobCosts, State
from steploom_batcher.policy import Choice, TickBuilder
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import JobSpec, Key, Stage, StageCosts, Tick, WorkerProfile
from steploom_loadtest.simulator import Device, Outage, Simulation, simulate
from steploom_loadtest.traces import RequestClass, poisson

KEY = Key("model", (4, 8, 8))
COSTS: StageCosts = {
    Stage.ENCODE: {1: 0.004, 2: 0.006, 4: 0.010},
    Stage.DENOISE: {1: 0.004, 3: 0.006, 6: 0.009, 12: 0.015, 24: 0.028},
    Stage.DECODE: {1: 0.006, 2: 0.009, 4: 0.016},
}
MIX = (
    RequestClass("free", 3, 6, deadline_s=3.0, cancel_share=0.2, cancel_within_s=0.1),
    RequestClass("free", 5, 2, rows=1, deadline_s=0.7),
    RequestClass("pro", 20, 2, deadline_s=6.0, cancel_share=0.2, cancel_within_s=0.3),
)


def denoising_job(number: int, rows: int, crashes: int) -> Job:
    spec = JobSpec(str(number), KEY, "free", 9, rows, 60.0)
    job = Job(spec, JobCosts.of(spec, CostModel(COSTS, 64)), 0.0, 60.0, number, Flow("free", KEY))
    job.move(State.RUNNING)
    job.stage, job.num_crashes = Stage.DENOISE, crashes
    return job


# two in three lists are of equal rows, as most ticks are; a crash is rare, and two make a job a suspect
@given(
    st.one_of(
        st.lists(st.tuples(st.just(3), st.just(0)), min_size=1, max_size=12),
        st.lists(st.tuples(st.just(1), st.sampled_from((0, 0, 0, 2))), min_size=1, max_size=12),
        st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from((0, 0, 0, 1, 2))), min_size=1, max_size=12),
    ),
    st.sampled_from((3, 4, 6, 12, 24)),
)
def test_a_choice_holds_what_filling_the_bucket_gives(jobs: list[tuple[int, int]], bucket: int) -> None:
    mates = [denoising_job(number, rows, crashes) for number, (rows, crashes) in enumerate(jobs)]
    filled = TickBuilder(Stage.DENOISE, bucket).add_all(mates)
    choice = Choice(Stage.DENOISE, mates)
    assert choice.rows(bucket) == filled.rows
    builder = choice.builder(bucket)
    assert (builder.jobs, builder.rows) == (filled.jobs, filled.rows)


@given(
    st.lists(
        st.tuples(st.sampled_from(("free", "pro")), st.floats(0.0, 40.0), st.floats(0.01, 5.0), st.booleans()),
        max_size=60,
    ),
    st.floats(0.0, 45.0),
)
def test_the_backlog_in_blocks_is_the_sum_over_all_work(
    booked: list[tuple[str, float, float, bool]], due: float
) -> None:
    backlog = Backlog()
    left: Counter[tuple[str, int]] = Counter()  # seconds by tier and grain
    for tier, when, seconds, is_done in booked:
        backlog.add(tier, when, seconds)
        if is_done:
            backlog.add(tier, when, -seconds)
        else:
            left[tier, int(when / 0.25)] += seconds  # type: ignore[assignment]
    for tier in ("free", "pro"):
        expected = sum(seconds for (name, grain), seconds in left.items() if name == tier and grain <= int(due / 0.25))
        assert backlog.due_before(tier, due) == pytest.approx(expected, abs=1e-6)
        assert backlog.of(tier) == pytest.approx(
            sum(seconds for (name, _), seconds in left.items() if name == tier), abs=1e-6
        )


@given(st.lists(st.tuples(st.sampled_from((1, 3, 6, 12, 24)), st.floats(0.0005, 0.2)), max_size=20))
def test_what_is_kept_of_a_cost_model_follows_its_estimates(seen: list[tuple[int, float]]) -> None:
    model = CostModel(COSTS, 64)
    spec = JobSpec("a", KEY, "free", 9, 3, 60.0)
    for bucket, seconds in seen:
        for _ in range(2):  # asked before and after: what was kept before is not told after
            fresh = CostModel(model.as_table(), 64)
            assert model.seconds_per_row(Stage.DENOISE) == fresh.seconds_per_row(Stage.DENOISE)
            assert model.full_bucket(Stage.DENOISE, 0.03) == fresh.full_bucket(Stage.DENOISE, 0.03)
            assert JobCosts.of(spec, model) == JobCosts.of(spec, fresh)
            assert [model.bucket(Stage.DENOISE, rows) for rows in (0, 1, 2, 3, 4, 23, 24, 25)] == [
                *(1, 1, 3, 3, 6, 24, 24, 24)
            ]
            model.observe(Stage.DENOISE, bucket, seconds)


def test_a_flow_is_one_object() -> None:
    flows = Flows()
    other = Key("model", (4, 8, 8))
    assert flows.of("free", KEY) is flows.of("free", other)
    assert flows.of("free", KEY) is not flows.of("pro", KEY)
    assert flows.of("free", KEY) is not flows.of("free", Key("other", (4, 8, 8)))


class AsksEverybody(Scheduler):
    """Asks every worker at every call, whether anything has changed there or not."""

    def next_ticks(self, now: float) -> list[Tick]:
        for worker in self._workers.values():
            worker.is_changed = True
        return super().next_ticks(now)


@pytest.mark.parametrize("policy", ["step", "request"])
@pytest.mark.parametrize("delay_s", [0.002, 0.03])
@pytest.mark.parametrize("rate", [15.0, 90.0])
def test_workers_that_are_not_asked_would_have_answered_as_before(
    monkeypatch: pytest.MonkeyPatch, policy: str, delay_s: float, rate: float
) -> None:
    config = SchedulerConfig(policy=policy, max_queue_delay_s=delay_s)
    devices = [
        Device(
            WorkerProfile(f"w{number}", KEY, 8, COSTS),
            {
                stage: {bucket: (0.8 + 0.37 * number) * seconds for bucket, seconds in table.items()}
                for stage, table in COSTS.items()
            },
        )
        for number in range(3)
    ]
    trace = poisson(MIX, rate, 6.0, seed=3)

    def run() -> Simulation:
        outages = (Outage("w1", 1.2345, 2.3456), Outage("w0", 3.4567, 3.5678))
        return simulate(config, devices, trace, outages=outages, poisoned=(5, 40), keep_ticks=True)

    few = run()
    monkeypatch.setattr("steploom_loadtest.simulator.Scheduler", AsksEverybody)
    everybody = run()
    assert few.ticks == everybody.ticks
    assert [job.ended_at for job in few.jobs] == [job.ended_at for job in everybody.jobs]
    assert few.stats == everybody.stats
    assert few.stats.finished > 20
