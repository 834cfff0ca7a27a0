"""The worker over a device that works by itself: ticks are started ahead, answered in order, and lost together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steploom_engine_worker.commands import Admit, Picture, Release, Tick, TickDone, TickStatus
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Done, Pending, Stage
from steploom_engine_worker.errors import EngineError, FatalEngineError
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.landing import Landing
from steploom_engine_worker.worker import Worker

SIDE = 16
PATIENCE_S = 60.0
DEPTH = 2


@dataclass
class Flight:
    """A stage that ends when it is told to."""

    done: Done
    error: BaseException | None = None
    may_end: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> Done:
        assert self.may_end.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.done


class Device(FakeEngine):
    """Works by itself: what it is at lies in `flights`, in the order in which it was started."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.flights: queue.Queue[Flight] = queue.Queue()
        self.all: list[Flight] = []

    @property
    def max_pending(self) -> int:
        return DEPTH

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        return self._fly(super().encode(slots))

    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        return self._fly(super().denoise(slots, steps, previewed))

    def decode(self, slots: Sequence[int]) -> Done | Pending:
        return self._fly(super().decode(slots))

    def _fly(self, started: Done | Pending) -> Flight:
        done = started.wait()
        flight = Flight(Done(done.pictures, done.failures, 0.25, done.previews))
        self.all.append(flight)
        self.flights.put(flight)
        return flight

    def next_flight(self) -> Flight:
        """The next one to be started, which goes on."""
        return self.flights.get(timeout=PATIENCE_S)


class Rig:
    """A worker, its device, and a batcher's side."""

    def __init__(self, tmp_path: Path) -> None:
        fake = FakeConfig(height=SIDE, width=SIDE)
        self.device = Device(WorkerConfig(engine="fake", slots=4, fake=fake))
        self.worker = Worker("w", lambda: (self.device, {}), tmp_path)
        self.worker.start()
        self.worker.ready.result(timeout=PATIENCE_S)
        self.reports: queue.Queue[TickDone] = queue.Queue()
        self.session = self.worker.open_session(self.reports.put)
        self._tick_id = 0

    def admit(self, slot: int, **changes: Any) -> None:
        picture = Picture(SIDE, SIDE, np.zeros((SIDE, SIDE, 3), np.uint8).tobytes())
        values = {"instruction": "x", "picture": picture, "output": None, "steps": 2, "seed": slot}
        values |= {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
        assert self.worker.submit(self.session, Admit(job_id=str(slot), slot=slot, **{**values, **changes}))

    def post(self, stage: Stage, slots: list[int], steps: list[int] | None = None) -> None:
        self._tick_id += 1
        assert self.worker.submit(self.session, Tick(self._tick_id, stage, slots, steps or []))

    def report(self) -> TickDone:
        return self.reports.get(timeout=PATIENCE_S)

    def run(self, stage: Stage, slots: list[int], steps: list[int] | None = None) -> TickDone:
        """A tick from its start to its answer."""
        self.post(stage, slots, steps)
        self.device.next_flight().may_end.set()
        return self.report()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    for flight in rig.device.all:
        flight.may_end.set()
    assert rig.worker.stop(PATIENCE_S)


def test_ticks_are_started_ahead_and_answered_in_order(rig: Rig) -> None:
    rig.admit(0)
    rig.post(Stage.ENCODE, [0])
    rig.post(Stage.DENOISE, [0], [0])
    rig.post(Stage.DENOISE, [0], [1])
    first, second = rig.device.next_flight(), rig.device.next_flight()  # both under way, though none has ended
    second.may_end.set()
    assert rig.reports.empty()
    first.may_end.set()
    rig.device.next_flight().may_end.set()
    reports = [rig.report() for _ in range(3)]
    assert [(item.tick_id, item.status, item.seconds) for item in reports] == [
        (number, TickStatus.OK, 0.25) for number in (1, 2, 3)
    ]
    assert rig.worker.statistics()["encoded"] == 1


def test_no_more_are_started_than_the_device_takes(rig: Rig) -> None:
    rig.admit(0, steps=4)
    rig.post(Stage.ENCODE, [0])
    for step in range(4):
        rig.post(Stage.DENOISE, [0], [step])
    flights = [rig.device.next_flight() for _ in range(DEPTH)]
    with pytest.raises(queue.Empty):
        rig.device.flights.get(timeout=0.1)
    assert not rig.worker.is_idle
    flights[0].may_end.set()
    flights.append(rig.device.next_flight())
    for flight in flights:
        flight.may_end.set()
    for _ in range(2):
        rig.device.next_flight().may_end.set()
    assert [rig.report().status for _ in range(5)] == [TickStatus.OK] * 5


def test_what_fails_at_its_start_is_answered_in_order_and_its_jobs_stay(rig: Rig) -> None:
    rig.admit(0)
    rig.admit(1, instruction="poison")
    rig.run(Stage.ENCODE, [0, 1])
    rig.post(Stage.DENOISE, [0], [0])
    rig.post(Stage.DENOISE, [0, 1], [1, 0])
    rig.post(Stage.DENOISE, [3], [0])
    flight = rig.device.next_flight()
    with pytest.raises(queue.Empty):
        rig.reports.get(timeout=0.1)
    flight.may_end.set()
    assert [rig.report().status for _ in range(3)] == [TickStatus.OK, TickStatus.FAILED, TickStatus.SKIPPED]
    assert rig.run(Stage.DENOISE, [0], [1]).status is TickStatus.OK


def test_a_job_that_fails_on_the_device_takes_nobody_along(rig: Rig) -> None:
    rig.admit(0)
    rig.admit(1, instruction="overflow")
    rig.run(Stage.ENCODE, [0, 1])
    done = rig.run(Stage.DENOISE, [0, 1], [0, 0])
    assert (done.status, list(done.failures)) == (TickStatus.OK, [1])
    assert rig.run(Stage.DENOISE, [0], [1]).status is TickStatus.OK
    done = rig.run(Stage.DECODE, [0])
    assert [item.slot for item in done.pictures] == [0]


def test_previews_are_taken_when_the_step_is_done(rig: Rig) -> None:
    rig.admit(0, steps=3, preview_every=1)
    rig.run(Stage.ENCODE, [0])
    assert [len(rig.run(Stage.DENOISE, [0], [step]).pictures) for step in range(3)] == [1, 1, 0]


def test_a_lost_device_ends_the_worker_and_answers_nothing_more(rig: Rig) -> None:
    rig.admit(0)
    rig.post(Stage.ENCODE, [0])
    rig.post(Stage.DENOISE, [0], [0])
    lost, behind = rig.device.next_flight(), rig.device.next_flight()
    lost.error = EngineError("the device has fallen off the bus")
    lost.may_end.set()
    behind.may_end.set()
    with pytest.raises(FatalEngineError, match="EngineError: the device has fallen off the bus"):
        rig.worker.ended.result(timeout=PATIENCE_S)
    assert rig.reports.empty()


def test_a_device_that_is_lost_as_the_batcher_leaves_still_ends_the_worker(rig: Rig) -> None:
    """What tells the driving thread may be thrown away with the commands of a batcher that leaves."""
    rig.admit(0)
    for _ in range(DEPTH + 1):  # the driving thread waits for room
        rig.post(Stage.ENCODE, [0])
    rig.admit(1)
    rig.post(Stage.ENCODE, [1])
    rig.post(Stage.DENOISE, [1], [0])
    lost = rig.device.next_flight()
    lost.error = EngineError("gone")
    rig.worker.close_session(rig.session)
    lost.may_end.set()
    with pytest.raises(FatalEngineError, match="gone"):
        rig.worker.ended.result(timeout=PATIENCE_S)


def test_a_device_that_is_lost_while_the_worker_stops_is_told(rig: Rig) -> None:
    rig.admit(0)
    rig.post(Stage.ENCODE, [0])
    lost = rig.device.next_flight()
    lost.error = EngineError("gone")
    assert not rig.worker.stop(0.01)
    lost.may_end.set()
    with pytest.raises(FatalEngineError, match="gone"):
        rig.worker.ended.result(timeout=PATIENCE_S)


def test_a_closed_session_hears_nothing_of_what_lands(rig: Rig) -> None:
    rig.admit(0)
    rig.post(Stage.ENCODE, [0])
    flight = rig.device.next_flight()
    rig.worker.close_session(rig.session)
    again = rig.worker.open_session(rig.reports.put)
    rig.session = again
    flight.may_end.set()
    rig.admit(0)  # its slot is free again
    assert rig.run(Stage.ENCODE, [0]).tick_id == 2
    assert rig.worker.submit(again, Release(0))


def test_landing_ends_what_is_under_way_before_it_closes() -> None:
    ran: list[int] = []
    gate = threading.Event()
    landing = Landing(2, crash=lambda: ran.append(-1))

    def first() -> None:
        assert gate.wait(PATIENCE_S)
        ran.append(1)

    landing.add(first)
    landing.add(lambda: ran.append(2))
    assert len(landing) == 2
    assert not landing.close(0.01)
    gate.set()
    assert landing.close(PATIENCE_S)
    assert ran == [1, 2]
