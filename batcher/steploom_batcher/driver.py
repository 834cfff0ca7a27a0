"""The scheduler's asyncio adapter: time and messages in, commands and events out.

Everything here is synchronous. A change (a job, a cancel, a report, a worker that comes or goes) is told to the
scheduler at once; one `_pump` then runs for all changes of a turn of the event loop, sends what the scheduler plans,
and arms the only timer. The scheduler never sees a pixel, and nobody ever waits for a reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from steploom_batcher.adapter_changes import AdapterChanges
from steploom_batcher.feed import JobFeed
from steploom_batcher.job_log import about_job
from steploom_batcher.messages import AdapterChanged, AdapterVersion, Model, Payload, Prepared, Ready, TickReport
from steploom_batcher.roster import Link, LiveWorker, Roster
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import Admitted, JobSpec, Key, Refused, SchedulerStats, Stage, Status, Tick, WorkerProfile
from steploom_common.errors import JobCancelled, SteploomError, Unavailable

log = logging.getLogger(__name__)


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
        self._roster = Roster()
        self.adapters = AdapterChanges(self._roster, self._publish, self._changed, self.cancel)
        self._models: dict[str, Model] = {}  # the latest of every worker, by its name
        self._pump_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Driver({self._roster!r}, {self._scheduler!r})"

    @property
    def num_jobs(self) -> int:
        """Jobs that live, or that a worker still holds."""
        return len(self._roster.jobs)

    @property
    def is_draining(self) -> bool:
        """No job is admitted any more."""
        return self._scheduler.is_draining

    @property
    def can_serve(self) -> bool:
        """A worker is up, and jobs are admitted."""
        return bool(self._roster.workers) and not self.is_draining

    @property
    def models(self) -> dict[str, Model]:
        """Those that are served, those of workers that leave, then those of workers that are away, by model name."""
        found: dict[str, Model] = {}
        for name in sorted(self._roster.workers, key=lambda name: self._roster.workers[name].is_leaving):
            found.setdefault(self._models[name].name, self._models[name])
        for model in self._models.values():
            found.setdefault(model.name, model)
        return found

    def has_job(self, job_id: str) -> bool:
        """A job of that id lives."""
        return job_id in self._roster.jobs

    def statistics(self) -> SchedulerStats:
        """The scheduler's counters."""
        return self._scheduler.statistics()

    # Callers

    def submit(self, spec: JobSpec, payload: Payload, has_progress: bool = True) -> tuple[Admitted, JobFeed] | Refused:
        """Asks for a picture.

        Raises:
            ValueError: a job of that id lives.
        """
        if self.has_job(spec.job_id):
            raise ValueError(f"job {spec.job_id!r} lives")
        answer = self._scheduler.submit(spec, self._loop.time())
        if isinstance(answer, Refused):
            extra = about_job(spec, cause=answer.cause.value)
            log.debug("job %s is refused: %s", spec.job_id, answer.message, extra=extra)
            return answer
        feed = JobFeed(spec.steps, has_progress)
        self._roster.add(spec, payload, feed)
        if log.isEnabledFor(logging.DEBUG):
            words = "job %s is admitted: %d steps, %.3f s predicted"
            log.debug(words, spec.job_id, spec.steps, answer.predicted_s, extra=about_job(spec))
        self._changed()
        return answer, feed

    def cancel(self, job_id: str, reason: SteploomError | None = None) -> JobFeed | None:
        """Ends a job; its feed ends when no worker holds it any more. None where no such job lives.

        Args:
            job_id: whose.
            reason: that its caller gets; None: the caller has cancelled.
        """
        job = self._roster.jobs.get(job_id)
        if job is None:
            return None
        if job.end is None:
            self._roster.end(job, reason or JobCancelled("the caller cancelled"))
            self._roster.apply(self._scheduler.cancel(job_id, self._loop.time()))
            self._changed()
        return job.feed

    def cancel_all(self) -> None:
        """Ends every job, because the service does."""
        for job_id in list(self._roster.jobs):
            self.cancel(job_id, Unavailable("the batcher is ending; try again later"))

    def drain(self) -> None:
        """Admits nothing more; jobs that live go on."""
        if not self.is_draining:
            self._scheduler.drain()
            self._tell_change()

    async def idle(self) -> None:
        """Returns when no job is left."""
        await self._roster.idle()

    def close(self) -> None:
        """Lets go of jobs, workers and the timer."""
        self.cancel_all()
        for worker in list(self._roster.workers.values()):
            self._lose(worker)
        for handle in (self._pump_handle, self._timer):
            if handle is not None:
                handle.cancel()
        self._pump_handle = self._timer = None

    # Workers

    def worker_up(self, name: str, ready: Ready, link: Link, home: str = "") -> None:
        """A worker can take ticks.

        Args:
            name: its address, which outlives the process; another one while a process that leaves still has that.
            ready: what it is.
            link: the way to it.
            home: its address; empty: `name` is.

        Raises:
            ValueError: it cannot be used.
        """
        model = ready.model
        lineage = f"{model.name} {model.height}x{model.width}"  # pictures of jobs that wait are of that size
        profile = WorkerProfile(name, key_of(model), ready.num_slots, ready.costs, home, lineage)
        effects = self._scheduler.worker_up(profile, self._loop.time())
        self._models[name] = ready.model
        worker = self._roster.workers[name] = LiveWorker(name, link, home or name, versions=ready.model.held)
        self.adapters.worker_up(worker, ready.model.name)  # what it is to load comes before its first job
        self._roster.apply(effects)
        log.info("worker %s is up: %s on %s, %d slots", name, ready.worker_id, ready.device, ready.num_slots)
        self._changed()
        self._tell_change()

    def worker_down(self, name: str, error: str) -> None:
        """A worker is lost with all it held; its jobs start again elsewhere."""
        worker = self._roster.workers.get(name)
        if worker is not None:
            if worker.is_leaving and not worker.slots:
                log.info("worker %s has left", name)
            else:
                log.warning("worker %s is down with %d jobs: %s", name, len(worker.slots), error)
            self._lose(worker)

    def worker_leaving(self, name: str) -> None:
        """A worker takes no more jobs; it is hung up on when those that it has are done."""
        worker = self._roster.workers.get(name)
        if worker is not None:
            log.info("worker %s leaves, with %d jobs to end", name, len(worker.slots))
            worker.is_leaving = True
            self.adapters.worker_leaving(name)
            self._scheduler.worker_leaving(name)
            self._changed()

    def report(self, name: str, report: TickReport) -> None:
        """A tick is done."""
        worker = self._roster.workers.get(name)
        if worker is None:
            return  # its last words
        if report.outcome.status is Status.FAILED:
            log.warning("worker %s: tick %d failed: %s", name, report.tick_id, report.outcome.error)
        if report.outcome.failures:
            self._log_failures(worker, report)
        if report.pictures:
            self._roster.take_pictures(worker, report.pictures)
        self._roster.apply(self._scheduler.finish(report.tick_id, report.outcome, self._loop.time()))
        self._changed()

    def prepared(self, name: str, prepared: Prepared) -> None:
        """Ticks of a worker cost less from now on."""
        if name in self._roster.workers:
            self._scheduler.reprice(name, prepared.costs)
            self._changed()

    def adapter_changed(self, name: str, changed: AdapterChanged) -> None:
        """A worker has loaded or dropped an adapter, or cannot."""
        worker = self._roster.workers.get(name)
        if worker is not None:
            self.adapters.answered(worker, changed)
            self._changed()

    def _publish(self, model: str, offered: Mapping[str, AdapterVersion]) -> None:
        """What jobs of a model can have is another than before."""
        versions = tuple(offered.values())
        traits = {item.name: item.traits for item in versions}
        for name, known in self._models.items():
            if known.name == model:
                self._models[name] = replace(known, adapters=traits, versions=versions)

    def _log_failures(self, worker: LiveWorker, report: TickReport) -> None:
        """Once a job: ticks that were in flight behind say it again."""
        for slot, error in report.outcome.failures.items():
            job = worker.slots.get(slot)
            if job is not None and job.end is None:
                job_id, extra = job.spec.job_id, about_job(job.spec, worker=worker.name)
                log.warning(
                    "worker %s: job %s failed in tick %d: %s", worker.name, job_id, report.tick_id, error, extra=extra
                )

    def _lose(self, worker: LiveWorker) -> None:
        self._roster.lose(worker)
        if any(other.home == worker.home for other in self._roster.workers.values()):
            del self._models[worker.name]  # another has taken its place: it is not expected back
        self.adapters.worker_down(worker.name)
        self._roster.apply(self._scheduler.worker_down(worker.name, self._loop.time()))
        self._changed()
        self._tell_change()

    def _tell_change(self) -> None:
        if self._on_change is not None:
            self._on_change()

    # One turn: plan, send, arm

    def _changed(self) -> None:
        if self._pump_handle is None:
            self._pump_handle = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_handle = None
        now = self._loop.time()
        self._roster.apply(self._scheduler.expire(now))
        self.adapters.tidy()
        for tick in self._scheduler.next_ticks(now):
            self._put_in_line(tick, now)
        for worker in self._roster.workers.values():
            worker.flush()
        self._arm()

    def _put_in_line(self, tick: Tick, now: float) -> None:
        worker = self._roster.workers[tick.worker_id]
        if tick.stage is Stage.ENCODE:
            for entry in tick.entries:
                self._roster.give_slot(worker, entry.slot, entry.job_id)
        worker.outbox.append(tick)
        if self._on_tick is not None:
            self._on_tick(now, tick)

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
