"""What the scheduler decides, case by case."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from scheduler_model import COSTS, KEY, ModelWorker, profile, spec

from steploom_batcher.config import SchedulerConfig, TierConfig
from steploom_batcher.cost_model import CostModel
from steploom_batcher.fairness import Backlog, Flow, Shares
from steploom_batcher.job import IllegalMoveError, Job, JobCosts, State
from steploom_batcher.policy import TickBuilder
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import (
    Admitted,
    Cause,
    Effect,
    Failed,
    Finished,
    JobSpec,
    Key,
    Outcome,
    Refused,
    Release,
    Requeued,
    Stage,
    Started,
    Status,
    Tick,
)


class Bench:
    """A scheduler, one model worker, and the effects so far."""

    def __init__(self, num_slots: int = 8, **settings: object) -> None:
        self.scheduler = Scheduler(SchedulerConfig(**{"max_queue_delay_s": 0.0, "ticks_in_flight": 1, **settings}))  # type: ignore[arg-type]
        self.worker = ModelWorker(profile(num_slots=num_slots), set())
        self.scheduler.worker_up(self.worker.profile, 0.0)
        self.specs: dict[str, JobSpec] = {}
        self.effects: list[Effect] = []
        self.now = 0.0

    def submit(self, job: JobSpec) -> Admitted | Refused:
        self.specs[job.job_id] = job
        return self.scheduler.submit(job, self.now)

    def admit(self, *jobs: JobSpec) -> None:
        for job in jobs:
            assert isinstance(self.submit(job), Admitted)

    def plan(self) -> list[Tick]:
        ticks = self.scheduler.next_ticks(self.now)
        self.worker.queue += ticks
        return ticks

    def tick(self) -> Tick:
        """Plans and runs one tick."""
        if not self.worker.queue:
            self.plan()
        tick, outcome = self.worker.run({job_id: job.steps for job_id, job in self.specs.items()})
        self.now += tick.predicted_s
        self.effects += self.scheduler.finish(tick.tick_id, outcome, self.now)
        return tick

    def run(self) -> list[Tick]:
        """Until nothing is left to do."""
        ticks = []
        while self.worker.queue or self.plan():
            ticks.append(self.tick())
        return ticks

    def finished(self) -> list[str]:
        return [effect.job_id for effect in self.effects if isinstance(effect, Finished)]


def jobs_of(tick: Tick) -> list[str]:
    return [entry.job_id for entry in tick.entries]


def test_one_job_goes_through_its_stages() -> None:
    bench = Bench()
    bench.admit(spec("a", steps=3))
    stages = [(tick.stage, tick.entries[0].step, tick.rows) for tick in bench.run()]
    assert stages == [
        (Stage.ENCODE, 0, 1),
        (Stage.DENOISE, 0, 3),
        (Stage.DENOISE, 1, 3),
        (Stage.DENOISE, 2, 3),
        (Stage.DECODE, 0, 1),
    ]
    (done,) = [effect for effect in bench.effects if isinstance(effect, Finished)]
    assert done.usage.ticks == 5
    assert done.usage.mean_rows_per_tick == 3
    assert bench.scheduler.is_idle


def test_a_short_job_joins_a_long_one_between_its_steps() -> None:
    bench = Bench()
    bench.admit(spec("long", steps=20, deadline=60))
    for _ in range(5):
        bench.tick()
    bench.admit(spec("short", "free", steps=2, deadline=5))
    ticks = bench.run()
    assert bench.finished() == ["short", "long"]
    shared = [tick for tick in ticks if len(tick.entries) == 2]
    assert [(tick.rows, tick.stage) for tick in shared] == [(6, Stage.DENOISE)] * 2
    assert {entry.step for entry in shared[0].entries} == {0, 4}


def test_the_request_policy_makes_a_short_job_wait_for_the_batch() -> None:
    bench = Bench(policy="request")
    bench.admit(spec("long", steps=20, deadline=60))
    for _ in range(5):
        bench.tick()
    bench.admit(spec("short", "free", steps=2, deadline=5))
    bench.run()
    assert bench.finished() == ["long", "short"]


def test_the_request_policy_batches_jobs_of_equal_step_count() -> None:
    bench = Bench(policy="request")
    bench.admit(spec("a", steps=4), spec("b", steps=2), spec("c", steps=4))
    denoise = [jobs_of(tick) for tick in bench.run() if tick.stage is Stage.DENOISE]
    assert denoise == [["a", "c"]] * 4 + [["b"]] * 2


def test_what_is_due_first_goes_first() -> None:
    bench = Bench(max_rows=3)  # one job a tick
    bench.admit(spec("late", steps=1, deadline=9.0), spec("soon", steps=1, deadline=3.0), spec("mid", deadline=6.0))
    bench.run()
    assert bench.finished() == ["soon", "mid", "late"]


def test_a_far_deadline_does_not_make_a_job_wait_longer_than_its_tier_allows() -> None:
    tiers = {"free": TierConfig(deadline_s=2.0), "pro": TierConfig(deadline_s=30.0)}
    bench = Bench(max_rows=3, tiers=tiers)
    bench.admit(spec("patient", "free", steps=1, deadline=900))
    for index in range(6):
        bench.admit(spec(f"u{index}", "pro", steps=30, deadline=30))
    bench.run()
    assert bench.finished()[0] == "patient"


def test_tiers_share_by_weight_when_both_are_backlogged() -> None:
    tiers = {"free": TierConfig(weight=1.0, max_queued=999), "pro": TierConfig(weight=3.0, max_queued=999)}
    bench = Bench(max_rows=3, tiers=tiers, num_slots=16)
    bench.admit(*[spec(f"f{i}", "free", steps=5, deadline=60) for i in range(200)])
    bench.admit(*[spec(f"p{i}", "pro", steps=5, deadline=60) for i in range(200)])
    ticks = [bench.tick() for _ in range(800)]
    pro = sum(jobs_of(tick)[0].startswith("p") for tick in ticks)
    assert 0.70 < pro / len(ticks) < 0.80


def test_jobs_end_one_after_the_other_and_not_all_at_the_last_moment() -> None:
    bench = Bench(num_slots=30)
    bench.admit(*[spec(f"j{index:02}", steps=10, deadline=60) for index in range(24)])
    in_progress = set()
    while not bench.scheduler.is_idle:
        in_progress |= set(jobs_of(bench.tick()))
        assert len(in_progress - set(bench.finished())) <= 8, "24 rows fill a tick: more jobs need not begin"
    assert bench.finished() == sorted(bench.finished())


@pytest.mark.parametrize(("steps", "expected"), [(2, Stage.DENOISE), (30, Stage.DECODE)])
def test_a_decode_waits_for_others_only_where_they_are_about_to_end(steps: int, expected: Stage) -> None:
    bench = Bench(num_slots=32)
    bench.admit(spec("first", steps=1, deadline=50))
    bench.admit(*[spec(f"j{index:02}", steps=steps, deadline=60) for index in range(20)])
    while not any(entry.job_id == "first" for entry in bench.tick().entries):
        pass  # encoded
    while bench.scheduler._jobs["first"].stage is not Stage.DECODE:
        bench.tick()
    assert bench.tick().stage is expected
    while "first" not in bench.finished():
        bench.tick()
    assert bench.now < 0.5, "it waits for a few ticks at most"
    bench.run()
    assert len(bench.finished()) == 21


def test_a_job_that_has_begun_is_not_set_back_by_what_another_tier_is_owed() -> None:
    tiers = {"free": TierConfig(weight=1.0, deadline_s=5.0), "pro": TierConfig(weight=1000.0, deadline_s=30.0)}
    bench = Bench(max_rows=3, tiers=tiers, fairness=1000.0)
    bench.admit(spec("begun", "free", steps=10, deadline=5.0))
    bench.tick()
    bench.admit(spec("owed", "pro", steps=10, deadline=30.0), spec("next", "free", steps=10, deadline=5.1))
    bench.run()
    assert bench.finished() == ["begun", "owed", "next"]


def test_a_tick_is_full_where_more_rows_hardly_pay() -> None:
    costs = CostModel({**COSTS, Stage.DENOISE: {3: 0.010, 6: 0.012, 12: 0.020, 24: 0.040}}, 64)
    assert costs.full_bucket(Stage.DENOISE, gain=0.05) == 12  # in 24 a row costs as much
    assert costs.full_bucket(Stage.DENOISE, gain=0.30) == 6  # within 30 % of the cheapest
    assert costs.best_bucket(Stage.DENOISE, rows=24, gain=0.05) == 12
    assert costs.best_bucket(Stage.DENOISE, rows=4, gain=0.05) == 6  # two of its rows are padding
    assert costs.best_bucket(Stage.DENOISE, rows=3, gain=0.05) == 3


def running_job(name: str, rows: int) -> Job:
    """One that waits for a denoise tick."""
    costs = JobCosts.of(spec(name), CostModel(COSTS, 64))
    job = Job(spec(name, rows=rows), costs, 0.0, 60.0, 0, Flow("free", KEY))
    job.move(State.RUNNING)
    job.plan(0.0)
    assert job.stage is Stage.DENOISE
    return job


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        ([1, 1, 3, 3, 3], [1, 1, 3, 3]),  # the third would be a row too many, and one row less leaves one unused
        ([1, 1, 1, 1, 3, 3], [1, 1, 1, 3, 3]),
        ([1, 1, 1, 1, 1, 3, 3], [1, 1, 1, 3, 3]),
        ([1] * 8 + [3], [1, 1, 1, 1, 1, 1, 3]),
        ([3, 3, 1, 1], [3, 3, 1, 1]),  # nothing is too large
        ([1, 2, 3, 2, 3], [1, 2, 3, 3]),
    ],
    ids=str,
)
def test_the_last_of_the_small_make_way_where_rows_come_out_even(rows: list[int], taken: list[int]) -> None:
    builder = TickBuilder(Stage.DENOISE, 9).add_all([running_job(str(number), n) for number, n in enumerate(rows)])
    assert [job.rows for job in builder.jobs] == taken
    assert builder.rows == sum(taken)
    assert builder.jobs[0].spec.job_id == "0", "the most urgent stays"


def test_a_tick_grows_where_a_smaller_one_would_have_rows_that_nobody_can_use() -> None:
    denoise = {1: 0.030, 3: 0.066, 6: 0.120, 9: 0.174, 12: 0.228, 24: 0.444}
    scheduler = Scheduler(SchedulerConfig(max_queue_delay_s=0.0, ticks_in_flight=1, batch_gain=0.08))
    scheduler.worker_up(dataclasses.replace(profile(num_slots=8), costs={**COSTS, Stage.DENOISE: denoise}), 0.0)
    for name, rows in {"f": 1, "g": 1, "p": 3, "q": 3, "r": 3}.items():
        assert isinstance(scheduler.submit(spec(name, rows=rows, deadline=900.0), 0.0), Admitted)
    while (tick := scheduler.next_ticks(0.0)[0]).stage is Stage.ENCODE:
        scheduler.finish(tick.tick_id, Outcome(Status.OK, seconds=tick.predicted_s), 0.0)
    assert (tick.rows, tick.bucket) == (11, 12), "in 9 there are two of one row and two of three: 8"


def test_a_tight_deadline_keeps_ticks_small() -> None:
    bench = Bench(num_slots=16)
    bench.admit(*[spec(f"slow{i}", steps=30, deadline=900) for i in range(7)])
    for _ in range(8):
        bench.tick()
    bench.admit(spec("tight", steps=10, deadline=bench.now + 0.02 + 10 * 0.014 + 0.02 + 0.04))
    while "tight" not in bench.finished():
        tick = bench.tick()
        assert "tight" in jobs_of(tick)
    assert bench.now <= bench.specs["tight"].deadline


def test_what_cannot_finish_in_time_is_refused_with_the_prediction() -> None:
    bench = Bench()
    verdict = bench.submit(spec("a", steps=30, deadline=0.1))
    assert isinstance(verdict, Refused)
    assert verdict.cause is Cause.DEADLINE
    assert verdict.predicted_s == pytest.approx(0.02 + 30 * 0.014 + 0.02)
    bench.admit(*[spec(f"b{i}", steps=30, deadline=1.5) for i in range(5)])
    verdict = bench.submit(spec("c", steps=30, deadline=0.55))
    assert isinstance(verdict, Admitted), "work that is due later does not count"
    verdict = bench.submit(spec("d", steps=30, deadline=1.5))
    assert isinstance(verdict, Refused)
    assert verdict.cause is Cause.DEADLINE
    assert verdict.retry_after_s > 0


def test_a_full_queue_refuses() -> None:
    tiers = {"free": TierConfig(max_queued=1), "pro": TierConfig(max_queued=0)}
    bench = Bench(num_slots=1, tiers=tiers)
    bench.admit(spec("slot", "pro"))
    full = bench.submit(spec("p", "pro"))
    assert isinstance(full, Refused)
    assert full.cause is Cause.QUEUE_FULL
    assert full.message == "0 jobs of tier 'pro' wait already"
    bench.admit(spec("f", "free"))
    assert isinstance(bench.submit(spec("g", "free")), Refused)
    bench.run()
    assert bench.finished() == ["slot", "f"]
    assert bench.scheduler.statistics().refused == {"queue_full": 2}


def test_one_caller_cannot_fill_the_queue_of_all() -> None:
    bench = Bench(num_slots=1, tiers={"free": TierConfig(max_queued=9, max_queued_per_token=2), "pro": TierConfig()})

    def of(caller: str, name: str, tier: str = "free") -> JobSpec:
        return dataclasses.replace(spec(name, tier), caller=caller)

    bench.admit(of("web", "slot"), of("web", "w1"), of("web", "w2"))
    full = bench.submit(of("web", "w3"))
    assert isinstance(full, Refused)
    assert full.cause is Cause.CALLER_QUEUE_FULL
    assert full.message == "2 jobs of tier 'free' wait already that are of token 'web'"
    assert full.retry_after_s > 0
    bench.admit(of("other", "o1"), of("web", "p1", "pro"), *(of("", f"n{i}") for i in range(4)))
    bench.scheduler.cancel("w1", bench.now)
    bench.admit(of("web", "w4"))
    assert isinstance(bench.submit(of("web", "w5")), Refused)
    bench.run()
    bench.admit(*(of("web", f"again{i}") for i in range(3)))
    assert bench.scheduler.statistics().refused == {"caller_queue_full": 2}
    bench.run()
    assert not bench.scheduler._waiting._counts_of_callers  # nothing is kept of callers that have no job


def test_without_a_worker_jobs_are_refused_unless_one_is_expected_back() -> None:
    scheduler = Scheduler(SchedulerConfig(worker_grace_s=10.0))
    assert scheduler.submit(spec("a"), 0.0) == Refused(Cause.NO_WORKER, "no worker is up", 1.0)
    scheduler.worker_up(profile(), 1.0)
    scheduler.worker_down("w0", 2.0)
    assert isinstance(scheduler.submit(spec("b"), 11.0), Admitted)
    refused = scheduler.submit(spec("c"), 13.0)
    assert isinstance(refused, Refused)
    assert refused.cause is Cause.NO_WORKER


def test_jobs_of_a_model_that_is_gone_fail_at_once() -> None:
    other = Key("another", (4, 32, 32))
    bench = Bench(num_slots=1)
    bench.scheduler.worker_up(profile("w1", 1), 0.0)
    bench.admit(*(spec(name, deadline=1e9) for name in "abc"))
    bench.scheduler.worker_down("w0", 0.0)
    assert bench.scheduler.worker_up(profile("w0", 8, other), 0.0) == [], "w1 runs them still"
    bench.scheduler.worker_down("w1", 0.0)
    bench.scheduler.expire(1e6)
    assert not bench.scheduler.is_idle, "w1 may come back as it was"
    effects = bench.scheduler.worker_up(profile("w1", 1, other), 1e6)
    assert [(item.job_id, item.cause) for item in effects if isinstance(item, Failed)] == [
        (name, Cause.NO_WORKER) for name in "abc"
    ]
    assert bench.scheduler.is_idle
    assert bench.scheduler.statistics().failed == 3
    assert bench.scheduler.next_ticks(1e6) == []


def test_a_poisoned_job_fails_alone() -> None:
    bench = Bench()
    bench.worker.poisoned.add("bad")
    bench.admit(*[spec(name, steps=4) for name in ("a", "b", "bad", "c", "d")])
    bench.run()
    assert sorted(bench.finished()) == ["a", "b", "c", "d"]
    assert [(item.job_id, item.cause) for item in bench.effects if isinstance(item, Failed)] == [("bad", Cause.POISON)]
    assert bench.scheduler.statistics().failed == 1


def test_a_failed_tick_with_another_in_flight_rolls_both_back() -> None:
    bench = Bench(ticks_in_flight=3, lead_s=10.0)
    bench.worker.poisoned.add("bad")
    bench.admit(spec("a", steps=5), spec("bad", steps=5), spec("b", steps=5))
    bench.run()
    assert sorted(bench.finished()) == ["a", "b"]


@pytest.mark.parametrize("since", [(Stage.ENCODE, 0), (Stage.DENOISE, 2), (Stage.DECODE, 0)])
def test_a_job_that_fails_in_a_tick_that_ran_ends_and_the_others_go_on(since: tuple[Stage, int]) -> None:
    bench = Bench(ticks_in_flight=3, lead_s=10.0)
    bench.worker.overflows["bad"] = since
    bench.admit(*[spec(name, steps=4) for name in ("a", "bad", "b")])
    ticks = bench.run()
    assert [item for item in bench.effects if isinstance(item, Failed)] == [Failed("bad", Cause.POISON, "not finite")]
    assert sorted(bench.finished()) == ["a", "b"]
    planned = Counter(job_id for tick in ticks for job_id in jobs_of(tick))
    assert (planned["a"], planned["b"]) == (6, 6)
    stats = bench.scheduler.statistics()
    assert (stats.finished, stats.failed, stats.workers["w0"].slots_used) == (2, 1, 0)


def test_a_job_that_fails_keeps_its_slot_until_its_last_tick_in_flight_is_back() -> None:
    bench = Bench(ticks_in_flight=3, lead_s=10.0)
    bench.worker.overflows["bad"] = (Stage.ENCODE, 0)
    bench.admit(spec("a", steps=9), spec("bad", steps=9))
    bench.plan()
    assert [jobs_of(tick) for tick in bench.worker.queue] == [["a", "bad"]] * 3
    released = []
    for _ in range(3):
        bench.effects.clear()
        bench.tick()
        released.append([item.job_id for item in bench.effects if isinstance(item, Release)])
        assert jobs_of(bench.plan()[0]) == ["a"], "planning goes on at once, without the job"
    assert released == [[], [], ["bad"]]


def test_a_cancelled_job_that_fails_too_was_only_cancelled() -> None:
    bench = Bench()
    bench.worker.overflows["bad"] = (Stage.ENCODE, 0)
    bench.admit(spec("bad"))
    bench.plan()
    bench.scheduler.cancel("bad", 0.0)
    bench.run()
    assert [type(item) for item in bench.effects] == [Release]
    stats = bench.scheduler.statistics()
    assert (stats.cancelled, stats.failed) == (1, 0)


def test_a_failure_of_a_slot_that_is_not_in_the_tick_is_nobodys() -> None:
    bench = Bench()
    bench.admit(spec("a"), spec("b"))
    (tick,) = bench.scheduler.next_ticks(0.0)
    outcome = Outcome(Status.OK, 0.1, failures={7: "not finite"})
    assert bench.scheduler.finish(tick.tick_id, outcome, 0.1) == [Started("a"), Started("b")]


def test_a_tick_with_a_job_that_fails_tells_what_its_bucket_costs() -> None:
    costs = []
    for failures in ({}, {0: "not finite"}):
        bench = Bench()
        bench.admit(spec("a"), spec("b"))
        (tick,) = bench.scheduler.next_ticks(0.0)
        bench.scheduler.finish(tick.tick_id, Outcome(Status.OK, 0.5, failures=failures), 0.5)
        costs.append(bench.scheduler._workers["w0"].costs.seconds(Stage.ENCODE, 2))
    assert costs[0] == costs[1] > COSTS[Stage.ENCODE][2]


def test_jobs_that_have_ended_leave_nothing_behind() -> None:
    bench = Bench(num_slots=1)
    bench.admit(spec("running", deadline=1e6), spec("waiting", deadline=1.0))
    for number in range(2000):
        bench.admit(spec(f"cancelled{number}", deadline=1e6))
        bench.scheduler.cancel(f"cancelled{number}", 0.0)
    assert len(bench.scheduler._giving_up) < 100
    assert sum(len(heap) for heap in bench.scheduler._waiting._heaps.values()) < 100
    bench.run()
    assert bench.finished() == ["running", "waiting"]


def test_a_job_that_kills_workers_is_isolated_then_failed() -> None:
    bench = Bench(max_crashes=3)
    bench.admit(spec("a", steps=4), spec("killer", steps=4))
    for crash in range(3):
        ticks = bench.scheduler.next_ticks(bench.now)
        while "killer" not in jobs_of(ticks[0]):
            (tick,) = ticks
            bench.scheduler.finish(tick.tick_id, Outcome(Status.OK, tick.predicted_s), bench.now)
            ticks = bench.scheduler.next_ticks(bench.now)
        assert len(ticks[0].entries) == (2 if crash < 2 else 1), "after two crashes it runs alone"
        bench.effects += bench.scheduler.worker_down("w0", bench.now)
        bench.scheduler.worker_up(profile(), bench.now)
    assert [item.job_id for item in bench.effects if isinstance(item, Failed)] == ["killer"]
    assert [item.job_id for item in bench.effects if isinstance(item, Requeued)].count("a") == 3
    bench.worker = ModelWorker(profile(), set())
    bench.run()
    assert bench.finished() == ["a"]


def test_an_idle_worker_waits_for_company_only_where_it_pays() -> None:
    bench = Bench(max_queue_delay_s=0.002)
    bench.admit(spec("a", steps=10))
    assert bench.plan() == []
    assert bench.scheduler.wake_at() == pytest.approx(0.002)
    bench.now = 0.001
    bench.admit(spec("b", steps=10))
    bench.now = 0.002
    (tick,) = bench.plan()
    assert jobs_of(tick) == ["a", "b"]

    no_gain = {**COSTS, Stage.DENOISE: {3: 0.010, 6: 0.020}}
    scheduler = Scheduler(SchedulerConfig(max_queue_delay_s=0.002))
    lone = profile()
    scheduler.worker_up(type(lone)("w0", KEY, 4, no_gain), 0.0)
    scheduler.submit(spec("c", steps=10), 0.0)
    assert len(scheduler.next_ticks(0.0)) >= 1, "rows that cost the same together and apart need not wait"


@pytest.mark.parametrize("policy", ["step", "request"])
def test_a_wait_for_company_ends_with_the_job_that_waits(policy: str) -> None:
    bench = Bench(max_queue_delay_s=0.002, policy=policy)
    bench.admit(spec("a", steps=10))
    assert bench.plan() == []
    bench.scheduler.cancel("a", 0.001)
    bench.now = 0.001
    assert bench.plan() == []
    assert bench.scheduler.wake_at() is None, "a driver would wake for nothing, without end"


def test_the_next_tick_is_planned_shortly_before_the_last_one_ends() -> None:
    bench = Bench(ticks_in_flight=2, lead_s=0.005)
    bench.admit(spec("a", steps=3))
    (encode,) = bench.plan()
    assert encode.predicted_s == 0.02
    assert bench.scheduler.wake_at() == pytest.approx(0.015)
    bench.now = 0.014
    assert bench.plan() == []
    bench.admit(spec("b", steps=3))  # still in time for the next tick
    bench.now = 0.0151
    assert len(bench.plan()) == 1


def test_a_tick_that_was_held_back_and_came_late_makes_the_next_be_planned_earlier() -> None:
    bench = Bench(ticks_in_flight=2, lead_s=0.005)
    for name in "ab":
        bench.admit(spec(name, steps=9))
    (worker,) = bench.scheduler._workers.values()
    leads = []
    for idle_s in (0.5, 0.0, 0.02, 0.0):
        while not worker.ticks:
            bench.plan()
        bench.plan()  # too early: it is held back
        bench.now = worker.busy_until - worker.lead.seconds + 1e-6
        bench.plan()
        first = next(iter(worker.ticks.values()))
        bench.now = worker.busy_until
        bench.scheduler.finish(first.tick_id, Outcome(Status.OK, first.predicted_s, idle_s=idle_s), bench.now)
        leads.append(worker.lead.seconds)
    assert leads[0] == 0.005  # the first tick of all was not held back, whatever it found
    assert leads[2] == pytest.approx(0.045, rel=0.02)
    assert leads[3] < leads[2]


def test_a_hopeless_job_is_given_up_and_its_slot_freed() -> None:
    bench = Bench(num_slots=1)
    bench.admit(spec("a", steps=30, deadline=0.5))
    bench.now = 0.4  # the worker was stuck: 0.46 s of work are left, and 0.1 s to do it in
    effects = bench.scheduler.expire(bench.now)
    assert [type(effect).__name__ for effect in effects] == ["Failed", "Release"]
    assert bench.scheduler.statistics().expired == 1
    assert bench.scheduler.is_idle


def test_states_follow_their_table() -> None:
    job = Job(spec("a"), JobCosts.of(spec("a"), CostModel(COSTS, 64)), 0.0, 60.0, 0, Flow("free", KEY))
    job.move(State.RUNNING)
    job.move(State.LEAVING)
    with pytest.raises(IllegalMoveError, match="from LEAVING to RUNNING"):
        job.move(State.RUNNING)
    assert job.state is State.LEAVING


def test_shares_owe_what_a_flow_did_not_get() -> None:
    shares = Shares({"free": 1.0, "pro": 3.0}, gain=10.0)
    free, pro = Flow("free", KEY), Flow("pro", KEY)
    shares.charge({free: 6}, 1.0, [free, pro])
    assert shares.credit(pro) == pytest.approx(0.75)
    assert shares.credit(free) == pytest.approx(-0.75)
    assert shares.urgency(pro) == pytest.approx(7.5)
    shares.charge({free: 3}, 1.0, [free])
    assert shares.credit(pro) == 0.0, "a flow that has no jobs is owed nothing"


def test_the_backlog_counts_what_is_due_before() -> None:
    backlog = Backlog()
    backlog.add("free", 1.0, 0.5)
    backlog.add("free", 10.0, 2.0)
    backlog.add("pro", 1.0, 4.0)
    assert backlog.due_before("free", 1.0) == 0.5
    assert backlog.due_before("free", 10.0) == 2.5
    backlog.add("free", 1.0, -0.5)
    assert backlog.due_before("free", 5.0) == 0.0
    assert backlog.total_s == 6.0


def test_the_rate_of_arriving_work_is_an_average_that_forgets() -> None:
    backlog = Backlog()
    for second in range(120):
        backlog.arrived("pro", 0.5, float(second))
    assert backlog.rate("pro", 120.0) == pytest.approx(0.5, rel=0.05)
    assert backlog.rate("pro", 300.0) < 0.01
    assert backlog.rate("free", 120.0) == 0.0


def test_admission_counts_what_other_tiers_will_get_meanwhile() -> None:
    tiers = {"free": TierConfig(weight=1.0, deadline_s=3.0), "pro": TierConfig(weight=3.0, deadline_s=60.0)}
    bench = Bench(num_slots=64, tiers=tiers, margin=0.0)
    alone = bench.submit(spec("a", "free", steps=40, deadline=3.0))
    assert isinstance(alone, Admitted)
    bench.admit(*[spec(f"p{index}", "pro", steps=100, deadline=60.0) for index in range(8)])
    beside = bench.submit(spec("b", "free", steps=40, deadline=3.0))
    assert isinstance(beside, Admitted)
    work_s = 40 * 3 * 0.056 / 24 + 2 * 0.05 / 4  # of one such job on a busy device
    assert beside.predicted_s == pytest.approx(2 * work_s * (1 + 3), rel=0.01), "the pro tier has thrice the weight"


def test_a_bucket_that_was_measured_too_slow_is_corrected_by_larger_ones() -> None:
    costs = CostModel({**COSTS, Stage.DENOISE: {3: 0.010, 6: 0.050, 12: 0.020, 24: 0.060}}, 64)
    costs.observe(Stage.DENOISE, 12, 0.020)
    assert costs.seconds(Stage.DENOISE, 6) == pytest.approx(0.020)
    assert costs.seconds(Stage.DENOISE, 24) == 0.060
    for _ in range(60):
        costs.observe(Stage.DENOISE, 12, 0.080)
    assert costs.seconds(Stage.DENOISE, 24) == pytest.approx(0.080, rel=0.01)


def test_one_tick_during_which_the_machine_stalled_changes_little() -> None:
    costs = CostModel(COSTS, 64)
    costs.observe(Stage.DENOISE, 1, 5.0)
    assert [costs.seconds(Stage.DENOISE, rows) for rows in (1, 24)] == pytest.approx([0.011, COSTS[Stage.DENOISE][24]])
    assert costs.full_bucket(Stage.DENOISE, 0.08) == 24
    for _ in range(40):
        costs.observe(Stage.DENOISE, 24, 0.56)
    assert costs.seconds(Stage.DENOISE, 24) > 0.5, "a device that is slower from now on"


def test_costs_follow_measurements() -> None:
    costs = CostModel(COSTS, 64)
    for _ in range(60):
        costs.observe(Stage.DENOISE, 3, 0.028)
    assert costs.seconds(Stage.DENOISE, 3) == pytest.approx(0.028, rel=0.01)
    assert costs.seconds(Stage.DENOISE, 7) == COSTS[Stage.DENOISE][12]
    with pytest.raises(ValueError, match="no denoise bucket"):
        CostModel(COSTS | {Stage.DENOISE: {12: 0.1}}, max_rows=3)
