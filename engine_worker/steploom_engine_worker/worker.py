"""The driving thread: obeys one batcher at a time, strictly in order, and answers each tick.

An engine whose device works by itself is told the next tick while it is still at the last: the driving thread starts
ticks, a second one waits for them and answers (see `landing`). The ledger moves when a tick is started, since whatever
comes next is judged by where its jobs will be. While no command waits the engine may prepare what makes later ticks
faster; how often, `pace` says.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steploom_common.logs import Fields, about, ids_of
from steploom_common.patience import Overdue
from steploom_engine_worker.commands import (
    AdapterChanged,
    Admit,
    Command,
    DropAdapter,
    Leaving,
    LoadAdapter,
    News,
    Prepared,
    Preparing,
    Ready,
    Release,
    SlotPicture,
    Tick,
    TickDone,
    TickStatus,
)
from steploom_engine_worker.engine import Costs, Done, Engine, Job, Pending, Pixels, ReadAdapter, Stage
from steploom_engine_worker.errors import (
    AdapterMissing,
    AdapterRefused,
    EngineStuck,
    FatalEngineError,
    ModelError,
    is_fatal,
    is_refused_memory,
)
from steploom_engine_worker.idleness import Idleness
from steploom_engine_worker.landing import Landing
from steploom_engine_worker.ledger import IllegalMove, Ledger, Verdict
from steploom_engine_worker.mailbox import Mailbox
from steploom_engine_worker.pace import Pace
from steploom_engine_worker.pictures import Pictures
from steploom_engine_worker.pulse import Pulse, Watch

log = logging.getLogger(__name__)

# Commands that may wait for the driving thread; a batcher sends an admission, a release and a few ticks for each slot.
MAX_WAITING = 1024

_LOOKS_A_SIGN = 5  # between signs of life while a preparation keeps ticks waiting


@dataclass(frozen=True)
class Limits:
    """How long the worker's threads may be at something before they are stuck."""

    tick: Overdue = field(default_factory=Overdue)  # held against the dearest bucket of the stage
    prepare_s: float = 1800.0  # loading and warming up, or one preparation


LIMITS = Limits()


class Session:
    """A batcher's hold on the worker. Once closed it gets no more reports, and its commands are dropped."""

    def __init__(self, emit: Callable[[TickDone], None], tell: Callable[[News], None]) -> None:
        self._emit, self._tell = emit, tell
        self._lock = threading.Lock()  # held while a picture is written, so that none is after `close`
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether it still holds the worker."""
        return self._is_open

    def close(self) -> None:
        """Ends it; returns when nothing more will be written."""
        with self._lock:
            self._is_open = False

    def report(self, done: TickDone) -> None:
        """Hands a report to the batcher."""
        with self._lock:
            if self._is_open:
                self._emit(done)

    def announce(self, news: News) -> None:
        """Tells the batcher what is no end of a tick."""
        with self._lock:
            if self._is_open:
                self._tell(news)

    def write(self, action: Callable[[], list[SlotPicture]]) -> list[SlotPicture]:
        """Runs `action`, which writes to the batcher's arena, unless it is closed."""
        with self._lock:
            return action() if self._is_open else []


def _nobody(_: News) -> None:
    """Is not told."""


class SessionTaken(RuntimeError):
    """Another batcher drives the worker."""


class WorkerLeaving(RuntimeError):
    """The worker is about to end."""


@dataclass(frozen=True)
class _Flight:
    """A tick that was started."""

    session: Session
    tick: Tick
    admits: tuple[Admit, ...]  # of its slots
    start_unix_s: float
    begin: float
    idle_s: float

    def answer(self, done: Done) -> TickDone:
        """Without pictures."""
        if done.seconds is None:
            seconds, start_unix_s = time.perf_counter() - self.begin, self.start_unix_s
        else:
            seconds, start_unix_s = done.seconds, time.time() - done.seconds
        tick_id, failures = self.tick.tick_id, done.failures
        return TickDone(tick_id, TickStatus.OK, seconds, start_unix_s, failures=failures, idle_s=self.idle_s)


@dataclass(frozen=True)
class _Read:
    """What came of reading an adapter, beside the ticks."""

    session: Session
    command: LoadAdapter
    read: ReadAdapter | Exception


class _Forget:
    """Frees every slot."""


class _Stop:
    """Ends the driving thread."""


_Item = tuple[Session, Command] | _Read | _Forget | _Stop


class Worker:
    """Owns the engine and its thread.

    Args:
        worker_id: unique among the workers of a batcher.
        build: makes the engine and measures its costs; runs on the driving thread.
        arena_directory: the only folder in which shared-memory arenas may lie.
        limits: of what its threads do.

    Attributes:
        ready: what the worker offers, once it is warm; or why it could not start.
        offer: the same as it is now, once `ready` is done.
        ended: done when the thread has ended; holds the error that ended it, if one did.
    """

    def __init__(
        self, worker_id: str, build: Callable[[], tuple[Engine, Costs]], arena_directory: Path, limits: Limits = LIMITS
    ) -> None:
        self._worker_id = worker_id
        self._build = build
        self._limits = limits
        self._drive, self._land_pulse = Pulse("driving"), Pulse("landing")
        self._watch = Watch((self._drive, self._land_pulse), self._give_up, self._look)
        self._limits_of: Costs | None = None  # the costs from which the limits of ticks follow
        self._limits_s: dict[Stage, float] = {}
        self._is_preparing = False
        self._num_looks = 0  # of the watch, while something was prepared
        self._arena_directory = arena_directory
        self._box: Mailbox[_Item] = Mailbox(MAX_WAITING)
        self._session: Session | None = None
        self._is_leaving = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="steploom-drive", daemon=True)
        self.ready: Future[Ready] = Future()
        self.ended: Future[None] = Future()
        for future in (self.ready, self.ended):
            future.set_running_or_notify_cancel()  # who waits may not cancel them
        self._engine: Engine
        self._pictures: Pictures
        self._ledger = Ledger(0)
        self._landing: Landing | None = None  # of an engine whose stages may be pending
        self._pace = Pace()
        self._reader = ThreadPoolExecutor(1, "steploom-read")  # one at a time: each is given a place of its own
        self._idleness = Idleness(time.perf_counter)
        self.offer: Ready

    def __repr__(self) -> str:
        return f"Worker({self._worker_id}, {self.statistics()})"

    def statistics(self) -> dict[str, int]:
        """Commands that wait, and the slots by phase."""
        return {"waiting": len(self._box), **self._ledger.statistics()}

    @property
    def is_idle(self) -> bool:
        """Whether no slot holds a job and nothing waits."""
        return not self._ledger.num_used and not len(self._box) and not self._landing

    @property
    def is_stuck(self) -> bool:
        """Whether it was given up, and its threads will not end."""
        return self.ended.done() and isinstance(self.ended.exception(), EngineStuck)

    @property
    def is_driven(self) -> bool:
        """Whether a batcher has it."""
        return self._session is not None

    def start(self) -> None:
        """Starts the driving thread, and who looks after it."""
        self._thread.start()
        self._watch.start()

    def leave(self) -> None:
        """Takes no more jobs: tells the batcher so, and no other gets the worker any more."""
        self._is_leaving = True
        if self._session is not None:
            self._session.announce(Leaving())

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread after the tick under way; False where it did not end in time."""
        self._is_stopping = True  # a session that closes now may throw the item below away
        self._box.replace(_Stop())
        self._thread.join(0.0 if self.is_stuck else timeout_s)
        return not self._thread.is_alive()

    def open_session(self, emit: Callable[[TickDone], None], tell: Callable[[News], None] = _nobody) -> Session:
        """Gives the worker to a batcher; `emit` and `tell` are called on threads of the worker.

        Raises:
            SessionTaken: another one has it.
            WorkerLeaving: nobody gets it any more.
        """
        if self._is_leaving:
            raise WorkerLeaving("the worker is about to end")
        if self._session is not None:
            raise SessionTaken("another batcher drives this worker")
        self._session = Session(emit, tell)
        return self._session

    def close_session(self, session: Session) -> None:
        """Forgets every slot and every command that waits; the tick under way ends unheard."""
        session.close()
        self._session = None
        self._box.replace(_Forget())

    def submit(self, session: Session, command: Command) -> bool:
        """Queues a command; False where the queue is full."""
        return self._box.try_put((session, command))

    def _run(self) -> None:
        try:
            with self._drive.at("loading and warming up", self._limits.prepare_s):
                self._engine, costs = self._build()
            self._pictures = Pictures(self._arena_directory, self._engine)
            self._ledger = Ledger(self._engine.num_slots)
            if self._engine.max_pending:
                self._landing = Landing(self._engine.max_pending, lambda: self._box.replace(_Forget()))
            self.offer = self._describe(costs)
            self.ready.set_result(self.offer)
            self._obey_until_stopped()
            if self._landing is not None:
                self._landing.close()
                self._check_device()
            self._pictures.close()
        except BaseException as error:
            log.debug("the driving thread ends", exc_info=error)
            self._end(error)
        else:
            self._end(None)
        finally:
            self._watch.end()

    def _end(self, error: BaseException | None) -> None:
        """On any thread: a worker that was given up may come to itself."""
        if error is not None:
            with suppress(InvalidStateError):
                self.ready.set_exception(error)
        with suppress(InvalidStateError):
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)

    def _give_up(self, found: str) -> None:
        """A thread is stuck, so is what it waits for: nothing of this process helps any more. On the watch's thread."""
        with suppress(OSError, ValueError):  # standard error may be gone
            faulthandler.dump_traceback(file=sys.stderr)
        self._end(EngineStuck(found))

    def _look(self) -> None:
        """Lets the batcher know now and then that ticks wait for a preparation. On the watch's thread."""
        session = self._session
        if not self._is_preparing or session is None:
            return
        self._num_looks += 1
        if self._num_looks % _LOOKS_A_SIGN == 0:
            session.announce(Preparing())

    @contextmanager
    def _preparing(self, what: str) -> Iterator[None]:
        """What may take minutes, and keeps ticks waiting."""
        self._is_preparing = True
        try:
            with self._drive.at(what, self._limits.prepare_s):
                yield
        finally:
            self._is_preparing = False

    def _limit_s(self, stage: Stage) -> float:
        """Of a tick; on any thread of the worker."""
        costs = self.offer.costs
        if self._limits_of is not costs:
            dearest = {each: max((s for (of, _), s in costs.items() if of == each), default=0.0) for each in Stage}
            self._limits_s = {each: self._limits.tick.limit_s(seconds) for each, seconds in dearest.items()}
            self._limits_of = costs
        return self._limits_s[stage]

    def _describe(self, costs: Costs) -> Ready:
        engine = self._engine
        progress, memory = engine.progress, engine.memory
        return Ready(
            self._worker_id, engine.name, engine.device, engine.num_slots, engine.model, costs, progress, memory
        )

    def _obey_until_stopped(self) -> None:
        while not self._is_stopping:
            item = self._next()
            self._check_device()
            if isinstance(item, _Stop):
                return
            if isinstance(item, _Forget):
                with self._drive.at("letting all jobs go", self._limits.tick.least_s):
                    self._forget_all()
            elif isinstance(item, _Read):
                with self._preparing("taking an adapter"):
                    self._take(item)
            elif item[0].is_open:
                with self._obeying(item[1]):
                    self._obey(*item)

    def _obeying(self, command: Command) -> AbstractContextManager[None]:
        if isinstance(command, Tick):
            return self._drive.at(
                f"tick {command.tick_id} ({command.stage.name.lower()})", self._limit_s(command.stage)
            )
        if isinstance(command, (Admit, Release)):
            return self._drive.at("an admission or a release", self._limits.tick.least_s)
        return self._preparing("an adapter")

    def _next(self) -> _Item:
        """Waits for a command; meanwhile the engine may prepare."""
        while True:
            is_busy = bool(self._ledger.num_used or self._landing)
            wait_s = self._pace.wait_s(time.monotonic(), is_busy)
            item = self._box.get(wait_s)
            if item is not None:
                return item
            if wait_s == 0.0:
                self._prepare()

    def _prepare(self) -> None:
        """Lets the engine prepare a part, and tells the batcher what costs less for it."""
        begin = time.monotonic()
        with self._preparing("a preparation"):
            costs = self._engine.prepare()
        self._pace.add(begin, time.monotonic(), costs is not None)
        if costs is None:
            return
        known = self.offer.costs
        cheaper = {bucket: seconds for bucket, seconds in costs.items() if bucket in known}  # others exceed the slots
        progress, memory = self._engine.progress, self._engine.memory
        self.offer = replace(self.offer, costs={**known, **cheaper}, progress=progress, memory=memory)
        session = self._session
        if session is not None:
            session.announce(Prepared(cheaper, progress, memory))

    def _obey(self, session: Session, command: Command) -> None:
        if isinstance(command, Tick):
            self._tick(session, command)
        elif isinstance(command, Admit):
            self._admit(command)
        elif isinstance(command, Release):
            self._release(command)
        elif isinstance(command, DropAdapter):
            self._drop(session, command)
        elif command.at_once:
            self._take(self._read(session, command))
        else:
            self._reader.submit(self._read_beside, session, command)

    def _read_beside(self, session: Session, command: LoadAdapter) -> None:
        """On the thread that reads; not for a batcher that has gone meanwhile."""
        if session.is_open:
            self._box.put(self._read(session, command))

    def _read(self, session: Session, command: LoadAdapter) -> _Read:
        """On any thread; a stage may be under way."""
        try:
            return _Read(session, command, self._engine.read_adapter(command.name))
        except Exception as error:
            return _Read(session, command, error)

    def _take(self, item: _Read) -> None:
        """Takes an adapter that was read, between ticks."""
        read, name = item.read, item.command.name
        if not item.session.is_open:
            return
        if isinstance(read, ReadAdapter):
            try:
                self._engine.put_adapter(read)
            except Exception as error:
                self._reraise_fatal(error, unless=isinstance(error, AdapterRefused))
                read = error
        if isinstance(read, ReadAdapter):
            log.info("adapter %s is loaded: %s", name, read.version.digest[:12])
            self._pace.resume()
            self._tell_adapters(item.session, item.command.change_id, digest=read.version.digest)
            return
        is_known = isinstance(read, (AdapterMissing, AdapterRefused, ModelError))
        log.error("adapter %s is not loaded: %s", name, read, exc_info=None if is_known else read)
        words = str(read) if is_known else f"{type(read).__name__}: {read}"
        is_missing = isinstance(read, AdapterMissing)
        self._tell_adapters(item.session, item.command.change_id, error=words, is_missing=is_missing)

    def _drop(self, session: Session, command: DropAdapter) -> None:
        try:
            self._engine.drop_adapter(command.name, command.digest)
        except Exception as error:
            self._reraise_fatal(error)
            log.exception("adapter %s is not dropped", command.name)
            self._tell_adapters(session, command.change_id, error=f"{type(error).__name__}: {error}")
        else:
            log.info("adapter %s is dropped: %s", command.name, command.digest[:12])
            self._tell_adapters(session, command.change_id)

    def _tell_adapters(self, session: Session, change_id: int, **outcome: Any) -> None:
        model, memory = self._engine.model, self._engine.memory
        self.offer = replace(self.offer, model=model, memory=memory, progress=self._engine.progress)
        session.announce(AdapterChanged(change_id, model.versions, memory, **outcome))

    def _admit(self, admit: Admit) -> None:
        try:
            self._ledger.admit(admit)
        except IllegalMove as error:
            log.error("job %s is not admitted: %s", admit.job_id, error, extra=_about(admit))
            if admit.slot in self._ledger.used:
                self._ledger.break_slot(admit.slot, str(error))
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("job %s is in slot %d", admit.job_id, admit.slot, extra=_about(admit))
        try:
            self._engine.admit(admit.slot, self._job(admit))
        except Exception as error:
            self._reraise_fatal(error)
            log.warning("job %s cannot run: %s", admit.job_id, error, extra=_about(admit))
            self._ledger.break_slot(admit.slot, str(error))

    def _job(self, admit: Admit) -> Job:
        model = self._engine.model
        return Job(
            instruction=admit.instruction,
            pixels=self._pictures.read(admit.picture, model.height, model.width),
            steps=admit.steps,
            guidance_scale=admit.guidance_scale,
            image_guidance_scale=admit.image_guidance_scale,
            seed=admit.seed,
            sampler=admit.sampler,
            adapter=admit.adapter,
            adapter_digest=admit.adapter_digest,
        )

    def _release(self, release: Release) -> None:
        try:
            self._ledger.release(release.slot)
        except IllegalMove as error:
            log.error("nothing to release: %s", error)
            return
        self._engine.release(release.slot)

    def _forget_all(self) -> None:
        for slot in self._ledger.used:
            self._release(Release(slot))

    def _tick(self, session: Session, tick: Tick) -> None:
        """Judge, start, commit; and land, where it is done at once."""
        start_unix_s = time.time()
        verdict, reason = self._ledger.judge(tick)
        if verdict is not Verdict.RUN:
            status = TickStatus.SKIPPED if verdict is Verdict.SKIP else TickStatus.FAILED
            self._refuse(session, tick, TickDone(tick.tick_id, status, 0.0, start_unix_s, reason))
            return
        if self._landing is not None:
            self._landing.make_room()
            self._check_device()
        begin, idle_s = time.perf_counter(), self._idleness.begin()
        try:
            started = self._start(tick)
        except Exception as error:
            self._idleness.end()
            # fewer jobs need less memory: a tick that has failed is run again in halves
            may_run_smaller = is_refused_memory(error) and len(tick.slots) > 1
            self._reraise_fatal(error, unless=may_run_smaller)
            jobs = [self._ledger[slot].admit.job_id for slot in tick.slots]
            words = "tick %d failed: %s of slots %s"
            log.exception(words, tick.tick_id, tick.stage.name, list(tick.slots), extra=about(job_ids=jobs))
            seconds = time.perf_counter() - begin
            reason = f"{type(error).__name__}: {error}"
            failed = TickDone(tick.tick_id, TickStatus.FAILED, seconds, start_unix_s, reason)
            self._refuse(session, tick, failed)
            return
        self._ledger.commit(tick)
        admits = tuple(self._ledger[slot].admit for slot in tick.slots)
        flight = _Flight(session, tick, admits, start_unix_s, begin, idle_s)
        self._in_order(tick, lambda: self._land(flight, started))

    def _refuse(self, session: Session, tick: Tick, done: TickDone) -> None:
        """Answers a tick that has not run."""

        def answer() -> None:
            if tick.stage is Stage.ENCODE:  # the batcher may now let a job go: the device must have read its picture
                self._engine.check()
            session.report(done)

        self._in_order(tick, answer)

    def _check_device(self) -> None:
        """Raises what the device has failed with, if it has."""
        error = self._landing.error if self._landing is not None else None
        if error is not None:
            raise _fatal(error) from error

    def _in_order(self, tick: Tick, action: Callable[[], None]) -> None:
        """Runs what answers a tick after the answers of all before it."""
        if self._landing is None:
            action()
            return

        def land() -> None:
            with self._land_pulse.at(f"tick {tick.tick_id} ({tick.stage.name.lower()})", self._limit_s(tick.stage)):
                action()

        self._landing.add(land)

    def _start(self, tick: Tick) -> Done | Pending:
        if tick.stage is Stage.ENCODE:
            return self._engine.encode(tick.slots)
        if tick.stage is Stage.DENOISE:
            return self._engine.denoise(tick.slots, tick.steps, self._previewed(tick))
        return self._engine.decode(tick.slots)

    def _previewed(self, tick: Tick) -> list[int]:
        """The slots whose jobs asked for a preview after this step."""
        slots = []
        for slot, step in zip(tick.slots, tick.steps, strict=True):
            admit, count = self._ledger[slot].admit, step + 1
            if admit.preview_every and count % admit.preview_every == 0 and count < admit.steps:
                slots.append(slot)
        return slots

    def _land(self, flight: _Flight, started: Done | Pending) -> None:
        """Waits for a tick, writes its pictures, and answers it."""
        done = started.wait()
        self._idleness.end()
        answer = flight.answer(done)
        failures = dict(done.failures)
        pictures: list[SlotPicture] = []
        if flight.tick.stage is Stage.DECODE:
            pictures = flight.session.write(lambda: self._finished(flight, done.pictures, failures))
        elif flight.tick.stage is Stage.DENOISE:
            pictures = self._previews(done, failures)
        for slot, reason in failures.items():
            extra = next((_about(admit) for admit in flight.admits if admit.slot == slot), None)
            log.warning("tick %d: slot %d cannot go on: %s", flight.tick.tick_id, slot, reason, extra=extra)
        flight.session.report(replace(answer, pictures=pictures, failures=failures))

    def _finished(self, flight: _Flight, found: Sequence[Pixels], failures: dict[int, str]) -> list[SlotPicture]:
        """Of the jobs that have not failed; one whose place cannot be written to fails here."""
        pictures = []
        for admit, pixels in zip(flight.admits, found, strict=True):
            if admit.slot in failures:
                continue
            try:
                pictures.append(SlotPicture(admit.slot, self._pictures.write(pixels, admit.output)))
            except ValueError as error:
                failures[admit.slot] = f"its picture cannot be written: {error}"
        return pictures

    def _previews(self, done: Done, failures: Mapping[int, str]) -> list[SlotPicture]:
        """Of the jobs that have not failed; a preview that fails is left out."""
        pictures = []
        for slot, draw in done.previews.items():
            if slot in failures:
                continue
            try:
                pictures.append(SlotPicture(slot, self._pictures.write(draw(), None)))
            except Exception as error:
                self._reraise_fatal(error, unless=is_refused_memory(error))
                log.exception("no preview of slot %d", slot)
        return pictures

    def _reraise_fatal(self, error: Exception, unless: bool = False) -> None:
        """Raises where the engine cannot go on: `error` says so, or the device does, whatever the error's words are.

        Args:
            error: what a stage or an admission raised.
            unless: whether its words are no reason; the device is asked all the same.
        """
        if is_fatal(error) and not unless:
            raise _fatal(error) from error
        if isinstance(error, ValueError):  # of a job's own; asking waits for all that the device is at
            return
        try:
            self._engine.check()
        except Exception as lost:
            raise _fatal(lost) from error


def _about(admit: Admit) -> dict[str, Fields]:
    """Of a line about a job."""
    return about(**ids_of(admit.job_id, admit.traceparent))


def _fatal(error: BaseException) -> FatalEngineError:
    return FatalEngineError(f"{type(error).__name__}: {error}")
