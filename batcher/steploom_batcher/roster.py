"""Who is in: the jobs that live, the workers that are up, and which job holds which slot.

Here the scheduler's effects become events for callers and commands for workers. A job is over when two things are so:
its end is decided, and no worker can touch its pixels any more. Only then does its caller hear of the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from steploom_batcher.causes import failure_error
from steploom_batcher.feed import JobFeed
from steploom_batcher.job_log import about_job
from steploom_batcher.messages import AdapterVersion, Admit, Command, Done, Free, Payload, Picture
from steploom_batcher.types import Cause, Effect, Failed, Finished, JobSpec, Release, Requeued, Started, Stepped
from steploom_common.errors import SteploomError

log = logging.getLogger(__name__)


class Link(Protocol):
    """The way to one worker."""

    def send(self, commands: list[Command]) -> None:
        """Takes commands to be sent in order; never blocks. What stands in line is bounded by the worker's slots."""

    def hang_up(self) -> None:
        """Ends the stream: the worker leaves, and none of its slots holds a job."""


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job from admission until no worker holds it."""

    spec: JobSpec
    payload: Payload
    feed: JobFeed
    worker: LiveWorker | None = None  # where it holds a slot
    slot: int = -1
    picture: Picture | None = None  # latest from the worker: a preview, or the result
    end: Done | SteploomError | None = None  # decided; its reader hears of it once the slot is free


@dataclass(slots=True, eq=False)
class LiveWorker:
    """A worker that is up."""

    name: str
    link: Link
    home: str  # its address
    slots: dict[int, LiveJob] = field(default_factory=dict)  # those that were admitted
    outbox: list[Command] = field(default_factory=list)  # of this turn
    is_leaving: bool = False  # it takes no more jobs
    versions: tuple[AdapterVersion, ...] = ()  # of adapters that it has

    def fitted(self, payload: Payload) -> Payload:
        """With a version of its adapter that the worker has: where a job's own is gone, the one that counts by now."""
        digests = [item.digest for item in self.versions if item.name == payload.adapter]
        if not digests or payload.adapter_digest in digests:
            return payload
        return replace(payload, adapter_digest=digests[-1])

    def flush(self) -> None:
        """Sends what the turn has brought."""
        if self.outbox:
            self.link.send(self.outbox)
            self.outbox = []
        if self.is_leaving and not self.slots:
            self.link.hang_up()


class Roster:
    """See the module."""

    def __init__(self) -> None:
        self.jobs: dict[str, LiveJob] = {}
        self.workers: dict[str, LiveWorker] = {}
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Started: self._on_started,
            Stepped: self._on_stepped,
            Finished: self._on_finished,
            Failed: self._on_failed,
            Requeued: lambda _: None,  # its slot went with the worker; its steps count from 1 again
            Release: self._on_release,
        }

    def __repr__(self) -> str:
        return f"Roster(jobs={len(self.jobs)}, workers={list(self.workers)})"

    def add(self, spec: JobSpec, payload: Payload, feed: JobFeed) -> None:
        """A job is admitted."""
        self.jobs[spec.job_id] = LiveJob(spec, payload, feed)

    def give_slot(self, worker: LiveWorker, slot: int, job_id: str) -> None:
        """Before the job's first encode tick in this slot. Nothing where it has it: the tick is tried again."""
        job = self.jobs[job_id]
        if job.worker is None:
            job.worker, job.slot = worker, slot
            worker.slots[slot] = job
            job.payload = worker.fitted(job.payload)
            worker.outbox.append(Admit(job_id, slot, job.payload, job.spec.traceparent))

    def take_pictures(self, worker: LiveWorker, pictures: Iterable[tuple[int, Picture]]) -> None:
        """What came with a tick's report; the effects that follow say what it is."""
        for slot, picture in pictures:
            if slot in worker.slots:
                worker.slots[slot].picture = picture

    def apply(self, effects: Iterable[Effect]) -> None:
        """What the scheduler says has happened."""
        for effect in effects:
            self._handlers[type(effect)](effect)

    def end(self, job: LiveJob, end: Done | SteploomError) -> None:
        """Decides a job's end."""
        job.end = end
        self._settle(job)

    def lose(self, worker: LiveWorker) -> None:
        """A worker is gone, with every slot."""
        del self.workers[worker.name]
        for job in list(worker.slots.values()):
            self._vacate(job, worker)

    async def idle(self) -> None:
        """Returns when no job is left."""
        while self.jobs:
            waiter = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter

    def _on_started(self, effect: Started) -> None:
        self.jobs[effect.job_id].feed.begin()

    def _on_stepped(self, effect: Stepped) -> None:
        job = self.jobs[effect.job_id]
        preview, job.picture = job.picture, None
        job.feed.step(effect.step, preview)

    def _on_finished(self, effect: Finished) -> None:
        job = self.jobs[effect.job_id]
        if job.picture is None:
            self._on_failed(Failed(effect.job_id, Cause.POISON, "the worker's decode tick gave no picture"))
        else:
            self.end(job, Done(job.picture, effect.usage))

    def _on_failed(self, effect: Failed) -> None:
        job = self.jobs[effect.job_id]
        self.end(job, failure_error(effect, job.spec))

    def _on_release(self, effect: Release) -> None:
        """A slot that was planned but never admitted to is unknown to the worker."""
        worker = self.workers.get(effect.worker_id)
        job = worker.slots.get(effect.slot) if worker is not None else None
        if worker is not None and job is not None:
            worker.outbox.append(Free(effect.slot))
            self._vacate(job, worker)

    def _vacate(self, job: LiveJob, worker: LiveWorker) -> None:
        del worker.slots[job.slot]
        job.worker, job.picture = None, None
        self._settle(job)

    def _settle(self, job: LiveJob) -> None:
        if job.end is None or job.worker is not None:
            return
        job.feed.end(job.end)
        if log.isEnabledFor(logging.DEBUG):
            end = "with a picture" if isinstance(job.end, Done) else type(job.end).__name__
            log.debug("job %s has ended: %s", job.spec.job_id, end, extra=about_job(job.spec))
        del self.jobs[job.spec.job_id]
        if not self.jobs:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
