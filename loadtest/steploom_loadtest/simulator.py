"""A discrete-event simulator around the very scheduler that serves.

An event heap is the clock: arrivals, cancels, ends of ticks and outages happen at their moments, the scheduler is told,
and plans; workers run what they get in order and take their time from a cost table. Nothing waits, so a simulated hour
costs what its scheduling costs. It makes the calls of the asyncio driver in the same order, and so the same ticks.

A `Node` is one batcher with its workers. Several of them behind one door are in `fleet.py`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import (
    Effect,
    Failed,
    Finished,
    JobSpec,
    Outcome,
    Refused,
    SchedulerStats,
    Stage,
    StageCosts,
    Status,
    Tick,
    Usage,
    WorkerProfile,
)
from steploom_loadtest.traces import Arrival

_MAX_TURNS = 10_000  # at one moment; more mean that the scheduler asks to be woken for nothing


class End(Enum):
    """How a request ended."""

    FINISHED = "finished"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class JobResult:
    """What became of one arrival."""

    job_id: str  # its place in the trace
    arrival: Arrival
    end: End | None = None  # None while it lives
    ended_at: float = 0.0  # seconds of the simulation
    cause: str = ""  # of a refusal or a failure
    usage: Usage | None = None  # of a finished one

    @property
    def latency_s(self) -> float:
        """From arrival to end."""
        return self.ended_at - self.arrival.at


@dataclass(frozen=True)
class Device:
    """A simulated worker."""

    profile: WorkerProfile
    costs: StageCosts | None = None  # what ticks take in truth; None: what the worker announces

    @property
    def true_costs(self) -> StageCosts:
        """Seconds by stage and bucket."""
        return self.profile.costs if self.costs is None else self.costs


@dataclass(frozen=True)
class Outage:
    """A worker dies with all it holds, and may come back empty."""

    worker_id: str
    at: float
    back_at: float | None = None  # None: never


@dataclass(slots=True)
class StageUse:
    """What workers did of one stage; ticks that failed count."""

    ticks: int = 0
    rows: int = 0  # of jobs; encode, decode: jobs
    padding: int = 0  # rows or jobs computed for nobody
    busy_s: float = 0.0

    def add(self, other: StageUse) -> None:
        """Takes the figures of other workers along."""
        self.ticks += other.ticks
        self.rows += other.rows
        self.padding += other.padding
        self.busy_s += other.busy_s


@dataclass(frozen=True, slots=True)
class RanTick:
    """A tick, when it began, and how it ended."""

    started_at: float  # seconds of the simulation
    tick: Tick
    outcome: Outcome


@dataclass(frozen=True)
class Simulation:
    """What a run gives."""

    jobs: Sequence[JobResult]  # in the order of the trace
    ticks: Sequence[tuple[float, Tick]]  # when each was planned; empty unless asked for
    stats: SchedulerStats
    ended_at: float  # when the last job was done
    use: Mapping[Stage, StageUse]  # of all workers together
    ran: Sequence[RanTick] = ()  # as workers began them; empty unless asked for

    @property
    def busy_s(self) -> float:
        """Seconds of all workers in ticks."""
        return sum(use.busy_s for use in self.use.values())


def simulate(
    config: SchedulerConfig,
    devices: Sequence[Device],
    trace: Sequence[Arrival],
    *,
    outages: Iterable[Outage] = (),
    poisoned: Iterable[int] = (),
    keep_ticks: bool = False,
) -> Simulation:
    """Runs a trace to its end.

    Args:
        config: of the scheduler.
        devices: workers, up from the start.
        trace: arrivals in order of time.
        outages: workers that die.
        poisoned: places in the trace of requests that make every tick fail that they are in.
        keep_ticks: returns every tick as well.
    """
    jobs = jobs_of(trace)
    node = Node(config, devices, poisoned={str(place) for place in poisoned}, keep_ticks=keep_ticks)
    node.feed(iter(jobs))
    for outage in outages:
        node.schedule(outage)
    while node.next_at is not None:
        node.turn()
    return node.result(jobs)


def jobs_of(trace: Sequence[Arrival]) -> list[JobResult]:
    """What is to become of each arrival."""
    return [JobResult(str(place), arrival) for place, arrival in enumerate(trace)]


@dataclass(eq=False)
class _Worker:
    """Runs ticks strictly in order. `progress` counts the ticks that each slot's job has behind it."""

    costs: StageCosts
    jobs: dict[str, JobResult]
    poisoned: Container[str]
    use: Mapping[Stage, StageUse]  # of the node's workers together
    line: deque[Tick] = field(default_factory=deque)
    progress: dict[int, tuple[str, int]] = field(default_factory=dict)
    done: dict[float, Outcome] = field(default_factory=dict)  # of ticks that ran, by their seconds

    def execute(self, tick: Tick) -> Outcome:
        """Runs the tick on the slots, all of it or nothing."""
        progress = self.progress
        if tick.stage is Stage.ENCODE:
            for entry in tick.entries:
                if progress.get(entry.slot, ("", 0))[0] != entry.job_id:
                    progress[entry.slot] = entry.job_id, 0
        stage, before = tick.stage, 0
        for job_id, slot, step in tick.entries:
            if stage is not Stage.ENCODE:
                before = step + 1 if stage is Stage.DENOISE else self.jobs[job_id].arrival.steps + 1
            if progress[slot] != (job_id, before):
                return Outcome(Status.SKIPPED)
        seconds = self.costs[stage][tick.bucket]
        use = self.use[stage]
        use.ticks += 1
        use.rows += tick.rows
        use.padding += tick.bucket - tick.rows
        use.busy_s += seconds
        if self.poisoned and self._is_poisoned(tick):
            return Outcome(Status.FAILED, seconds, "poison")
        for job_id, slot, _ in tick.entries:
            progress[slot] = job_id, progress[slot][1] + 1
        done = self.done.get(seconds)
        if done is None:
            done = self.done[seconds] = Outcome(Status.OK, seconds)
        return done

    def _is_poisoned(self, tick: Tick) -> bool:
        return any(entry.job_id in self.poisoned for entry in tick.entries)


class Node:
    """A batcher and its workers on the clock.

    Args:
        config: of the scheduler.
        devices: workers, up from the start.
        poisoned: jobs that make every tick fail that they are in.
        keep_ticks: remembers every tick.

    Attributes:
        num_open: jobs that have come, or are offered, and have not ended.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        devices: Sequence[Device],
        *,
        poisoned: Container[str] = (),
        keep_ticks: bool = False,
    ) -> None:
        self._scheduler = Scheduler(config)
        self._devices = {device.profile.worker_id: device for device in devices}
        self._key = devices[0].profile.key
        self._poisoned = poisoned
        self.num_open = 0
        self._jobs: dict[str, JobResult] = {}  # that were admitted
        self._arriving: Iterator[JobResult] = iter(())
        self._next: JobResult | None = None
        self._workers: dict[str, _Worker] = {}
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()  # of events at one moment
        self._keep_ticks = keep_ticks
        self._ticks: list[tuple[float, Tick]] = []
        self._ran: list[RanTick] = []
        self._use = {stage: StageUse() for stage in Stage}
        self._last_end = 0.0
        self._now = 0.0
        self._turns = 0  # at this moment
        self._wake: float | None = None
        for worker_id in self._devices:
            self._worker_up(worker_id)

    def __repr__(self) -> str:
        return f"Node({self._scheduler!r} at {self._now:.3f} s)"

    @property
    def next_at(self) -> float | None:
        """When `turn` is to be called; None: never again, unless a job comes."""
        if not self._heap:
            return self._wake
        return self._heap[0][0] if self._wake is None else min(self._wake, self._heap[0][0])

    def feed(self, jobs: Iterator[JobResult]) -> None:
        """Lets jobs come by themselves, each at its moment; they are in order of time."""
        self._arriving = jobs
        self._next = next(jobs, None)
        if self._next is not None:
            self._at(self._next.arrival.at, self._arrive, None)

    def offer(self, job: JobResult) -> None:
        """Lets one job come at its moment, which is not before the last turn."""
        self.num_open += 1
        self._at(job.arrival.at, self._submit, job)

    def schedule(self, outage: Outage) -> None:
        """Puts an outage on the clock."""
        self._at(outage.at, self._worker_down, outage.worker_id)
        if outage.back_at is not None:
            self._at(outage.back_at, self._worker_up, outage.worker_id)

    def turn(self) -> None:
        """Everything that happens at the next moment.

        Raises:
            RuntimeError: the scheduler asks to be woken for nothing again and again.
        """
        moment = self._wake
        if self._heap and (moment is None or self._heap[0][0] < moment):
            moment = self._heap[0][0]
        if moment is None:
            return
        self._turns = self._turns + 1 if moment <= self._now else 0
        if self._turns > _MAX_TURNS:
            raise RuntimeError(f"time stands still at {moment}: {self._scheduler!r}")
        if moment > self._now:
            self._now = moment
        heap, now = self._heap, self._now
        if heap and heap[0][0] <= now:
            _, _, action, argument = heapq.heappop(heap)
            if heap and heap[0][0] <= now:
                rest = self._due()
                action(argument)
                for action, argument in rest:
                    action(argument)
            else:
                action(argument)
        self._wake = self._plan()

    def result(self, jobs: Sequence[JobResult]) -> Simulation:
        """What has become of the jobs that came here.

        Raises:
            RuntimeError: nothing is left to happen, but jobs live.
        """
        if not self._scheduler.is_idle:
            raise RuntimeError(f"nothing is left to happen, but jobs live: {self._scheduler!r}")
        return Simulation(jobs, self._ticks, self._scheduler.statistics(), self._last_end, self._use, self._ran)

    # ---- the clock

    def _at(self, when: float, action: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self._heap, (when, next(self._order), action, argument))

    def _due(self) -> list[tuple[Callable[[Any], None], Any]]:
        """What else happens now; what all these events cause now belongs to the next turn, as in an event loop."""
        due = []
        heap = self._heap
        while heap and heap[0][0] <= self._now:
            _, _, action, argument = heapq.heappop(heap)
            due.append((action, argument))
        return due

    # ---- what happens

    def _arrive(self, _: None) -> None:
        while self._next is not None and self._next.arrival.at <= self._now:
            self.num_open += 1
            self._submit(self._next)
            self._next = next(self._arriving, None)
        if self._next is not None:
            self._at(self._next.arrival.at, self._arrive, None)

    def _submit(self, job: JobResult) -> None:
        arrival = job.arrival
        due = arrival.at + arrival.deadline_s
        spec = JobSpec(job.job_id, self._key, arrival.tier, arrival.steps, arrival.rows, due)
        answer = self._scheduler.submit(spec, self._now)
        if isinstance(answer, Refused):
            self._end(job, End.REFUSED, answer.cause.value)
            return
        self._jobs[job.job_id] = job
        if arrival.cancel_after_s is not None:
            self._at(arrival.at + arrival.cancel_after_s, self._cancel, job)

    def _cancel(self, job: JobResult) -> None:
        if job.end is None:
            self._end(job, End.CANCELLED)
            self._apply(self._scheduler.cancel(job.job_id, self._now))

    def _worker_up(self, worker_id: str) -> None:
        device = self._devices[worker_id]
        self._workers[worker_id] = _Worker(device.true_costs, self._jobs, self._poisoned, self._use)
        self._scheduler.worker_up(device.profile, self._now)

    def _worker_down(self, worker_id: str) -> None:
        del self._workers[worker_id]
        self._apply(self._scheduler.worker_down(worker_id, self._now))

    def _tick_done(self, done: tuple[_Worker, Outcome]) -> None:
        worker, outcome = done
        tick = worker.line[0]
        if self._workers.get(tick.worker_id) is not worker:
            return  # it died meanwhile
        worker.line.popleft()
        self._apply(self._scheduler.finish(tick.tick_id, outcome, self._now))
        if worker.line:
            self._start(worker)

    # ---- plan and execute

    def _plan(self) -> float | None:
        """Asks the scheduler what to run; returns when to ask again though nothing has happened."""
        self._apply(self._scheduler.expire(self._now))
        for tick in self._scheduler.next_ticks(self._now):
            if self._keep_ticks:
                self._ticks.append((self._now, tick))
            worker = self._workers[tick.worker_id]
            worker.line.append(tick)
            if len(worker.line) == 1:
                self._start(worker)
        return self._scheduler.wake_at()

    def _start(self, worker: _Worker) -> None:
        outcome = worker.execute(worker.line[0])
        if self._keep_ticks:
            self._ran.append(RanTick(self._now, worker.line[0], outcome))
        self._at(self._now + outcome.seconds, self._tick_done, (worker, outcome))

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Finished:
                job = self._jobs[effect.job_id]
                job.usage = effect.usage  # type: ignore[union-attr]
                self._end(job, End.FINISHED)
            elif kind is Failed:
                self._end(self._jobs[effect.job_id], End.FAILED, effect.cause.value)  # type: ignore[union-attr]

    def _end(self, job: JobResult, end: End, cause: str = "") -> None:
        assert job.end is None, f"{job} ends twice"
        job.end, job.ended_at, job.cause = end, self._now, cause
        self.num_open -= 1
        self._last_end = self._now
