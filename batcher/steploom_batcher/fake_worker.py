"""A worker in memory: takes its time from a cost table on the loop's clock, and fails on command."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from steploom_batcher.messages import (
    AdapterChanged,
    AdapterVersion,
    Admit,
    Command,
    DropAdapter,
    Free,
    Leaving,
    LoadAdapter,
    Model,
    Payload,
    Picture,
    Prepared,
    Preparing,
    Ready,
    TickReport,
)
from steploom_batcher.messages import Report as AnyReport
from steploom_batcher.types import Entry, Outcome, Stage, StageCosts, Status, Tick
from steploom_common.adapter import AdapterTraits

Report = Callable[[TickReport | AdapterChanged], None]


def flat_costs(encode_s: float, row_s: float, decode_s: float, max_rows: int = 24) -> StageCosts:
    """A device that takes `row_s` a row and as much as six rows for the tick itself; encode and decode up to 8 jobs."""
    rows = [bucket for bucket in (1, 2, 3, 6, 12, 24, 48) if bucket <= max_rows]
    return {
        Stage.ENCODE: dict.fromkeys((1, 2, 4, 8), encode_s),
        Stage.DENOISE: {bucket: row_s * (bucket + 6) for bucket in rows},
        Stage.DECODE: dict.fromkeys((1, 2, 4, 8), decode_s),
    }


def fake_model(name: str = "fake", height: int = 4, width: int = 4) -> Model:
    """A model of tiny pictures, with a guidance-distilled adapter for few steps and small scales."""
    student = AdapterTraits(
        max_steps=4, is_guidance_distilled=True, max_guidance_scale=10.0, max_image_guidance_scale=3.0
    )
    return Model(name, height, width, 100, 7.5, 1.5, 1, {"student": student}, (4, height, width), "0")


def fake_ready(costs: StageCosts, num_slots: int = 16, model: Model | None = None) -> Ready:
    """What a fake worker announces."""
    return Ready("fake-worker", "fake", "none", num_slots, model or fake_model(), costs)


@dataclass(slots=True)
class _Slot:
    job_id: str
    payload: Payload
    stage: Stage = Stage.ENCODE  # what it is at
    step: int = 0

    def is_at(self, tick: Tick, entry: Entry) -> bool:
        return self.stage is tick.stage and (tick.stage is not Stage.DENOISE or self.step == entry.step)

    def advance(self) -> None:
        if self.stage is Stage.ENCODE:
            self.stage = Stage.DENOISE
        elif self.stage is Stage.DENOISE:
            self.step += 1
            if self.step == self.payload.steps:
                self.stage = Stage.DECODE


class FakeWorker:
    """Runs commands strictly in order, one tick at a time.

    Args:
        costs: seconds of each bucket of each stage; a tick of no seconds ends in the next turn of the loop.
        report: gets each tick's end.
        versions: of adapters that it has.
        folder: what loading an adapter gives: a version, or why it cannot be loaded; after so many seconds.
    """

    def __init__(
        self,
        costs: StageCosts,
        report: Report,
        versions: Sequence[AdapterVersion] = (),
        folder: Mapping[str, tuple[AdapterVersion | str, float]] = MappingProxyType({}),
    ) -> None:
        self.versions = tuple(versions)
        self._folder = folder
        self.costs = costs
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._line: deque[Command] = deque()
        self._running: asyncio.Handle | None = None
        self._is_dead = False
        self.slots: dict[int, _Slot] = {}
        self.poison: set[str] = set()  # jobs that make any tick raise
        self.overflow: dict[str, tuple[Stage, int]] = {}  # jobs whose values go bad, and from which stage and step on
        self.fail_ticks = 0  # so many of the next ticks raise, whoever is in them
        self.history: list[Command] = []
        self.misfits: list[str] = []  # jobs that came for a version that it has not, or lost theirs

    def __repr__(self) -> str:
        return f"FakeWorker(slots={sorted(self.slots)}, line={len(self._line)})"

    def send(self, commands: list[Command]) -> None:
        """Puts commands in line."""
        if self._is_dead:
            return
        self.history += commands
        self._line += commands
        if self._running is None:
            self._next()

    def crash(self) -> None:
        """Dies with all it holds; says nothing more."""
        self._is_dead = True
        self._line.clear()
        if self._running is not None:
            self._running.cancel()

    def hang_up(self) -> None:
        """Nobody listens any more."""
        self.crash()

    def hang(self) -> None:
        """Never ends the tick that is running."""
        if self._running is not None:
            self._running.cancel()

    def _next(self) -> None:
        self._running = None
        while self._line and self._running is None:
            command = self._line.popleft()
            if isinstance(command, Admit):
                assert command.slot not in self.slots, f"slot {command.slot} is taken"
                self.slots[command.slot] = _Slot(command.job_id, self._fitted(command.job_id, command.payload))
            elif isinstance(command, Free):
                del self.slots[command.slot]
            elif isinstance(command, Tick):
                self._start(command)
            elif isinstance(command, LoadAdapter):
                found, seconds = self._folder.get(command.name, ("there is none", 0.0))
                if command.at_once:
                    self._running = self._loop.call_later(seconds, self._load_at_once, command, found)
                else:
                    self._loop.call_later(seconds, self._load, command, found)
            else:
                self._drop(command)

    def _fitted(self, job_id: str, payload: Payload) -> Payload:
        """With a version that it has, as a worker does it; a job whose adapter it has not makes its ticks raise."""
        digests = [item.digest for item in self.versions if item.name == payload.adapter]
        if not payload.adapter or payload.adapter_digest in digests:
            return payload
        self.misfits.append(job_id)
        if digests:
            return replace(payload, adapter_digest=digests[-1])
        self.poison.add(job_id)
        return payload

    def _load_at_once(self, command: LoadAdapter, found: AdapterVersion | str) -> None:
        self._load(command, found)
        self._next()

    def _load(self, command: LoadAdapter, found: AdapterVersion | str) -> None:
        if self._is_dead:
            return
        if isinstance(found, str):
            is_missing = command.name not in self._folder
            self._report(AdapterChanged(command.change_id, self.versions, error=found, is_missing=is_missing))
            return
        self.versions = (*(item for item in self.versions if item != found), found)
        self._report(AdapterChanged(command.change_id, self.versions, digest=found.digest))

    def _drop(self, command: DropAdapter) -> None:
        gone = command.name, command.digest
        self.misfits += [
            f"{slot.job_id} loses its adapter"
            for slot in self.slots.values()
            if (slot.payload.adapter, slot.payload.adapter_digest) == gone
        ]
        self.versions = tuple(item for item in self.versions if (item.name, item.digest) != gone)
        self._report(AdapterChanged(command.change_id, self.versions))

    def _start(self, tick: Tick) -> None:
        if not all(self.slots[entry.slot].is_at(tick, entry) for entry in tick.entries):
            self._running = self._loop.call_soon(self._end, tick, Outcome(Status.SKIPPED))
            return
        seconds = self.costs[tick.stage][tick.bucket]
        outcome = Outcome(Status.OK, seconds)
        if self.fail_ticks:
            self.fail_ticks -= 1
            outcome = Outcome(Status.FAILED, seconds, "failed on command")
        elif any(self.slots[entry.slot].job_id in self.poison for entry in tick.entries):
            outcome = Outcome(Status.FAILED, seconds, "a poisoned job")
        elif bad := [entry.slot for entry in tick.entries if self._overflows(tick, entry)]:
            outcome = Outcome(Status.OK, seconds, failures=dict.fromkeys(bad, "values that are not finite"))
        if seconds:
            self._running = self._loop.call_later(seconds, self._end, tick, outcome)
        else:
            self._running = self._loop.call_soon(self._end, tick, outcome)

    def _overflows(self, tick: Tick, entry: Entry) -> bool:
        """Once bad, values stay so in the ticks that are in flight behind."""
        since = self.overflow.get(self.slots[entry.slot].job_id)
        return since is not None and (tick.stage, entry.step) >= since

    def _end(self, tick: Tick, outcome: Outcome) -> None:
        pictures = self._advance(tick, outcome.failures) if outcome.status is Status.OK else ()
        self._report(TickReport(tick.tick_id, outcome, pictures))
        self._next()

    def _advance(self, tick: Tick, failures: Container[int]) -> tuple[tuple[int, Picture], ...]:
        """Moves every job, those that have failed too: a tick behind this one would else be out of step."""
        pictures = []
        for entry in tick.entries:
            slot = self.slots[entry.slot]
            slot.advance()
            if entry.slot in failures:
                continue
            every = slot.payload.preview_every
            if tick.stage is Stage.DECODE or (tick.stage is Stage.DENOISE and every and slot.step % every == 0):
                pictures.append((entry.slot, self._draw(slot.payload, tick.stage)))
        return tuple(pictures)

    @staticmethod
    def _draw(payload: Payload, stage: Stage) -> Picture:
        """A picture that tells seed and instruction; one that has a region stays undrawn."""
        source = payload.picture
        if payload.output is not None and stage is Stage.DECODE:
            return Picture(source.height, source.width, payload.output)
        size = source.height * source.width * 3
        text = f"{payload.seed}:{payload.instruction}:".encode() + payload.adapter_digest.encode()
        return Picture(source.height, source.width, (text * (size // len(text) + 1))[:size])


class FakeHost:
    """An address where a fake worker lives: it is dialled like a real one, dies on command and comes back.

    Args:
        ready: what each worker here announces.
    """

    def __init__(self, ready: Ready) -> None:
        self.ready = ready
        self._reports: asyncio.Queue[AnyReport | None] = asyncio.Queue()
        self.worker: FakeWorker | None = None  # of the session that is open
        self.folder: dict[str, tuple[AdapterVersion | str, float]] = {}  # see `FakeWorker`
        self.is_listening = True
        self.dialled_at: list[float] = []  # on the loop's clock

    def __repr__(self) -> str:
        return f"FakeHost({self.worker!r}, listening={self.is_listening})"

    @asynccontextmanager
    async def dial(self, address: str) -> AsyncIterator[FakeSession]:
        """See `worker_link.Dial`."""
        self.dialled_at.append(asyncio.get_running_loop().time())
        if not self.is_listening:
            raise ConnectionError(f"UNAVAILABLE: nobody listens at {address}")
        if self.worker is not None:
            raise ConnectionError("ALREADY_EXISTS: another batcher drives this worker")
        reports = self._reports = asyncio.Queue()
        worker = self.worker = FakeWorker(self.ready.costs, reports.put_nowait, self.ready.model.held, self.folder)
        try:
            yield FakeSession(self.ready, worker, reports)
        finally:
            worker.crash()
            if self.worker is worker:
                self.worker = None

    def announce(self, news: Prepared | Preparing) -> None:
        """Tells the batcher."""
        self._reports.put_nowait(news)

    def leave(self) -> FakeWorker:
        """The worker takes no more jobs, and gives way to another one; gives the one that leaves."""
        assert self.worker is not None
        leaving, self.worker = self.worker, None
        self._reports.put_nowait(Leaving())
        return leaving

    def kill(self) -> None:
        """The process dies."""
        if self.worker is not None:
            self.worker.crash()
            self._reports.put_nowait(None)


class FakeSession:
    """See `worker_link.Session`."""

    def __init__(self, ready: Ready, worker: FakeWorker, reports: asyncio.Queue[AnyReport | None]) -> None:
        self.ready = ready
        self._worker = worker
        self._reports = reports

    async def write(self, commands: Sequence[Command]) -> None:
        """Hands the commands over at once."""
        self._worker.send([*commands])

    async def read(self) -> AnyReport:
        """Waits for a report; None in line stands for a broken stream."""
        report = await self._reports.get()
        if report is None:
            raise ConnectionError("UNAVAILABLE: the worker died")
        return report
