"""Which jobs a worker's next tick takes, and in which order they fill it.

`StepPolicy` is Steploom's: every tick is composed anew from whatever rows are ready. `RequestPolicy` is how a server
that batches whole requests works, kept as the baseline of every comparison: jobs of equal step count form a batch, the
batch runs to its end, and only then does the next one start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.cost_model import CostModel
from steploom_batcher.fairness import Flow, Shares
from steploom_batcher.job import Job, State
from steploom_batcher.lead import Lead
from steploom_batcher.types import Entry, Stage, Tick, WorkerProfile

# A job that was in the ticks of this many dying workers runs alone from then on: if it is what kills them, it takes no
# other job with it.
_SUSPECT_CRASHES = 2

# Denoise ticks that may go before a job's encode or decode, so that more jobs share it.
_MAX_POSTPONED = 3


@dataclass(eq=False)
class Worker:
    """A worker that is up: its free slots, its jobs, and the ticks it holds, oldest first."""

    profile: WorkerProfile
    costs: CostModel
    lead: Lead
    free_slots: list[int]
    jobs: dict[str, Job] = field(default_factory=dict)
    ticks: dict[int, Tick] = field(default_factory=dict)
    recovery: list[list[Job]] = field(default_factory=list)  # parts of failed ticks: they run first, by themselves
    batch: list[Job] = field(default_factory=list)  # request policy: what runs to its end
    is_leaving: bool = False  # it takes no more jobs
    is_flushing: bool = False  # a tick did not run: nothing is planned until all in flight are back
    busy_until: float = 0.0  # predicted end of the last tick in flight
    is_held_back: bool = False  # its next tick could be planned, and is not yet
    held_back: set[int] = field(default_factory=set)  # ticks in flight that were
    is_changed: bool = True  # since it was asked for ticks last
    ask_at: float | None = None  # when to ask again though nothing has changed

    @property
    def worker_id(self) -> str:
        """As announced."""
        return self.profile.worker_id

    @property
    def has_ready(self) -> bool:
        """A tick could be planned."""
        running = State.RUNNING
        for job in self.jobs.values():  # noqa: SIM110 - as a loop it takes half the time, and it is asked for often
            if job.state is running and job.stage is not None:
                return True
        return False

    def ready(self) -> list[Job]:
        """Jobs that a tick can take now."""
        running = State.RUNNING
        return [job for job in self.jobs.values() if job.state is running and job.stage is not None]


class TickBuilder:
    """Owns a tick's row budget while it is filled with jobs of one stage and key."""

    def __init__(self, stage: Stage, max_rows: int) -> None:
        self.stage = stage
        self.rows = 0
        self.jobs: list[Job] = []
        self.max_rows = max_rows

    def __repr__(self) -> str:
        return f"TickBuilder({self.stage.name}, rows={self.rows}/{self.max_rows})"

    def try_add(self, job: Job) -> bool:
        """Takes the job if its rows fit."""
        if job.stage is not self.stage or self.rows + job.rows > self.max_rows:
            return False
        if self.jobs and (is_suspect(job) or is_suspect(self.jobs[0])):
            return False
        self.jobs.append(job)
        self.rows += job.rows
        return True

    def take(self, jobs: Sequence[Job], rows: int) -> None:
        """Takes jobs that are known to fit, and how many rows they have."""
        self.jobs, self.rows = [*jobs], rows

    def add_all(self, jobs: Iterable[Job]) -> TickBuilder:
        """Tries the jobs in order: one that does not fit leaves room for smaller ones behind it, or takes their place.

        The last of the smaller ones make way where the rows come out even then: rows that nobody uses cost as much.
        """
        too_large = []
        for job in jobs:
            if self.rows == self.max_rows:
                return self
            if not self.try_add(job):
                too_large.append(job)
        for job in too_large:
            if self._make_way(job):
                return self
        return self

    def _make_way(self, job: Job) -> bool:
        """Fills the last row by taking a job in place of the last smaller ones, but never of the first job."""
        excess = self.rows + job.rows - self.max_rows
        gone: list[Job] = []
        smaller = job.rows - 1
        for other in reversed(self.jobs[1:]):
            rows = other.rows
            if rows <= excess and rows <= smaller:
                gone.append(other)
                excess -= rows
        if excess or is_suspect(job) or is_suspect(self.jobs[0]):
            return False
        self.jobs = [*(other for other in self.jobs if other not in gone), job]
        self.rows = self.max_rows
        return True


class Choice:
    """Jobs of one stage, in order, for a tick whose bucket is not chosen yet: how many rows each would hold.

    Where all jobs have as many rows, or all fit, that takes no filling: most ticks are so.
    """

    def __init__(self, stage: Stage, jobs: Sequence[Job]) -> None:
        self._stage = stage
        self._jobs = jobs
        sizes = [job.spec.rows for job in jobs] if stage is Stage.DENOISE else [1] * len(jobs)
        self.ready = sum(sizes)  # rows of all
        self._has_suspect = any(job.num_crashes for job in jobs)
        self._size = sizes[0] if sizes.count(sizes[0]) == len(sizes) else 0  # of each; 0: they differ
        self._filled: TickBuilder | None = None

    def rows(self, bucket: int) -> int:
        """Rows that a tick of this bucket would have."""
        if not self._has_suspect:
            if self.ready <= bucket:
                return self.ready
            if self._size:
                return bucket - bucket % self._size
        return self.builder(bucket).rows

    def builder(self, bucket: int) -> TickBuilder:
        """The tick of this bucket."""
        if self._filled is None or self._filled.max_rows != bucket:
            self._filled = TickBuilder(self._stage, bucket)
            if self._has_suspect or (self.ready > bucket and not self._size):
                self._filled.add_all(self._jobs)
            else:
                self._filled.take(self._jobs[: bucket // self._size] if self._size else self._jobs, self.rows(bucket))
        return self._filled


def is_suspect(job: Job) -> bool:
    """Workers died with this job in a tick, more than once."""
    return job.num_crashes >= _SUSPECT_CRASHES


class Policy(Protocol):
    """How a worker's next tick is composed."""

    def compose(self, worker: Worker, now: float) -> TickBuilder | None:
        """The jobs of the next tick; None where nothing should run now."""

    def wake_at(self) -> float | None:
        """When a tick that waits for company goes all the same."""


class StepPolicy:
    """There is no batch of requests, only rows that are ready.

    Each tick takes the most urgent job and fills up with others of its stage and key in order of urgency, to the row
    count where a row costs nearly the least it can, but no further than the urgent job's slack allows. Three rules keep
    that good under overload too:

    - The order is by due time, not by slack: with least slack first, jobs of equal deadlines take turns and all end
      late, where by due time they end one after the other.
    - What a flow is owed counts when a job begins, not while it runs: a job that has begun is not set back until its
      deadline is lost, and its work with it.
    - A flow has no more jobs in progress than fill a tick: more would make each tick no fuller and each job later.
    """

    def __init__(self, config: SchedulerConfig, shares: Shares) -> None:
        self._config = config
        self._shares = shares
        self._company = Company(config)

    def compose(self, worker: Worker, now: float) -> TickBuilder | None:
        self._company.forget()
        ready = worker.ready()
        if not ready or self._company.is_awaited(worker, ready, now):
            return None
        startable = self._startable(self._in_order(ready), worker.costs)
        lead = self._lead(startable, worker, now)
        stage = lead.stage
        mates = [job for job in startable if job.stage is stage]
        return self._fill(worker.costs, lead, mates, now)

    def wake_at(self) -> float | None:
        return self._company.until

    def _in_order(self, jobs: Sequence[Job]) -> list[Job]:
        """The most urgent first: what its flow is owed counts for a job that has not begun."""
        urgency, encode = self._shares.urgency, Stage.ENCODE
        keyed = [(job.due - urgency(job.flow) if job.stage is encode else job.due, job.sequence, job) for job in jobs]
        keyed.sort()  # no two have one sequence: jobs themselves are never compared
        return [job for _, _, job in keyed]

    def _lead(self, jobs: Sequence[Job], worker: Worker, now: float) -> Job:
        """Whose stage runs: the most urgent job's, with two exceptions.

        Where its denoise tick would not be full, jobs that can begin and join it are encoded first. Where its encode or
        decode tick would not be full, a denoise tick may go before it, so that more jobs come to share it.
        """
        lead, gain = jobs[0], self._config.batch_gain
        denoise = Stage.DENOISE
        rowed = [job for job in jobs if job.stage is denoise]
        if not rowed:
            return lead
        rows = sum([job.spec.rows for job in rowed])
        if lead.stage is Stage.DENOISE:
            fresh = next((job for job in jobs if job.stage is Stage.ENCODE), None)
            has_time = now + worker.costs.seconds(Stage.ENCODE, 1) <= lead.latest_start
            if fresh is None or not has_time or rows >= worker.costs.full_bucket(Stage.DENOISE, gain):
                return lead
            lead = fresh
        if self._can_wait(lead, jobs, worker, now):
            lead.num_postponed += 1
            return rowed[0]
        return lead

    def _can_wait(self, lead: Job, jobs: Sequence[Job], worker: Worker, now: float) -> bool:
        """Whether an encode or decode tick should let one denoise tick go first, for company.

        Company comes from jobs that are about to end: they decode, and leave rows to jobs that wait to be encoded. One
        tick for all saves device time, and every job on the worker waits less for it; the jobs at hand wait more.
        """
        costs, gain, stage = worker.costs, self._config.batch_gain, lead.stage
        assert stage is not None
        count = sum(job.stage is stage for job in jobs)
        ending = sum(lead.num_postponed + job.steps_left - 1 < _MAX_POSTPONED for job in jobs if job.steps_left)
        held_back = len(worker.jobs) - len(jobs) if stage is Stage.ENCODE else ending
        company = min(ending, held_back, costs.full_bucket(stage, gain) - count)
        if company <= 0:
            return False
        rows = sum(job.rows for job in jobs if job.stage is Stage.DENOISE)
        wait_s = costs.seconds(Stage.DENOISE, min(rows, costs.full_bucket(Stage.DENOISE, gain)))
        saved_s = costs.seconds(stage, count) + costs.seconds(stage, company) - costs.seconds(stage, count + company)
        return lead.latest_start - now >= wait_s and saved_s * len(worker.jobs) > wait_s * count

    def _startable(self, jobs: Sequence[Job], costs: CostModel) -> list[Job]:
        """Leaves out jobs that need not begin yet: those of their flow that are due before them fill a tick."""
        full = costs.full_bucket(Stage.DENOISE, self._config.batch_gain)
        encode, decode = Stage.ENCODE, Stage.DECODE
        rows: dict[Flow, int] = {}
        startable = []
        for job in jobs:
            stage = job.stage
            if stage is not decode:
                begun = rows.get(job.flow, 0)
                if stage is encode and begun >= full:
                    continue
                rows[job.flow] = begun + job.spec.rows
            startable.append(job)
        return startable

    def _fill(self, costs: CostModel, lead: Job, mates: Sequence[Job], now: float) -> TickBuilder:
        """The tick whose rows cost least each, but no larger than it need be to be full.

        A job that is late already cannot be saved by small ticks, so it does not shrink them.
        """
        stage = mates[0].stage
        assert stage is not None
        slack = lead.latest_start - now
        limit_s = costs.seconds(stage, lead.rows) + slack / lead.ticks_left if slack >= 0 else float("inf")
        full_s = (1.0 + self._config.batch_gain) * costs.seconds_per_row(stage)
        choice = Choice(stage, mates)
        lead_rows, ready = lead.rows, choice.ready
        best, least_s = 0, float("inf")
        for bucket in costs.buckets(stage):
            seconds = costs.seconds(stage, bucket)
            if bucket < lead_rows or (best and seconds > limit_s):
                continue
            rows = choice.rows(bucket)
            if seconds / rows < least_s:
                best, least_s = bucket, seconds / rows
            if least_s <= full_s or rows == ready:
                break
        return choice.builder(best or lead_rows)


class RequestPolicy:
    """A batch forms once, from the oldest request and others of the same step count, and runs to its end."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._company = Company(config)

    def compose(self, worker: Worker, now: float) -> TickBuilder | None:
        self._company.forget()
        worker.batch = [job for job in worker.batch if job.state is State.RUNNING and job.stage is not None]
        if not worker.batch and not self._form(worker, now):
            return None
        # all of the batch is at one step: those that lag, because a stage has smaller buckets, catch up first
        progress = min((job.stage or Stage.DECODE, job.step) for job in worker.batch)
        mates = [job for job in worker.batch if (job.stage, job.step) == progress]
        return TickBuilder(progress[0], worker.costs.buckets(progress[0])[-1]).add_all(mates)

    def wake_at(self) -> float | None:
        return self._company.until

    def _form(self, worker: Worker, now: float) -> bool:
        """Fills the worker's batch; False where there is nothing to run, or company is awaited."""
        waiting = sorted(worker.ready(), key=lambda job: job.sequence)
        mates = [job for job in waiting if _shape(job) == _shape(waiting[0])]
        if not mates or self._company.is_awaited(worker, mates, now):
            return False
        lead = mates[0]
        rows = len(mates) * lead.spec.rows
        bucket = worker.costs.best_bucket(Stage.DENOISE, rows, self._config.batch_gain)
        worker.batch = mates[: max(1, bucket // lead.spec.rows)]
        return True


def _shape(job: Job) -> tuple[int, int]:
    """What is equal in all jobs of a batch: steps and rows."""
    return job.spec.steps, job.spec.rows


class Company:
    """Whether an idle worker should wait a moment, because more jobs may come and a fuller tick pays."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._max_delay = config.max_queue_delay_s
        self.until: float | None = None  # end of the wait that was decided last

    def forget(self) -> None:
        """Before each decision: a wait that outlives its reason would wake the caller again and again."""
        self.until = None

    def is_awaited(self, worker: Worker, jobs: Sequence[Job], now: float) -> bool:
        """Only where the worker has nothing else to do, and none of the jobs has begun or would come too late."""
        if worker.ticks or any(job.stage is not Stage.ENCODE for job in jobs):
            return False
        until = min(job.submitted for job in jobs) + self._max_delay
        if now >= until:
            return False
        if min(job.latest_start for job in jobs) < until or not self._pays(worker.costs, jobs):
            return False
        self.until = until
        return True

    def _pays(self, costs: CostModel, jobs: Sequence[Job]) -> bool:
        """One more job like these would save more, by sharing their ticks, than the wait of all of them."""
        together = costs.bucket(Stage.ENCODE, len(jobs) + 1)
        if together <= len(jobs):
            return False  # no room for one more
        saved = 0.0
        for job in jobs:
            own = job.spec.rows
            apart = 2 * costs.seconds(Stage.DENOISE, own)
            saved += job.spec.steps * (apart - costs.seconds(Stage.DENOISE, 2 * own))
        return saved / len(jobs) > self._max_delay * len(jobs)


def entries_of(jobs: Sequence[Job], now: float) -> tuple[Entry, ...]:
    """Plans each job's part."""
    return tuple([job.plan(now) for job in jobs])
