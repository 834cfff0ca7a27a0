"""A discrete-event simulator around the very scheduler that serves.

An event heap is the clock: arrivals, cancels, ends of ticks and outages happen at their moments, the scheduler is told,
and plans; workers run what they get in order and take their time from a cost table. Nothing waits, so a simulated hour
costs what its scheduling costs. It makes the calls of the asyncio driver in the same order, and so the same ticks.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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


@dataclass(frozen=True)
class Simulation:
    """What a run gives."""

    jobs: Sequence[JobResult]  # in the order of the trace
    ticks: Sequence[tuple[float, Tick]]  # when each was planned; empty unless asked for
    stats: SchedulerStats
    ended_at: float  # when the last job was done
    busy_s: float  # of all workers together, in ticks


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
    simulator = _Simulator(config, devices, trace, {str(place) for place in poisoned}, keep_ticks)
    for outage in outages:
        simulator.schedule(outage)
    return simulator.run()


@dataclass(eq=False)
class _Worker:
    """Runs ticks strictly in order. `progress` counts the ticks that each slot's job has behind it."""

    costs: StageCosts
    jobs: dict[str, JobResult]
    poisoned: set[str]
    line: deque[Tick] = field(default_factory=deque)
    progress: dict[int, tuple[str, int]] = field(default_factory=dict)
    busy_s: float = 0.0

    def execute(self, tick: Tick) -> Outcome:
        """Runs the tick on the slots, all of it or nothing."""
        progress = self.progress
        if tick.stage is Stage.ENCODE:
            for entry in tick.entries:
                if progress.get(entry.slot, ("", 0))[0] != entry.job_id:
                    progress[entry.slot] = entry.job_id, 0
        places = [self._place(tick.stage, entry.job_id, entry.step) for entry in tick.entries]
        for entry, place in zip(tick.entries, places, strict=True):
            if progress[entry.slot] != (entry.job_id, place):
                return Outcome(Status.SKIPPED)
        seconds = self.costs[tick.stage][tick.bucket]
        self.busy_s += seconds
        if self.poisoned and self._is_poisoned(tick):
            return Outcome(Status.FAILED, seconds, "poison")
        for entry, place in zip(tick.entries, places, strict=True):
            progress[entry.slot] = entry.job_id, place + 1
        return Outcome(Status.OK, seconds)

    def _place(self, stage: Stage, job_id: str, step: int) -> int:
        """Ticks that come before this one in the job's life."""
        if stage is Stage.DENOISE:
            return step + 1
        return 0 if stage is Stage.ENCODE else self.jobs[job_id].arrival.steps + 1

    def _is_poisoned(self, tick: Tick) -> bool:
        return any(entry.job_id in self.poisoned for entry in tick.entries)


class _Simulator:
    def __init__(
        self,
        config: SchedulerConfig,
        devices: Sequence[Device],
        trace: Sequence[Arrival],
        poisoned: set[str],
        keep_ticks: bool,
    ) -> None:
        self._scheduler = Scheduler(config)
        self._devices = {device.profile.worker_id: device for device in devices}
        self._key = devices[0].profile.key
        self._poisoned = poisoned
        self._jobs = {str(place): JobResult(str(place), arrival) for place, arrival in enumerate(trace)}
        self._arriving = iter(self._jobs.values())
        self._next = next(self._arriving, None)
        self._workers: dict[str, _Worker] = {}
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()  # of events at one moment
        self._keep_ticks = keep_ticks
        self._ticks: list[tuple[float, Tick]] = []
        self._busy_s = 0.0  # of workers that are gone
        self._last_end = 0.0
        self._now = 0.0
        for worker_id in self._devices:
            self._worker_up(worker_id)
        if self._next is not None:
            self._at(self._next.arrival.at, self._arrive, None)

    def schedule(self, outage: Outage) -> None:
        """Puts an outage on the clock."""
        self._at(outage.at, self._worker_down, outage.worker_id)
        if outage.back_at is not None:
            self._at(outage.back_at, self._worker_up, outage.worker_id)

    def run(self) -> Simulation:
        """To the end of the trace and of every job in it."""
        wake = self._plan()
        turns = 0
        while (moment := self._next_moment(wake)) is not None:
            turns = turns + 1 if moment <= self._now else 0
            if turns > _MAX_TURNS:
                raise RuntimeError(f"time stands still at {moment}: {self._scheduler!r}")
            self._now = max(self._now, moment)
            for action, argument in self._due():
                action(argument)
            wake = self._plan()
        if not self._scheduler.is_idle:
            raise RuntimeError(f"nothing is left to happen, but jobs live: {self._scheduler!r}")
        busy_s = self._busy_s + sum(worker.busy_s for worker in self._workers.values())
        return Simulation([*self._jobs.values()], self._ticks, self._scheduler.statistics(), self._last_end, busy_s)

    # ---- the clock

    def _at(self, when: float, action: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self._heap, (when, next(self._order), action, argument))

    def _next_moment(self, wake: float | None) -> float | None:
        if not self._heap:
            return wake
        return self._heap[0][0] if wake is None else min(wake, self._heap[0][0])

    def _due(self) -> list[tuple[Callable[[Any], None], Any]]:
        """What happens now; what these events cause now belongs to the next turn, as in an event loop."""
        due = []
        heap = self._heap
        while heap and heap[0][0] <= self._now:
            _, _, action, argument = heapq.heappop(heap)
            due.append((action, argument))
        return due

    # ---- what happens

    def _arrive(self, _: None) -> None:
        while self._next is not None and self._next.arrival.at <= self._now:
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
        elif arrival.cancel_after_s is not None:
            self._at(arrival.at + arrival.cancel_after_s, self._cancel, job)

    def _cancel(self, job: JobResult) -> None:
        if job.end is None:
            self._end(job, End.CANCELLED)
            self._apply(self._scheduler.cancel(job.job_id, self._now))

    def _worker_up(self, worker_id: str) -> None:
        device = self._devices[worker_id]
        self._workers[worker_id] = _Worker(device.true_costs, self._jobs, self._poisoned)
        self._scheduler.worker_up(device.profile, self._now)

    def _worker_down(self, worker_id: str) -> None:
        self._busy_s += self._workers.pop(worker_id).busy_s
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
        self._last_end = self._now
