"""Shared memory that a device reads by itself: registered while it is mapped, and not a moment longer."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from steploom_common.arena import Arena, ArenaViews, Block
from steploom_engine_worker.commands import Admit, Picture, Tick, TickDone, TickStatus
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import HostMemory, Job, Pixels, Stage
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.graph_engine import Buckets, GraphEngine
from steploom_engine_worker.model import load_model
from steploom_engine_worker.pinned import PinnedMemory
from steploom_engine_worker.worker import Worker

SIDE = 64  # of the tiny model
PICTURE = SIDE * SIDE * 3
PATIENCE_S = 60.0
CPU = torch.device("cpu")


class Host:
    """What CUDA would do, noted."""

    def __init__(self, error: int = 0, problem: Exception | None = None) -> None:
        self.error = error
        self.problem = problem
        self.registered: dict[int, int] = {}
        self.notes: list[str] = []

    def register(self, address: int, num_bytes: int) -> int:
        self.notes.append("register")
        if self.problem is not None:
            raise self.problem
        if not self.error:
            assert address not in self.registered
            self.registered[address] = num_bytes
        return self.error

    def unregister(self, address: int) -> int:
        self.notes.append("unregister")
        del self.registered[address]
        return 0


def lent(arena: Arena, value: int = 7) -> Block:
    block = arena.borrow()
    assert block is not None
    arena.write(block.input, np.full((SIDE, SIDE, 3), value, np.uint8))
    return block


@pytest.fixture
def engine(adapted_dir: Path) -> GraphEngine:
    return GraphEngine(load_model(adapted_dir), 2, 4, CPU, torch.float32, Buckets((1,), (3,), (1,)))


def test_a_picture_in_registered_memory_is_copied_from_where_it_lies(tmp_path: Path) -> None:
    host = Host()
    pinned = PinnedMemory(host)
    views = ArenaViews(tmp_path, pinned.add, pinned.remove)
    arena = Arena(tmp_path, PICTURE, 2)
    block = lent(arena)
    pixels = views.picture(block.input, SIDE, SIDE)
    assert list(host.registered.values()) == [arena.path.stat().st_size]
    copied: list[Pixels] = []
    assert pinned.start_copy(pixels, copied.append)
    assert copied[0] is pixels
    assert (pixels == 7).all()
    assert not pinned.start_copy(pixels.copy(), copied.append)  # memory of ours, which the device does not know
    views.picture(lent(arena).input, SIDE, SIDE)
    assert host.notes == ["register"]
    views.close()
    assert (host.notes, host.registered) == (["register", "unregister"], {})
    assert not pinned.start_copy(pixels, copied.append)
    assert len(copied) == 1
    arena.close()


def test_an_arena_that_was_removed_is_unregistered_before_it_is_unmapped(tmp_path: Path) -> None:
    host = Host()
    pinned = PinnedMemory(host)
    still_mapped: list[bool] = []

    def close(memory: HostMemory) -> None:
        still_mapped.append(bool((memory[:PICTURE] == 7).all()))
        pinned.remove(memory)

    views = ArenaViews(tmp_path, pinned.add, close)
    first = Arena(tmp_path, PICTURE, 1)
    views.picture(lent(first).input, SIDE, SIDE)
    first.close()
    second = Arena(tmp_path, PICTURE, 1)
    views.picture(lent(second).input, SIDE, SIDE)
    assert (host.notes, still_mapped, views.num_mapped) == (["register", "unregister", "register"], [True], 1)
    second.close()


@pytest.mark.parametrize(("error", "problem"), [(801, None), (0, RuntimeError("there is no cudart"))])
def test_memory_that_cannot_be_registered_is_staged(
    tmp_path: Path,
    engine: GraphEngine,
    make_job: Callable[..., Job],
    caplog: pytest.LogCaptureFixture,
    error: int,
    problem: Exception | None,
) -> None:
    host = Host(error, problem)
    engine._pinned = PinnedMemory(host)
    views = ArenaViews(tmp_path, engine.share, engine.unshare)
    arena = Arena(tmp_path, PICTURE, 1)
    pixels = views.picture(lent(arena).input, SIDE, SIDE)
    engine.admit(0, make_job(pixels=pixels))
    assert (engine.slots.pixels[0] == 7).all()
    views.close()
    assert host.notes == ["register"]
    assert f"cannot be pinned, CUDA error {problem or error}" in caplog.text
    arena.close()


def test_the_engine_copies_from_registered_memory_past_its_staging(
    tmp_path: Path, engine: GraphEngine, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine._pinned = PinnedMemory(Host())
    views = ArenaViews(tmp_path, engine.share, engine.unshare)
    arena = Arena(tmp_path, PICTURE, 1)
    pixels = views.picture(lent(arena).input, SIDE, SIDE)
    monkeypatch.setattr(engine, "_staged", None)
    engine.admit(1, make_job(pixels=pixels))
    assert (engine.slots.pixels[1] == 7).all()
    views.close()
    arena.close()


class Lending(FakeEngine):
    """Notes which memory it is told of, and when its device is asked."""

    def __init__(self) -> None:
        super().__init__(WorkerConfig(engine="fake", slots=2, fake=FakeConfig(height=SIDE, width=SIDE)))
        self.notes: list[str] = []

    def share(self, memory: HostMemory) -> None:
        self.notes.append("share")

    def unshare(self, memory: HostMemory) -> None:
        self.notes.append("unshare")

    def check(self) -> None:
        self.notes.append("check")


def test_a_worker_shares_an_arena_from_its_first_picture_to_the_end(tmp_path: Path) -> None:
    engine, arena = Lending(), Arena(tmp_path, PICTURE, 2)
    worker = Worker("w", lambda: (engine, {}), tmp_path)
    worker.start()
    worker.ready.result(timeout=PATIENCE_S)
    reports: queue.Queue[TickDone] = queue.Queue()
    session = worker.open_session(reports.put)
    for slot, steps in ((0, 1), (1, 0)):
        block = lent(arena)
        place = Picture(SIDE, SIDE, region=block.input)
        assert worker.submit(session, Admit(str(slot), slot, "x", place, block.output, steps, 7.5, 1.5, slot))
    assert worker.submit(session, Tick(1, Stage.ENCODE, [0]))
    assert reports.get(timeout=PATIENCE_S).status is TickStatus.OK
    assert engine.notes == ["share"]
    # a job that ends here gives its block back: nothing may read it any more
    assert worker.submit(session, Tick(2, Stage.ENCODE, [1]))
    assert reports.get(timeout=PATIENCE_S).status is TickStatus.FAILED
    assert engine.notes == ["share", "check"]
    assert worker.stop(PATIENCE_S)
    assert engine.notes == ["share", "check", "unshare"]
    arena.close()
