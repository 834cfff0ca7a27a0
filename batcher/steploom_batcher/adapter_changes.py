"""Loads and unloads adapters on all workers of a model while jobs run: asks, waits, tidies up behind the last job."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary

from steploom_batcher.adapter_offers import AdapterOffers, AdapterStatus
from steploom_batcher.messages import AdapterChanged, AdapterVersion, DropAdapter, LoadAdapter
from steploom_batcher.roster import LiveJob, LiveWorker, Roster
from steploom_common.errors import FailedPrecondition, NotFound, NotInPlace, SteploomError, Unavailable

log = logging.getLogger(__name__)


@dataclass
class _Asked:
    """A command whose answer is awaited."""

    worker: str
    name: str  # of the adapter
    answer: asyncio.Future[AdapterChanged | None] | None = None  # None is what it gives of a worker that is lost
    drops: str = ""  # the digest of what is dropped; empty: it is loaded


class AdapterChanges:
    """See the module.

    Args:
        roster: the workers and jobs.
        publish: told a model's name and what is offered, where that has changed.
        changed: lets what stands in the workers' lines be sent.
        end_job: ends a job by its id, with an error.
    """

    def __init__(
        self,
        roster: Roster,
        publish: Callable[[str, Mapping[str, AdapterVersion]], None],
        changed: Callable[[], None],
        end_job: Callable[[str, SteploomError], object],
    ) -> None:
        self._roster = roster
        self._publish = publish
        self._changed = changed
        self._end_job = end_job
        self._offers: defaultdict[str, AdapterOffers] = defaultdict(AdapterOffers)  # by model
        self._models: dict[str, str] = {}  # by worker that is up
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()  # by model and adapter
        self._asked: dict[int, _Asked] = {}
        self._change_ids = count(1)
        self._is_untidy = False  # a worker may have what nobody needs

    def __repr__(self) -> str:
        return f"AdapterChanges({dict(self._offers)}, asked={len(self._asked)})"

    def digest(self, model: str, name: str) -> str:
        """Of the version that a new job gets; empty for no adapter."""
        version = self._offers[model].offered.get(name)
        return version.digest if version is not None else ""

    def statuses(self, model: str) -> list[AdapterStatus]:
        """Where each adapter of a model stands."""
        return self._offers[model].statuses()

    # Workers

    def worker_up(self, worker: LiveWorker, model: str) -> None:
        """A worker has come; it gets what it must load into its line."""
        in_use = {job.payload.adapter for job in self._roster.jobs.values()}
        self._models[worker.name] = model
        for name in self._offers[model].worker_up(worker.name, worker.versions, in_use):
            worker.outbox.append(LoadAdapter(self._ask(_Asked(worker.name, name)), name, at_once=True))
        for name in in_use - {""}:
            self._end_stranded(model, name, None, "the model that had it is served no more")
        self._settled(model)

    def worker_leaving(self, worker: str) -> None:
        """A worker takes no more jobs."""
        self._offers[self._models[worker]].worker_leaving(worker)
        self._settled(self._models[worker])

    def worker_down(self, worker: str) -> None:
        """A worker is gone, and answers nothing more."""
        model = self._models.pop(worker)
        for change_id, asked in list(self._asked.items()):
            if asked.worker == worker:
                self._answer(change_id, None)
        self._offers[model].worker_down(worker)
        self._settled(model)

    def answered(self, worker: LiveWorker, changed: AdapterChanged) -> None:
        """A worker has done what it was asked for, or cannot."""
        model, asked = self._models[worker.name], self._asked.get(changed.change_id)
        worker.versions = changed.versions
        self._offers[model].changed(worker.name, changed.versions)
        if asked is not None and asked.answer is None and not asked.drops:
            self._offers[model].restored(worker.name, asked.name, changed.error)
            for job in worker.slots.values():
                job.payload = worker.fitted(job.payload)
            if changed.error:
                log.error("worker %s has lost adapter %s: %s", worker.name, asked.name, changed.error)
                self._end_stranded(model, asked.name, worker, changed.error)
        self._answer(changed.change_id, changed)
        self._settled(model)

    # Calls

    async def load(self, model: str, name: str) -> None:
        """Loads an adapter into all workers of a model, or changed files of one that is there.

        Raises:
            NotInPlace: there is none of that name.
            FailedPrecondition: a worker cannot have it. What was offered before still is.
            Unavailable: no worker is up.
        """
        async with self._alone(model, name):
            offers = self._offers[model]
            offers.begin_load(name)
            digest, problem = "", "it was given up"
            try:
                digest = await self._load(model, name)
                problem = ""
            except NotInPlace:
                problem = ""  # there is nothing to say of what is not there
                raise
            except SteploomError as error:
                problem = str(error)
                raise
            finally:
                offers.end_load(name, digest, problem)
                self._settled(model)
            log.info("adapter %s of %s is loaded: %s", name, model, digest[:12])

    async def unload(self, model: str, name: str) -> None:
        """Offers an adapter no more; workers forget it behind the last job that has it.

        Raises:
            NotFound: there is none of that name.
        """
        async with self._alone(model, name):
            offers = self._offers[model]
            if not offers.is_known(name):
                raise NotFound("adapter", name, list(offers.offered))
            offers.unload(name)
            self._settled(model)
            log.info("adapter %s of %s is unloaded", name, model)

    def tidy(self) -> None:
        """Lets workers forget what no job needs. Nothing where nothing has changed."""
        if not self._is_untidy:
            return
        in_use = {(job.payload.adapter, job.payload.adapter_digest) for job in self._roster.jobs.values()}
        under_way = {(item.worker, item.name, item.drops) for item in self._asked.values() if item.drops}
        for offers in self._offers.values():
            for worker, version in offers.obsolete(in_use):
                if (worker, version.name, version.digest) not in under_way:
                    self._drop(worker, version.name, version.digest)
        self._is_untidy = any(offers.obsolete(()) for offers in self._offers.values())

    @asynccontextmanager
    async def _alone(self, model: str, name: str) -> AsyncIterator[None]:
        """One change of an adapter at a time; who waits, or is at it, keeps its lock alive."""
        lock = self._locks.setdefault((model, name), asyncio.Lock())
        async with lock:
            yield

    async def _load(self, model: str, name: str) -> str:
        """The digest of what all workers have loaded."""
        before: dict[LiveWorker, Collection[str]] = {}
        answers: dict[LiveWorker, AdapterChanged | None] = {}
        while missing := [worker for worker in self._workers(model) if worker not in before]:
            before |= {worker: [item.digest for item in worker.versions if item.name == name] for worker in missing}
            found = await asyncio.gather(*(self._read(worker, name) for worker in missing))
            answers |= dict(zip(missing, found, strict=True))
        # of those that are up yet; one that came meanwhile has been asked too
        given = {worker: answers[worker] for worker in self._workers(model)}
        done = {worker: answer for worker, answer in given.items() if answer is not None}
        problem = _problem(done)
        if problem is None:
            return next(iter(done.values())).digest
        for worker, answer in done.items():
            if not answer.error and answer.digest not in before[worker]:
                self._drop(worker.name, name, answer.digest)
        self._changed()
        raise problem

    async def _read(self, worker: LiveWorker, name: str) -> AdapterChanged | None:
        answer: asyncio.Future[AdapterChanged | None] = asyncio.get_running_loop().create_future()
        worker.outbox.append(LoadAdapter(self._ask(_Asked(worker.name, name, answer)), name))
        self._changed()
        return await answer

    def _drop(self, worker: str, name: str, digest: str) -> None:
        asked = _Asked(worker, name, drops=digest)
        self._roster.workers[worker].outbox.append(DropAdapter(self._ask(asked), name, digest))

    def _ask(self, asked: _Asked) -> int:
        change_id = next(self._change_ids)
        self._asked[change_id] = asked
        return change_id

    def _answer(self, change_id: int, answer: AdapterChanged | None) -> None:
        asked = self._asked.pop(change_id, None)
        if asked is not None and asked.answer is not None and not asked.answer.done():
            asked.answer.set_result(answer)

    def _workers(self, model: str) -> list[LiveWorker]:
        """Of a model, those that take jobs."""
        found = (worker for name, worker in self._roster.workers.items() if self._models[name] == model)
        return [worker for worker in found if not worker.is_leaving]

    def _end_stranded(self, model: str, name: str, worker: LiveWorker | None, problem: str) -> None:
        """Ends jobs whose adapter no worker has any more, and those in the slots of one that has lost it."""
        waits = not self._offers[model].can_run(name)
        for job in list(self._roster.jobs.values()):
            is_lost = job.worker is worker if job.worker is not None else waits
            if is_lost and job.payload.adapter == name and _is_of(job, model) and job.end is None:
                self._end_job(job.spec.job_id, Unavailable(f"adapter {name!r} is lost with its worker: {problem}"))

    def _settled(self, model: str) -> None:
        self._is_untidy = True
        self._publish(model, self._offers[model].offered)
        self._changed()


def _is_of(job: LiveJob, model: str) -> bool:
    return job.spec.key.engine.rpartition("@")[0] == model


def _problem(answers: Mapping[LiveWorker, AdapterChanged]) -> SteploomError | None:
    """Why an adapter is not loaded, of the answers of all workers that are up; None: it is."""
    if not answers:
        return Unavailable("no worker is up")
    errors = {answer.error: worker for worker, answer in answers.items() if answer.error}
    if errors:
        words = "; ".join(f"{worker.name}: {error}" if len(answers) > 1 else error for error, worker in errors.items())
        are_missing = all(answer.is_missing for answer in answers.values())
        return NotInPlace(words) if are_missing else FailedPrecondition(words)
    if len({answer.digest for answer in answers.values()}) > 1:
        read = ", ".join(f"{worker.name}: {answer.digest[:12]}" for worker, answer in answers.items())
        return FailedPrecondition(f"the workers' folders hold different files of it: {read}")
    return None
