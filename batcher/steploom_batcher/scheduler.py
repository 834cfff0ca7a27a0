"""The scheduler: pure, synchronous, without a clock.

There is no batch of requests, only rows that are ready; each tick takes the most urgent key, then fills its bucket with
the rows that lose least by going now.

Time comes in as `now`; what is to be done goes out as ticks and effects. An asyncio driver, a discrete-event simulator
and the property tests drive this same object. After every call that changes something, call `next_ticks`; and again
when `wake_at` has come.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from steploom_batcher.admission import Admission
from steploom_batcher.config import SchedulerConfig
from steploom_batcher.cost_model import CostModel
from steploom_batcher.fairness import Backlog, Flow, Flows, Shares
from steploom_batcher.giving_up import GivingUp
from steploom_batcher.job import Job, JobCosts, State
from steploom_batcher.lead import Lead
from steploom_batcher.policy import Policy, RequestPolicy, StepPolicy, TickBuilder, Worker, entries_of
from steploom_batcher.types import (
    Admitted,
    Cause,
    Effect,
    Entry,
    Failed,
    Finished,
    JobSpec,
    Key,
    Outcome,
    Refused,
    Release,
    Requeued,
    SchedulerStats,
    Stage,
    StageCosts,
    Started,
    Status,
    Stepped,
    Tick,
    TierStats,
    WorkerProfile,
    WorkerStats,
)
from steploom_batcher.waiting import WaitingRoom
from steploom_common.guidance import Branch


class Scheduler:
    """Decides which rows run in which tick."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._jobs: dict[str, Job] = {}
        self._waiting = WaitingRoom()
        self._workers: dict[str, Worker] = {}
        # workers expected back, by their places, and since when they are gone
        self._lost: dict[str, tuple[WorkerProfile, float]] = {}
        self._backlog = Backlog()
        self._shares = Shares({name: tier.weight for name, tier in config.tiers.items()}, config.fairness)
        self._policy: Policy = RequestPolicy(config) if config.policy == "request" else StepPolicy(config, self._shares)
        self._admission = Admission(config, self._backlog)
        self._flow_of = Flows()
        self._flows: dict[Flow, int] = {}  # live jobs of each
        self._lineages: dict[Key, str] = {}  # of every key that a worker has had
        self._giving_up = GivingUp(self._jobs)
        self._wake: float | None = None
        self._sequence = itertools.count()
        self._tick_ids = itertools.count(1)
        self._is_draining = False
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._ticks: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Scheduler({len(self._jobs)} jobs, {len(self._workers)} workers, {self._backlog!r})"

    # Jobs

    def submit(self, spec: JobSpec, now: float) -> Admitted | Refused:
        """Takes a job, or says at once why not.

        Raises:
            ValueError: the id is that of a live job, the tier is unknown, or steps or rows are out of bounds.
        """
        self._check(spec)
        self._counts["submitted"] += 1
        model = self._model_for(spec.key, now)
        verdict = self._verdict(spec, model, now)
        if isinstance(verdict, Refused) or model is None:
            assert isinstance(verdict, Refused)
            self._refused[verdict.cause.value] += 1
            return verdict
        due = self._admission.due(spec, now)
        flow = self._flow_of.of(spec.tier, spec.key)
        job = Job(spec, JobCosts.of(spec, model), now, due, next(self._sequence), flow)
        self._jobs[spec.job_id] = job
        self._count_flow(flow, 1)
        self._backlog.add(spec.tier, due, job.work_left_s)
        self._backlog.arrived(spec.tier, job.work_left_s, now)
        self._giving_up.watch(job)
        self._waiting.enter(job)
        self._assign_slots()
        return verdict

    def cancel(self, job_id: str, now: float) -> list[Effect]:
        """Takes a job out. Its slot is released now, or when its last tick in flight is back."""
        del now
        job = self._jobs.get(job_id)
        if job is None or job.state is State.LEAVING:
            return []
        self._counts["cancelled"] += 1
        return self._leave(job)

    def expire(self, now: float) -> list[Effect]:
        """Ends the jobs that are past their deadline, or cannot make it any more."""
        effects: list[Effect] = []
        for job in self._giving_up.due(now):
            self._counts["expired"] += 1
            message = f"not done by its deadline; at {job.progress}"
            effects += [Failed(job.spec.job_id, Cause.DEADLINE, message), *self._leave(job)]
        return effects

    # Workers

    def worker_up(self, profile: WorkerProfile, now: float) -> list[Effect]:
        """A worker can take jobs. Where it comes back with another key, jobs that only it could have run fail.

        Raises:
            ValueError: a worker of that id is up, or it has no usable bucket.
        """
        del now
        if profile.worker_id in self._workers:
            raise ValueError(f"worker {profile.worker_id!r} is up already")
        costs = self._costs_of(profile)
        if costs.buckets(Stage.DENOISE)[-1] < len(Branch):
            raise ValueError(f"worker {profile.worker_id!r} has no bucket for a guided step of {len(Branch)} rows")
        free_slots = list(range(profile.num_slots - 1, -1, -1))
        self._workers[profile.worker_id] = Worker(profile, costs, Lead(self._config.lead_s), free_slots)
        before, _ = self._lost.pop(profile.place, (profile, 0.0))
        self._lineages[profile.key] = profile.lineage
        self._inherit()
        self._assign_slots()
        return [] if before.key == profile.key else self._abandon(before.key)

    def _costs_of(self, profile: WorkerProfile) -> CostModel:
        """As measured; but no more than those of the one whose place it takes, beside whose ticks it was measured."""
        costs = CostModel(profile.costs, self._config.max_rows)
        for other in self._workers.values():
            if (other.profile.place, other.profile.key) == (profile.place, profile.key):
                known, measured = other.costs.as_table(), costs.as_table()
                shared = {stage: known[stage].keys() & measured[stage].keys() for stage in Stage}
                costs.replace(
                    {stage: {b: min(known[stage][b], measured[stage][b]) for b in shared[stage]} for stage in Stage}
                )
        return costs

    def worker_down(self, worker_id: str, now: float) -> list[Effect]:
        """A worker is lost: its jobs go back to the queue and start again from their seeds.

        One whose place another has taken is not expected back.
        """
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        is_replaced = any(other.profile.place == worker.profile.place for other in self._workers.values())
        if not is_replaced:
            self._lost[worker.profile.place] = (worker.profile, now)
        effects = [effect for job in list(worker.jobs.values()) for effect in self._orphan(job)]
        self._inherit()
        self._assign_slots()
        return effects + (self._abandon(worker.profile.key) if is_replaced else [])

    def worker_leaving(self, worker_id: str) -> None:
        """A worker takes no more jobs. Those that it knows run on there; the others wait for another slot."""
        worker = self._workers[worker_id]
        worker.is_leaving = worker.is_changed = True
        worker.batch = [job for job in worker.batch if job.has_begun]
        for job in [job for job in worker.jobs.values() if not job.has_begun]:
            del worker.jobs[job.spec.job_id]
            worker.free_slots.append(job.slot)
            job.restart()
            job.move(State.QUEUED)
            self._waiting.enter(job)
        self._inherit()
        self._assign_slots()

    def reprice(self, worker_id: str, costs: StageCosts) -> None:
        """Buckets of a worker that is up cost something else from now on: seconds, as it has measured them."""
        worker = self._workers[worker_id]
        worker.is_changed = True
        worker.costs.replace(costs)
        announced = worker.profile.costs
        merged = {stage: {**table, **costs.get(stage, {})} for stage, table in announced.items()}
        worker.profile = replace(worker.profile, costs=merged)

    # Ticks: plan, execute, commit

    def next_ticks(self, now: float) -> list[Tick]:
        """What the workers should run now, in the order in which they should get it.

        Asks those of which something has changed, or whose moment has come: the others would answer as before.
        """
        self._assign_slots()
        ticks = []
        workers = self._workers.values()
        asked = [item for item in workers if item.is_changed or (item.ask_at is not None and item.ask_at <= now)]
        if len(asked) > 1:
            asked.sort(key=lambda item: item.busy_until)
        for worker in asked:
            worker.is_changed, worker.ask_at = False, None
            while self._has_room(worker, now):
                builder = self._recover(worker) or self._policy.compose(worker, now)
                if builder is None:
                    worker.ask_at = self._policy.wake_at()
                    break
                ticks.append(self._dispatch(worker, builder, now))
        self._wake = min((item.ask_at for item in workers if item.ask_at is not None), default=None)
        return ticks

    def finish(self, tick_id: int, outcome: Outcome, now: float) -> list[Effect]:
        """Commits a tick that is back: jobs move on, or what failed is split and tried again.

        Jobs whose slots an OK tick names as failed end; a slot that is not in the tick is ignored.
        """
        worker = next((item for item in self._workers.values() if tick_id in item.ticks), None)
        if worker is None:
            return []  # of a worker that was lost meanwhile
        tick = worker.ticks.pop(tick_id)
        worker.is_changed = True
        worker.busy_until = now + sum([item.predicted_s for item in worker.ticks.values()])
        is_held_back = tick_id in worker.held_back
        worker.held_back.discard(tick_id)
        if outcome.status is Status.OK:
            worker.costs.observe(tick.stage, tick.bucket, outcome.seconds)
            if is_held_back:
                worker.lead.learn(outcome.idle_s, outcome.seconds)
        # Ticks in flight behind one that did not run are out of step and are skipped, and so would be one planned among
        # them: only when all are back is every job where the scheduler believes it to be.
        worker.is_flushing = bool(worker.ticks) and (worker.is_flushing or outcome.status is not Status.OK)
        effects: list[Effect] = []
        alive = []
        jobs, leaving = worker.jobs, State.LEAVING
        for entry in tick.entries:
            job = jobs[entry.job_id]
            job.in_flight -= 1
            if job.state is leaving:
                effects += self._free_slot(job) if job.in_flight == 0 else []
            else:
                alive.append((job, entry))
        match outcome.status:
            case Status.OK:
                for job, entry in alive:
                    effects += self._settle(job, entry, tick, outcome, now)
            case Status.FAILED:
                effects += self._split(worker, alive, tick, outcome)
            case Status.SKIPPED:
                self._roll_back(alive, tick)
        return effects

    def wake_at(self) -> float | None:
        """When `expire` and `next_ticks` should be called though nothing has happened."""
        wake, expiry = self._wake, self._giving_up.next_at()
        return wake if expiry is None else expiry if wake is None else min(wake, expiry)

    # State

    def drain(self) -> None:
        """Refuses new jobs from now on; those that are in run to their end."""
        self._is_draining = True

    @property
    def is_draining(self) -> bool:
        """New jobs are refused."""
        return self._is_draining

    @property
    def is_idle(self) -> bool:
        """No job is in."""
        return not self._jobs

    def statistics(self) -> SchedulerStats:
        """Counters since start, and what is queued and running now."""
        running = Counter(job.spec.tier for job in self._jobs.values() if job.state is not State.QUEUED)
        return SchedulerStats(
            tiers={
                name: TierStats(self._waiting.of(name), running[name], tier.max_queued)
                for name, tier in self._config.tiers.items()
            },
            workers={
                name: WorkerStats(
                    worker.profile.num_slots, len(worker.jobs), len(worker.ticks), worker.costs.as_table()
                )
                for name, worker in self._workers.items()
            },
            submitted=self._counts["submitted"],
            admitted=self._counts["submitted"] - self._refused.total(),
            finished=self._counts["finished"],
            failed=self._counts["failed"],
            cancelled=self._counts["cancelled"],
            expired=self._counts["expired"],
            refused=dict(self._refused),
            ticks=dict(self._ticks),
            denoise_rows=self._counts["denoise_rows"],
            padding_rows=self._counts["padding_rows"],
        )

    # Admission

    def _check(self, spec: JobSpec) -> None:
        if spec.job_id in self._jobs:
            raise ValueError(f"job {spec.job_id!r} is running already")
        if spec.tier not in self._config.tiers:
            raise ValueError(f"tier {spec.tier!r} does not exist")
        if spec.steps < 1 or not 1 <= spec.rows <= len(Branch):
            raise ValueError(f"job {spec.job_id!r} has {spec.steps} steps of {spec.rows} rows")

    def _verdict(self, spec: JobSpec, model: CostModel | None, now: float) -> Admitted | Refused:
        if self._is_draining:
            return Refused(Cause.DRAINING, "the service is draining", retry_after_s=1.0)
        if model is None:
            return Refused(Cause.NO_WORKER, "no worker is up", retry_after_s=1.0)
        serving = [worker for worker in self._workers.values() if worker.profile.key == spec.key]
        serving = [worker for worker in serving if not worker.is_leaving] or serving
        num_queued, num_own = self._waiting.of(spec.tier), self._waiting.of_caller(spec.tier, spec.caller)
        return self._admission.decide(spec, JobCosts.of(spec, model), serving, num_queued, num_own, now)

    def _model_for(self, key: Key, now: float) -> CostModel | None:
        """Costs to predict with: those of a worker that serves the key, or of one that is expected back."""
        for worker in self._workers.values():
            if worker.profile.key == key:
                return worker.costs
        for profile, since in self._lost.values():
            if profile.key == key and now - since <= self._config.worker_grace_s:
                return CostModel(profile.costs, self._config.max_rows)
        return None

    # Slots

    def _assign_slots(self) -> None:
        """Gives free slots to waiting jobs, the most urgent first, on the worker that has the most room."""
        while self._waiting:
            heads = [job for job in self._waiting.heads() if self._with_room(job.spec.key)]
            if not heads:
                return
            job = min(heads, key=lambda item: (item.due - self._shares.urgency(item.flow), item.sequence))
            worker = max(self._with_room(job.spec.key), key=lambda item: len(item.free_slots))
            self._waiting.leave(job)
            job.move(State.RUNNING)
            job.worker_id, job.slot = worker.worker_id, worker.free_slots.pop()
            worker.jobs[job.spec.job_id] = job
            worker.is_changed = True

    def _with_room(self, key: Key) -> list[Worker]:
        return [
            worker
            for worker in self._workers.values()
            if worker.free_slots and worker.profile.key == key and not worker.is_leaving
        ]

    def _leave(self, job: Job) -> list[Effect]:
        """Ends a job: at once where no tick names its slot."""
        self._count_flow(job.flow, -1)
        self._backlog.add(job.spec.tier, job.due, -job.work_left_s)
        job.work_left_s = 0.0
        if job.state is State.QUEUED:
            self._waiting.leave(job)
            self._end(job)
            return []
        self._workers[job.worker_id].is_changed = True
        if job.in_flight:
            job.move(State.LEAVING)
            return []
        return self._free_slot(job)

    def _free_slot(self, job: Job) -> list[Effect]:
        worker = self._workers[job.worker_id]
        del worker.jobs[job.spec.job_id]
        worker.free_slots.append(job.slot)
        self._end(job)
        return [Release(job.worker_id, job.slot, job.spec.job_id)]

    def _abandon(self, key: Key) -> list[Effect]:
        """Ends the jobs of a key that no worker has any more, and none that is away will bring back."""
        profiles = [worker.profile for worker in self._workers.values()] + [
            profile for profile, _ in self._lost.values()
        ]
        if any(profile.key == key for profile in profiles):
            return []
        jobs = [job for job in self._jobs.values() if job.spec.key == key]  # all wait: nobody is there to run them
        self._counts["failed"] += len(jobs)
        message = "the worker came back with another model"
        return [
            effect for job in jobs for effect in (Failed(job.spec.job_id, Cause.NO_WORKER, message), *self._leave(job))
        ]

    def _inherit(self) -> None:
        """Jobs that wait for a key that nobody brings back go to another of its lineage: the model with new weights."""
        taking = [worker.profile for worker in self._workers.values() if not worker.is_leaving]
        served = {profile.key for profile in (*taking, *(profile for profile, _ in self._lost.values()))}
        heirs = {profile.lineage: profile.key for profile in taking if profile.lineage}
        wills = {
            flow.key: heirs.get(self._lineages.get(flow.key, "")) for flow in self._flows if flow.key not in served
        }
        if not any(wills.values()):
            return
        for job in self._jobs.values():
            heir = wills.get(job.spec.key)
            if heir is not None and job.state is State.QUEUED:
                self._waiting.leave(job)
                self._count_flow(job.flow, -1)
                job.spec = replace(job.spec, key=heir)
                job.flow = self._flow_of.of(job.spec.tier, heir)
                self._count_flow(job.flow, 1)
                self._waiting.enter(job)

    def _count_flow(self, flow: Flow, change: int) -> None:
        self._flows[flow] = self._flows.get(flow, 0) + change
        if not self._flows[flow]:
            del self._flows[flow]

    def _end(self, job: Job) -> None:
        job.move(State.ENDED)
        del self._jobs[job.spec.job_id]

    def _orphan(self, job: Job) -> list[Effect]:
        """What becomes of a job whose worker is lost."""
        if job.state is State.LEAVING:
            self._end(job)
            return []
        job.num_crashes += job.in_flight > 0
        work_s = job.costs.total(job.costs.work_s, job.spec.steps)
        self._backlog.add(job.spec.tier, job.due, work_s - job.work_left_s)
        job.work_left_s = work_s
        job.restart()
        self._giving_up.watch(job)
        job.move(State.QUEUED)
        self._waiting.enter(job)
        if job.num_crashes < self._config.max_crashes:
            return [Requeued(job.spec.job_id)]
        return self._fail(job, f"{job.num_crashes} workers died while it was running")

    # Planning

    def _has_room(self, worker: Worker, now: float) -> bool:
        """A worker gets its next tick shortly before the last one ends: rows that arrive until then can still join."""
        if not worker.ticks:
            return True
        if worker.is_flushing or len(worker.ticks) >= self._config.ticks_in_flight:
            return False
        plan_at = worker.busy_until - worker.lead.seconds
        if now < plan_at:
            if worker.has_ready:
                worker.is_held_back = True
                worker.ask_at = plan_at
            return False
        return True

    def _recover(self, worker: Worker) -> TickBuilder | None:
        """The next part of a failed tick, with nobody else in it."""
        for part in worker.recovery:
            part[:] = [job for job in part if job.state is State.RUNNING and job.worker_id == worker.worker_id]
        worker.recovery = [part for part in worker.recovery if part]
        if not worker.recovery:
            return None
        part = worker.recovery.pop(0)
        stage = part[0].stage
        assert stage is not None
        return TickBuilder(stage, sum(job.rows for job in part)).add_all(part)

    def _dispatch(self, worker: Worker, builder: TickBuilder, now: float) -> Tick:
        costs = worker.costs
        bucket = costs.bucket(builder.stage, builder.rows)
        tick = Tick(
            tick_id=next(self._tick_ids),
            worker_id=worker.worker_id,
            stage=builder.stage,
            key=worker.profile.key,
            entries=entries_of(builder.jobs, now),
            rows=builder.rows,
            bucket=bucket,
            predicted_s=costs.seconds(builder.stage, bucket),
        )
        worker.ticks[tick.tick_id] = tick
        if worker.is_held_back:
            worker.held_back.add(tick.tick_id)
            worker.is_held_back = False
        worker.busy_until = max(now, worker.busy_until) + tick.predicted_s
        self._charge(builder, tick)
        return tick

    def _charge(self, builder: TickBuilder, tick: Tick) -> None:
        rows: dict[Flow, int] = {}
        is_denoise = tick.stage is Stage.DENOISE
        for job in builder.jobs:
            rows[job.flow] = rows.get(job.flow, 0) + (job.spec.rows if is_denoise else 1)
        self._shares.charge(rows, tick.predicted_s, self._flows)
        self._ticks[tick.stage.name.lower()] += 1
        self._counts["padding_rows"] += tick.bucket - tick.rows
        if tick.stage is Stage.DENOISE:
            self._counts["denoise_rows"] += tick.rows

    # Committing

    def _settle(self, job: Job, entry: Entry, tick: Tick, outcome: Outcome, now: float) -> list[Effect]:
        """A job's part in a tick that ran: it has moved on, or it alone cannot; the others know nothing of that."""
        if outcome.failures and entry.slot in outcome.failures:
            return self._fail(job, outcome.failures[entry.slot])
        return self._commit(job, entry, tick, outcome, now)

    def _fail(self, job: Job, message: str) -> list[Effect]:
        self._counts["failed"] += 1
        return [Failed(job.spec.job_id, Cause.POISON, message), *self._leave(job)]

    def _commit(self, job: Job, entry: Entry, tick: Tick, outcome: Outcome, now: float) -> list[Effect]:
        job.record(tick, outcome.seconds, now)
        stage = tick.stage
        done_s = job.costs.work_s[stage]
        self._backlog.add(job.spec.tier, job.due, -done_s)
        job.work_left_s -= done_s
        if stage is Stage.DENOISE:
            return [Stepped(entry.job_id, entry.step + 1, job.spec.steps)]
        if stage is Stage.ENCODE:
            return [Started(entry.job_id)]
        self._counts["finished"] += 1
        return [Finished(entry.job_id, job.usage(outcome.seconds)), *self._leave(job)]

    def _split(self, worker: Worker, alive: list[tuple[Job, Entry]], tick: Tick, outcome: Outcome) -> list[Effect]:
        """Halves a failed tick until the job that makes it fail is alone; that job fails."""
        self._roll_back(alive, tick)
        jobs = [job for job, _ in alive]
        if len(tick.entries) == 1 and jobs:
            return self._fail(jobs[0], outcome.error)
        middle = (len(jobs) + 1) // 2
        worker.recovery += [part for part in (jobs[:middle], jobs[middle:]) if part]
        return []

    def _roll_back(self, alive: list[tuple[Job, Entry]], tick: Tick) -> None:
        for job, entry in alive:
            job.roll_back(tick.stage, entry.step)
            self._giving_up.watch(job)
