"""An engine that prepares while its worker serves: between ticks, and told to the batcher."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from steploom_common.rpc import Shutdown
from steploom_engine_worker.commands import Admit, News, Picture, Prepared, Tick, TickDone, TickStatus
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Costs, Done, MemoryUse, Pending, Stage
from steploom_engine_worker.errors import FatalEngineError
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.server import WorkerServer
from steploom_engine_worker.worker import Worker
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

SIDE = 16
PATIENCE_S = 60.0
CONFIG = WorkerConfig(engine="fake", slots=4, denoise_buckets=(1, 3), fake=FakeConfig(height=SIDE, width=SIDE))
CHEAPER: list[Costs] = [{(Stage.DENOISE, 3): 0.25}, {}, {(Stage.DENOISE, 1): 0.125, (Stage.ENCODE, 64): 1.0}]


class Preparing(FakeEngine):
    """Prepares as many parts as `CHEAPER` has, each when it is let."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.begun: queue.Queue[str] = queue.Queue()  # what the engine was at, in order
        self.may_go = threading.Semaphore(0)
        self.done = 0
        self.error: Exception | None = None

    @property
    def memory(self) -> MemoryUse:
        return MemoryUse(80, 60 - 10 * self.done, 3, 4)

    @property
    def progress(self) -> tuple[int, int]:
        return self.done, len(CHEAPER)

    def prepare(self) -> Costs | None:
        if self.done == len(CHEAPER):
            self.begun.put("nothing")
            return None
        self.begun.put("prepare")
        assert self.may_go.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.done += 1
        return CHEAPER[self.done - 1]

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        self.begun.put("encode")
        return super().encode(slots)

    def next(self) -> str:
        return self.begun.get(timeout=PATIENCE_S)


@pytest.fixture
def engine() -> Iterator[Preparing]:
    engine = Preparing()
    yield engine
    engine.may_go.release(100)


@pytest.fixture
def worker(engine: Preparing, tmp_path: Path) -> Iterator[Worker]:
    costs = engine.known_costs
    assert costs is not None
    worker = Worker("w", lambda: (engine, costs), tmp_path)
    worker.start()
    worker.ready.result(timeout=PATIENCE_S)
    yield worker
    engine.may_go.release(100)
    worker.stop(PATIENCE_S)


def admit(slot: int) -> Admit:
    picture = Picture(SIDE, SIDE, np.zeros((SIDE, SIDE, 3), np.uint8).tobytes())
    return Admit(str(slot), slot, "x", picture, None, 2, 7.5, 1.5, seed=slot)


def prepared_into(told: queue.Queue[Prepared]) -> Callable[[News], None]:
    """Puts what has been prepared into a queue, and nothing else that a worker tells."""

    def hear(news: News) -> None:
        if isinstance(news, Prepared):
            told.put(news)

    return hear


def test_a_worker_without_jobs_prepares_all_and_tells(engine: Preparing, worker: Worker) -> None:
    told: queue.Queue[Prepared] = queue.Queue()
    worker.open_session(lambda done: None, prepared_into(told))
    assert worker.offer.progress == (0, 3)
    engine.may_go.release(100)
    news = [told.get(timeout=PATIENCE_S) for _ in CHEAPER]
    assert [item.progress for item in news] == [(1, 3), (2, 3), (3, 3)]
    assert worker.offer.memory.free == 30  # what the next batcher hears first
    assert [dict(item.costs) for item in news] == [
        {(Stage.DENOISE, 3): 0.25},
        {},
        {(Stage.DENOISE, 1): 0.125},  # the worker never ran so large an encode tick
    ]
    assert [engine.next() for _ in range(4)] == ["prepare", "prepare", "prepare", "nothing"]
    before = worker.ready.result().costs
    assert worker.offer.costs == {**before, (Stage.DENOISE, 3): 0.25, (Stage.DENOISE, 1): 0.125}
    assert before[Stage.DENOISE, 3] == 0.0


def test_a_command_waits_for_one_preparation_at_most(engine: Preparing, worker: Worker) -> None:
    assert engine.next() == "prepare"
    reports: queue.Queue[TickDone] = queue.Queue()
    session = worker.open_session(reports.put)
    assert worker.submit(session, admit(0))
    assert worker.submit(session, Tick(1, Stage.ENCODE, [0]))
    engine.may_go.release(100)
    assert reports.get(timeout=PATIENCE_S).status is TickStatus.OK
    assert engine.next() == "encode"


def test_a_closed_session_is_told_nothing(engine: Preparing, worker: Worker) -> None:
    told: queue.Queue[Prepared] = queue.Queue()
    assert engine.next() == "prepare"
    worker.close_session(worker.open_session(lambda done: None, prepared_into(told)))
    engine.may_go.release(100)
    while engine.next() != "nothing":
        pass
    assert told.empty()


def test_a_worker_stops_after_the_preparation_that_it_is_at(engine: Preparing, worker: Worker) -> None:
    assert engine.next() == "prepare"
    assert not worker.stop(0.01)
    engine.may_go.release()
    assert worker.stop(PATIENCE_S)
    assert engine.begun.empty()


def test_a_device_that_is_lost_ends_the_worker(engine: Preparing, worker: Worker) -> None:
    engine.error = FatalEngineError("gone")
    engine.may_go.release()
    with pytest.raises(FatalEngineError, match="gone"):
        worker.ended.result(timeout=PATIENCE_S)


async def test_a_batcher_reads_it_on_its_stream(engine: Preparing, tmp_path: Path) -> None:
    costs = engine.known_costs
    assert costs is not None
    address = f"unix:{tmp_path}/worker.sock"
    shutdown = Shutdown()
    server = WorkerServer(address, "w", lambda: (engine, costs), PATIENCE_S)
    task = asyncio.create_task(server.run(shutdown))
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            call: Any = worker_pb2_grpc.WorkerStub(channel).Drive(wait_for_ready=True)
            ready = (await call.read()).ready
            assert (ready.progress.done, ready.progress.total) == (0, 3)
            assert ready.memory == worker_pb2.Memory(total_bytes=80, free_bytes=60, slots_bytes=3, weights_bytes=4)
            engine.may_go.release(100)
            news = [(await call.read()).prepared for _ in CHEAPER]
            assert [item.progress.done for item in news] == [1, 2, 3]
            assert [item.memory.free_bytes for item in news] == [50, 40, 30]
            assert [(cost.stage, cost.bucket, cost.seconds) for cost in news[0].costs] == [(Stage.DENOISE, 3, 0.25)]
            call.cancel()
            await asyncio.sleep(0)
    finally:
        engine.may_go.release(100)
        shutdown.signal()
        await asyncio.wait_for(task, PATIENCE_S)
