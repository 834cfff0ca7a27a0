"""A device that fails, wherever in the worker it shows: the worker ends, or a smaller tick is left to try."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_faults import LOST, REFUSED, fault

from steploom_engine_worker.commands import Admit, Picture, Tick, TickDone, TickStatus
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Costs, Done, Job, Pending, Pixels, Stage
from steploom_engine_worker.errors import EngineError, FatalEngineError, ModelError, is_fatal, is_refused_memory
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.torch_engine import device_of
from steploom_engine_worker.worker import Worker

SIDE = 16
PATIENCE_S = 60.0
ALL = [*LOST, *REFUSED]


class Faulty(FakeEngine):
    """Raises what it is given, at the place that it is given for, as often as it is met."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.faults: dict[str, Callable[[], Exception]] = {}
        self.checks = 0

    @property
    def max_pending(self) -> int:
        return 2

    def meet(self, place: str) -> None:
        if place in self.faults:
            raise self.faults[place]()

    def admit(self, slot: int, job: Job) -> None:
        self.meet("admit")
        super().admit(slot, job)

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        self.meet("encode")
        if len(slots) > 1:
            self.meet("encode of several")
        return super().encode(slots)

    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        self.meet("denoise")
        done = super().denoise(slots, steps, previewed).wait()
        previews = {slot: partial(self.draw, make) for slot, make in done.previews.items()}
        return Landed(replace(done, previews=previews), self)

    def draw(self, make: Callable[[], Pixels]) -> Pixels:
        self.meet("preview")
        return make()

    def check(self) -> None:
        self.checks += 1
        self.meet("check")


class Landed:
    """A stage whose fault shows when it is waited for."""

    def __init__(self, done: Done, engine: Faulty) -> None:
        self._done = done
        self._engine = engine

    def wait(self) -> Done:
        self._engine.meet("wait")
        return self._done


class Rig:
    """A worker over a faulty device, and the batcher's side of it."""

    def __init__(self, folder: Path) -> None:
        self.engine = Faulty(WorkerConfig(engine="fake", slots=4, fake=FakeConfig(height=SIDE, width=SIDE)))
        self.worker = Worker("w", lambda: (self.engine, {}), folder)
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

    def run(self, stage: Stage, slots: list[int], steps: list[int] | None = None) -> TickDone:
        self.post(stage, slots, steps)
        return self.reports.get(timeout=PATIENCE_S)

    def assert_ended_unheard(self) -> None:
        with pytest.raises(FatalEngineError):
            self.worker.ended.result(timeout=PATIENCE_S)
        assert self.reports.empty()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    assert rig.worker.stop(PATIENCE_S)


@pytest.mark.parametrize("kind", ALL)
def test_what_a_driver_raises_is_fatal_wherever_it_comes_from(kind: str) -> None:
    assert is_fatal(fault(kind))
    with pytest.raises(RuntimeError, match="without capture_begin") as broken_off:
        record_and_break_off(kind)
    assert is_fatal(broken_off.value)
    with pytest.raises(ModelError) as unread:
        raise ModelError(Path("unet"), "cannot be loaded") from fault(kind)
    assert is_fatal(unread.value)


def record_and_break_off(kind: str) -> None:
    try:
        raise fault(kind)
    finally:
        raise RuntimeError("capture_end was called without capture_begin")


@pytest.mark.parametrize("error", [EngineError("poisoned"), ValueError("out of memory"), RuntimeError("shapes differ")])
def test_what_is_no_fault_of_the_device_is_not_fatal(error: Exception) -> None:
    assert not is_fatal(error)
    assert not is_refused_memory(error)


def test_a_fault_that_was_judged_already_is_not_fatal() -> None:
    with pytest.raises(ValueError, match="no such device") as judged:
        judge("illegal address")
    assert not is_fatal(judged.value)


@pytest.mark.parametrize("kind", ["memory", "memory of the driver"])
def test_a_device_without_memory_is_no_wrong_setting(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise fault(kind)

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(RuntimeError, match="out of memory") as full:
        device_of(WorkerConfig(device="cuda"))
    assert is_fatal(full.value)


def judge(kind: str) -> None:
    try:
        raise fault(kind)
    except RuntimeError:
        raise ValueError("no such device") from None


def test_only_an_allocator_s_refusal_leaves_the_device_as_it_was() -> None:
    assert all(is_refused_memory(make()) for make in REFUSED.values())
    assert not any(is_refused_memory(make()) for make in LOST.values())


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("place", ["admit", "encode", "denoise", "wait", "preview"])
def test_a_lost_device_ends_the_worker_and_fails_no_job(rig: Rig, place: str, kind: str) -> None:
    rig.engine.faults[place] = LOST[kind]
    rig.admit(0, preview_every=1)
    rig.admit(1)
    rig.post(Stage.ENCODE, [0, 1])
    if place in ("denoise", "wait", "preview"):
        assert rig.reports.get(timeout=PATIENCE_S).status is TickStatus.OK
        rig.post(Stage.DENOISE, [0, 1], [0, 0])
        rig.post(Stage.DENOISE, [1], [1])
    rig.assert_ended_unheard()


@pytest.mark.parametrize("kind", ALL)
def test_a_device_that_fails_while_it_is_made_ready_ends_the_worker(tmp_path: Path, kind: str) -> None:
    def build() -> tuple[FakeEngine, Costs]:
        raise fault(kind)

    worker = Worker("w", build, tmp_path)
    worker.start()
    error = worker.ended.exception(timeout=PATIENCE_S)
    assert error is not None
    assert is_fatal(error)
    assert worker.ready.exception(timeout=PATIENCE_S) is error


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tick_of_several_jobs_without_memory_fails_so_that_smaller_ones_are_tried(rig: Rig, kind: str) -> None:
    rig.engine.faults["encode of several"] = REFUSED[kind]
    rig.admit(0)
    rig.admit(1)
    assert rig.run(Stage.ENCODE, [0, 1]).status is TickStatus.FAILED
    assert [rig.run(Stage.ENCODE, [slot]).status for slot in (0, 1)] == [TickStatus.OK] * 2
    assert rig.run(Stage.DENOISE, [0, 1], [0, 0]).status is TickStatus.OK


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("place", ["admit", "encode", "denoise", "wait"])
def test_without_memory_for_a_single_job_the_worker_ends(rig: Rig, place: str, kind: str) -> None:
    rig.engine.faults[place] = REFUSED[kind]
    rig.admit(0)
    rig.post(Stage.ENCODE, [0])
    if place in ("denoise", "wait"):
        assert rig.reports.get(timeout=PATIENCE_S).status is TickStatus.OK
        rig.post(Stage.DENOISE, [0], [0])
    rig.assert_ended_unheard()


def test_without_memory_for_a_preview_the_job_goes_on(rig: Rig) -> None:
    rig.engine.faults["preview"] = REFUSED["memory"]
    rig.admit(0, preview_every=1)
    rig.run(Stage.ENCODE, [0])
    done = rig.run(Stage.DENOISE, [0], [0])
    assert (done.status, done.pictures, done.failures) == (TickStatus.OK, [], {})


def test_an_error_without_a_name_has_the_device_asked(rig: Rig) -> None:
    """Words that nobody has foreseen must not make every job fail on a device that is gone."""
    rig.engine.faults |= {"denoise": lambda: RuntimeError("something new"), "check": LOST["illegal address"]}
    rig.admit(0)
    rig.run(Stage.ENCODE, [0])
    rig.post(Stage.DENOISE, [0], [0])
    with pytest.raises(FatalEngineError, match="illegal memory access"):
        rig.worker.ended.result(timeout=PATIENCE_S)
    assert rig.reports.empty()


def test_a_device_that_answers_fails_the_tick_alone(rig: Rig) -> None:
    rig.engine.faults["denoise"] = lambda: RuntimeError("something new")
    rig.admit(0)
    rig.run(Stage.ENCODE, [0])
    assert rig.run(Stage.DENOISE, [0], [0]).status is TickStatus.FAILED
    assert rig.engine.checks == 1
    rig.admit(1, steps=0)  # out of bounds: its own fault
    assert rig.run(Stage.ENCODE, [1]).status is TickStatus.FAILED
    assert rig.engine.checks == 2  # for its picture, which may still be on its way
