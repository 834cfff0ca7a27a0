"""A worker whose engine or device hangs: it says so, ends, and what comes of it late does no harm."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from steploom_common.patience import Overdue
from steploom_common.rpc import Shutdown
from steploom_engine_worker.commands import Admit, News, Picture, Preparing, Tick, TickDone
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Costs, Done, Pending, Stage
from steploom_engine_worker.errors import EXIT_STUCK, EngineStuck
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.server import WorkerServer
from steploom_engine_worker.worker import Limits, Worker
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

SIDE = 16
PATIENCE_S = 60.0
PIXELS = np.zeros((SIDE, SIDE, 3), np.uint8).tobytes()
CONFIG = WorkerConfig(engine="fake", slots=4, denoise_buckets=(1, 3), fake=FakeConfig(height=SIDE, width=SIDE))
SHORT = Limits(Overdue(0.05, 1.0), prepare_s=600.0)


class Hanging(FakeEngine):
    """Stands still at a place until it is let go."""

    def __init__(self, place: str, pending: int = 0) -> None:
        super().__init__(CONFIG)
        self.place = place
        self.go = threading.Event()
        self._pending = pending
        self._is_prepared = False

    @property
    def max_pending(self) -> int:
        return self._pending

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        if self.place == "land":
            return _Landing(self.go)
        self._stand_still("encode")
        return super().encode(slots)

    def prepare(self) -> Costs | None:
        if self._is_prepared:
            return None
        self._is_prepared = True
        self._stand_still("prepare")
        return {}

    def _stand_still(self, place: str) -> None:
        if place == self.place:
            assert self.go.wait(2 * PATIENCE_S)


class _Landing:
    def __init__(self, go: threading.Event) -> None:
        self._go = go

    def wait(self) -> Done:
        assert self._go.wait(2 * PATIENCE_S)
        return Done()


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steploom_engine_worker.pulse._LOOK_S", 0.02)


Start = Callable[..., tuple[Worker, Hanging]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    engines: list[Hanging] = []

    def begin(place: str, limits: Limits = SHORT, pending: int = 0) -> tuple[Worker, Hanging]:
        engine = Hanging(place, pending)
        engines.append(engine)
        costs = engine.known_costs
        assert costs is not None
        worker = Worker("w", lambda: (engine, costs), tmp_path, limits)
        worker.start()
        worker.ready.result(timeout=PATIENCE_S)
        return worker, engine

    yield begin
    for engine in engines:
        engine.go.set()


def encode(worker: Worker, reports: queue.Queue[TickDone], told: queue.Queue[News] | None = None) -> None:
    session = worker.open_session(reports.put, told.put if told else lambda _: None)
    assert worker.submit(session, Admit("a", 0, "x", Picture(SIDE, SIDE, PIXELS), None, 2, 7.5, 1.5, seed=0))
    assert worker.submit(session, Tick(1, Stage.ENCODE, [0]))


@pytest.mark.parametrize(("place", "pending", "thread"), [("encode", 0, "driving"), ("land", 2, "landing")])
def test_a_tick_that_never_ends_ends_the_worker(start: Start, place: str, pending: int, thread: str) -> None:
    worker, engine = start(place, pending=pending)
    encode(worker, queue.Queue())
    with pytest.raises(EngineStuck, match=rf"the {thread} thread has been at tick 1 \(encode\) for"):
        worker.ended.result(timeout=PATIENCE_S)
    assert worker.is_stuck
    assert not worker.stop(10 * PATIENCE_S)  # it is not waited for
    engine.go.set()  # it comes to itself
    worker._thread.join(PATIENCE_S)
    assert isinstance(worker.ended.exception(), EngineStuck)


def test_a_slow_tick_is_waited_for_as_long_as_its_costs_say(start: Start) -> None:
    worker, engine = start("encode", Limits(Overdue(0.05, 1e9)))
    worker.offer.costs[Stage.ENCODE, 1] = 1.0  # type: ignore[index]
    reports: queue.Queue[TickDone] = queue.Queue()
    encode(worker, reports)
    with pytest.raises(queue.Empty):
        reports.get(timeout=0.5)
    assert not worker.ended.done()
    engine.go.set()
    assert reports.get(timeout=PATIENCE_S).tick_id == 1


def test_a_preparation_has_a_bound_of_its_own_and_tells_that_ticks_wait(start: Start) -> None:
    worker, engine = start("prepare")
    reports: queue.Queue[TickDone] = queue.Queue()
    told: queue.Queue[News] = queue.Queue()
    encode(worker, reports, told)
    assert [told.get(timeout=PATIENCE_S) for _ in range(2)] == [Preparing(), Preparing()]
    assert not worker.ended.done()
    engine.go.set()
    assert reports.get(timeout=PATIENCE_S).tick_id == 1


def test_a_preparation_that_never_ends_ends_the_worker(start: Start) -> None:
    worker, _ = start("prepare", Limits(prepare_s=0.05))
    with pytest.raises(EngineStuck, match="at a preparation for"):
        worker.ended.result(timeout=PATIENCE_S)


def test_an_engine_that_never_comes_up_ends_the_worker(tmp_path: Path) -> None:
    go = threading.Event()

    def build() -> tuple[FakeEngine, Costs]:
        assert go.wait(2 * PATIENCE_S)
        raise AssertionError("nobody waits any more")

    worker = Worker("w", build, tmp_path, Limits(prepare_s=0.05))
    worker.start()
    for future in (worker.ready, worker.ended):
        with pytest.raises(EngineStuck, match="at loading and warming up for"):
            future.result(timeout=PATIENCE_S)
    go.set()


async def test_the_batcher_hears_at_once_and_nothing_that_comes_late(tmp_path: Path) -> None:
    engine = Hanging("encode")
    costs = engine.known_costs
    assert costs is not None
    address = f"unix:{tmp_path}/w.sock"
    server = WorkerServer(address, "w", lambda: (engine, costs), 600.0, limits=SHORT)
    running = asyncio.create_task(server.run(Shutdown()))
    async with grpc.aio.insecure_channel(address) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Drive(wait_for_ready=True)
        await call.read()
        pixels = worker_pb2.Pixels(height=SIDE, width=SIDE, inline=PIXELS)
        await call.write(worker_pb2.Command(admit=worker_pb2.Admit(job_id="a", pixels=pixels, steps=2)))
        await call.write(worker_pb2.Command(tick=worker_pb2.Tick(tick_id=1, stage=worker_pb2.STAGE_ENCODE, slots=[0])))
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await asyncio.wait_for(call.read(), PATIENCE_S)
        with pytest.raises(EngineStuck):
            await asyncio.wait_for(running, PATIENCE_S)
    engine.go.set()


def test_the_process_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "steploom.toml"
    config.write_text('[worker]\nengine = "fake"\ntick_timeout_s = 0.5\n')
    command = [sys.executable, "-m", "steploom_engine_worker", "--config", str(config)]
    process = subprocess.Popen([*command, "--listen", f"unix:{tmp_path}/w.sock"], stderr=subprocess.PIPE, text=True)
    try:
        with grpc.insecure_channel(f"unix:{tmp_path}/w.sock") as channel:
            pixels = worker_pb2.Pixels(height=128, width=128, inline=bytes(3 * 128 * 128))
            admit = worker_pb2.Admit(
                job_id="a",
                instruction="hang",
                pixels=pixels,
                steps=1,
                guidance_scale=7.5,
                image_guidance_scale=1.5,
            )
            encode = worker_pb2.Tick(tick_id=1, stage=worker_pb2.STAGE_ENCODE, slots=[0])
            denoise = worker_pb2.Tick(tick_id=2, stage=worker_pb2.STAGE_DENOISE, slots=[0], steps=[0])
            commands = iter(
                (
                    worker_pb2.Command(admit=admit),
                    worker_pb2.Command(tick=encode),
                    worker_pb2.Command(tick=denoise),
                )
            )
            ended = threading.Event()

            def stay() -> Iterator[worker_pb2.Command]:
                yield from commands
                ended.wait(PATIENCE_S)

            with pytest.raises(grpc.RpcError):
                list(worker_pb2_grpc.WorkerStub(channel).Drive(stay(), wait_for_ready=True, timeout=2 * PATIENCE_S))
            ended.set()
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == EXIT_STUCK
    assert "the worker is stuck: the driving thread has been at tick 2 (denoise)" in said
    assert "fake_engine.py" in said  # where it stands
