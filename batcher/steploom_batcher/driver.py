"""The scheduler's asyncio adapter: time and messages in, commands and events out.

Everything here is synchronous. A change (a job, a cancel, a report, a worker that comes or goes) is told to the
scheduler at once; one `_pump` then runs for all changes of a turn of the event loop, sends what the scheduler plans,
and arms the only timer. The scheduler never sees a pixel, and nobody ever waits for a reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from steploom_batcher.causes import failure_error
from steploom_batcher.feed import JobFeed
from steploom_batcher.messages import Admit, Command, Done, Free, Model, Payload, Picture, Ready, TickReport
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import (
    Admitted,
    Effect,
    Failed,
    Finished,
    JobSpec,
    Key,
    Refused,
    Release,
    Requeued,
    SchedulerStats,
    Stage,
    Started,
    Status,
    Stepped,
    Tick,
    WorkerProfile,
)
from steploom_common.errors import JobCancelled, JobFailed, SteploomError

log = logging.getLogger(__name__)


class Link(Protocol):
    """The way to one worker."""

    def send(self, commands: list[Command]) -> None:
        """Takes commands to be sent in order; never blocks. What stands in line is bounded by the worker's slots."""


@dataclass(slots=True, eq=False)
class _Job:
    """A job from admission until no worker holds it."""

    spec: JobSpec
    payload: Payload
    feed: JobFeed
    worker: _Worker | None = None  # where it holds a slot
    slot: int = -1
    picture: Picture | None = None  # latest from the worker: a preview, or the result
    end: Done | SteploomError | None = None  # decided; its reader hears of it once the slot is free


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker that is up."""

    name: str
    link: Link
    slots: dict[int, _Job] = field(default_factory=dict)  # those that were admitted
    outbox: list[Command] = field(default_factory=list)  # of this turn


def key_of(model: Model) -> Key:
    """What rows of this model have in common."""
    return Key(f"{model.name}@{model.digest}", model.latent_shape)


class Driver:
    """Runs the scheduler on the event loop.

    Args:
        scheduler: the pure core; nobody else may drive it.
        loop: its clock is the scheduler's.
        on_tick: hears of every tick that is sent, and when.
        on_change: hears when workers come or go, and when a drain begins.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        loop: asyncio.AbstractEventLoop,
        on_tick: Callable[[float, Tick], None] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._on_tick = on_tick
        self._on_change = on_change
        self._jobs: dict[str, _Job] = {}
        self._workers: dict[str, _Worker] = {}
        self._models: dict[str, Model] = {}  # of every worker that was ever up, by model name
        self._is_draining = False
        self._pump_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Started: self._on_started,
            Stepped: self._on_stepped,
            Finished: self._on_finished,
            Failed: self._on_failed,
            Requeued: self._on_requeued,
            Release: self._on_release,
        }

    def __repr__(self) -> str:
        return f"Driver(jobs={len(self._jobs)}, workers={list(self._workers)}, draining={self._is_draining})"

    @property
    def num_jobs(self) -> int:
        """Jobs that live, or whose slot is not free yet."""
        return len(self._jobs)

    @property
    def is_draining(self) -> bool:
        """No job is admitted any more."""
        return self._is_draining

    @property
    def can_serve(self) -> bool:
        """A worker is up, and jobs are admitted."""
        return bool(self._workers) and not self._is_draining

    @property
    def models(self) -> dict[str, Model]:
        """Models served now or earlier, by name."""
        return self._models

    def statistics(self) -> SchedulerStats:
        """The scheduler's counters."""
        return self._scheduler.statistics()

    # Callers

    def submit(self, spec: JobSpec, payload: Payload, has_progress: bool = True) -> tuple[Admitted, JobFeed] | Refused:
        """Asks for a picture.

        Raises:
            ValueError: a job of that id lives.
        """
        if spec.job_id in self._jobs:
            raise ValueError(f"job {spec.job_id!r} lives")
        answer = self._scheduler.submit(spec, self._loop.time())
        if isinstance(answer, Refused):
            return answer
        feed = JobFeed(spec.steps, has_progress)
        self._jobs[spec.job_id] = _Job(spec, payload, feed)
        self._changed()
        return answer, feed

    def cancel(self, job_id: str, reason: str = "the caller cancelled") -> JobFeed | None:
        """Ends a job; its feed ends when no worker holds it any more. None where no such job lives."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if job.end is None:
            self._end(job, JobCancelled(reason))
            self._apply(self._scheduler.cancel(job_id, self._loop.time()))
            self._changed()
        return job.feed

    def has_job(self, job_id: str) -> bool:
        """A job of that id lives."""
        return job_id in self._jobs

    def drain(self) -> None:
        """Admits nothing more; jobs that live go on."""
        if not self._is_draining:
            self._is_draining = True
            self._scheduler.drain()
            self._changed()
            self._tell_change()

    async def idle(self) -> None:
        """Returns when no job is left."""
        while self._jobs:
            waiter = self._loop.create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Ends every job that is left, and the timer."""
        for job_id in list(self._jobs):
            self.cancel(job_id, "the service is ending")
        for name in list(self._workers):
            self._lose(self._workers.pop(name))
        for handle in (self._pump_handle, self._timer):
            if handle is not None:
                handle.cancel()
        self._pump_handle = self._timer = None

    # Workers

    def worker_up(self, name: str, ready: Ready, link: Link) -> None:
        """A worker can take ticks; `name` is its address, which outlives the process.

        Raises:
            ValueError: it cannot be used.
        """
        profile = WorkerProfile(name, key_of(ready.model), ready.num_slots, ready.costs)
        self._scheduler.worker_up(profile, self._loop.time())
        self._models[ready.model.name] = ready.model
        self._workers[name] = _Worker(name, link)
        log.info("worker %s is up: %s on %s, %d slots", name, ready.worker_id, ready.device, ready.num_slots)
        self._changed()
        self._tell_change()

    def worker_down(self, name: str, error: str) -> None:
        """A worker is lost with all it held; its jobs start again elsewhere."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        log.warning("worker %s is down with %d jobs: %s", name, len(worker.slots), error)
        self._lose(worker)

    def report(self, name: str, report: TickReport) -> None:
        """A tick is done."""
        worker = self._workers.get(name)
        if worker is None:
            return  # its last words
        if report.outcome.status is Status.FAILED:
            log.warning("worker %s: tick %d failed: %s", name, report.tick_id, report.outcome.error)
        for slot, picture in report.pictures:
            if slot in worker.slots:
                worker.slots[slot].picture = picture
        self._apply(self._scheduler.finish(report.tick_id, report.outcome, self._loop.time()))
        self._changed()

    def _lose(self, worker: _Worker) -> None:
        for job in list(worker.slots.values()):
            self._vacate(job)
        self._apply(self._scheduler.worker_down(worker.name, self._loop.time()))
        self._changed()
        self._tell_change()

    # One turn: plan, send, arm

    def _changed(self) -> None:
        if self._pump_handle is None:
            self._pump_handle = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_handle = None
        now = self._loop.time()
        self._apply(self._scheduler.expire(now))
        for tick in self._scheduler.next_ticks(now):
            self._plan(tick, now)
        for worker in self._workers.values():
            if worker.outbox:
                worker.link.send(worker.outbox)
                worker.outbox = []
        self._arm()

    def _plan(self, tick: Tick, now: float) -> None:
        worker = self._workers[tick.worker_id]
        if tick.stage is Stage.ENCODE:
            for entry in tick.entries:
                self._admit(worker, entry.slot, self._jobs[entry.job_id])
        worker.outbox.append(tick)
        if self._on_tick is not None:
            self._on_tick(now, tick)

    def _admit(self, worker: _Worker, slot: int, job: _Job) -> None:
        """Before the job's first encode tick in this slot; an encode tick may be tried again."""
        if job.worker is None:
            job.worker, job.slot = worker, slot
            worker.slots[slot] = job
            worker.outbox.append(Admit(job.spec.job_id, slot, job.payload))

    def _arm(self) -> None:
        """Sets the timer to `wake_at`. One that is set too early stays: it sets the next when it fires."""
        when = self._scheduler.wake_at()
        if when is None or (self._timer is not None and self._timer.when() <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        self._timer = None
        when = self._scheduler.wake_at()
        if when is not None and when <= self._loop.time():
            self._changed()
        else:
            self._arm()

    # What has happened to jobs

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self._handlers[type(effect)](effect)

    def _on_started(self, effect: Started) -> None:
        self._jobs[effect.job_id].feed.begin()

    def _on_stepped(self, effect: Stepped) -> None:
        job = self._jobs[effect.job_id]
        preview, job.picture = job.picture, None
        job.feed.step(effect.step, preview)

    def _on_finished(self, effect: Finished) -> None:
        job = self._jobs[effect.job_id]
        if job.picture is None:
            log.error("worker gave no picture for job %s", effect.job_id)
            self._end(job, JobFailed(effect.job_id))
        else:
            self._end(job, Done(job.picture, effect.usage))

    def _on_failed(self, effect: Failed) -> None:
        job = self._jobs[effect.job_id]
        self._end(job, failure_error(effect, job.spec))

    def _on_requeued(self, effect: Requeued) -> None:
        self._jobs[effect.job_id].feed.restart()

    def _on_release(self, effect: Release) -> None:
        """A slot that was given but never admitted to is unknown to the worker."""
        worker = self._workers.get(effect.worker_id)
        job = worker.slots.get(effect.slot) if worker is not None else None
        if worker is not None and job is not None:
            worker.outbox.append(Free(effect.slot))
            self._vacate(job)

    def _end(self, job: _Job, end: Done | SteploomError) -> None:
        job.end = end
        self._settle(job)

    def _vacate(self, job: _Job) -> None:
        assert job.worker is not None
        del job.worker.slots[job.slot]
        job.worker, job.picture = None, None
        self._settle(job)

    def _settle(self, job: _Job) -> None:
        """A job is over when its end is decided and no worker can touch its pixels."""
        if job.end is None or job.worker is not None:
            return
        job.feed.end(job.end)
        del self._jobs[job.spec.job_id]
        if not self._jobs:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _tell_change(self) -> None:
        if self._on_change is not None:
            self._on_change()
