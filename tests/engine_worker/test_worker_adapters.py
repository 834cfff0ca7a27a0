"""A worker whose adapters come and go: read beside its ticks, taken between two of them, and answered."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steploom_engine_worker.adapter_manifest import DESCRIPTION, FOLDER, WEIGHTS, adapter_digest
from steploom_engine_worker.commands import (
    AdapterChanged,
    Admit,
    Command,
    DropAdapter,
    LoadAdapter,
    Picture,
    Release,
    Tick,
    TickDone,
    TickStatus,
)
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Costs, Job, ReadAdapter, Stage
from steploom_engine_worker.errors import AdapterRefused, FatalEngineError
from steploom_engine_worker.fake_engine import FakeEngine, draw
from steploom_engine_worker.worker import Worker

SIDE = 16
PATIENCE_S = 60.0  # for what comes soon unless the machine stalls
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


class Reading(FakeEngine):
    """Reads when it is let."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.may_read = threading.Event()
        self.may_read.set()
        self.begun = threading.Event()
        self.error: Exception | None = None  # of taking an adapter
        self.asked = threading.Semaphore(0)  # how often there was time to prepare

    def read_adapter(self, name: str) -> ReadAdapter:
        self.begun.set()
        assert self.may_read.wait(PATIENCE_S)
        return super().read_adapter(name)

    def prepare(self) -> Costs | None:
        self.asked.release()
        return None

    def put_adapter(self, adapter: ReadAdapter) -> None:
        if self.error is not None:
            raise self.error
        super().put_adapter(adapter)


class House:
    """A worker over a folder of adapters, and the batcher that drives it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        fake = FakeConfig(height=SIDE, width=SIDE, adapters=("own",))
        self.engine = Reading(WorkerConfig(engine="fake", model=str(root), slots=4, fake=fake))
        costs = self.engine.known_costs
        assert costs is not None
        self.worker = Worker("w", lambda: (self.engine, costs), root)
        self.worker.start()
        self.worker.ready.result(PATIENCE_S)
        self.reports: queue.Queue[TickDone] = queue.Queue()
        self.news: queue.Queue[Any] = queue.Queue()
        self.session = self.worker.open_session(self.reports.put, self.news.put)

    def write(self, name: str, weights: str) -> str:
        """An adapter on disk; its digest."""
        folder = self.root / FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION).write_text(json.dumps({"format": 1}))
        (folder / WEIGHTS).write_text(weights)
        return adapter_digest(folder)

    def send(self, *commands: Command) -> None:
        for command in commands:
            assert self.worker.submit(self.session, command)

    def changed(self) -> AdapterChanged:
        news = self.news.get(timeout=PATIENCE_S)
        assert isinstance(news, AdapterChanged)
        return news

    def load(self, name: str, **options: Any) -> AdapterChanged:
        self.send(LoadAdapter(7, name, **options))
        return self.changed()

    def begin(self, slot: int, adapter: str, digest: str = "") -> None:
        picture = Picture(SIDE, SIDE, PIXELS.tobytes())
        self.send(
            Admit(f"job-{slot}", slot, "x", picture, None, 1, 7.5, 1.5, seed=0, adapter=adapter, adapter_digest=digest)
        )
        assert self.tick(Stage.ENCODE, slot).status is TickStatus.OK

    def tick(self, stage: Stage, slot: int) -> TickDone:
        self.send(Tick(1, stage, [slot], [0] if stage is Stage.DENOISE else []))
        return self.reports.get(timeout=PATIENCE_S)

    def drawn(self, slot: int) -> bytes:
        assert self.tick(Stage.DENOISE, slot).status is TickStatus.OK
        (picture,) = self.tick(Stage.DECODE, slot).pictures
        self.send(Release(slot))
        return picture.picture.data


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.engine.may_read.set()
    assert house.worker.stop(PATIENCE_S)


def drawn_with(adapter: str, digest: str) -> bytes:
    job = Job("x", PIXELS, 1, 7.5, 1.5, 0, adapter=adapter, adapter_digest=digest)
    return draw(job, 1).tobytes()


def test_ticks_run_while_an_adapter_is_read(house: House) -> None:
    digest = house.write("late", "1")
    house.engine.may_read.clear()
    house.send(LoadAdapter(7, "late"))
    assert house.engine.begun.wait(PATIENCE_S)
    house.begin(0, "own")
    assert house.drawn(0) == drawn_with("own", "")
    house.engine.may_read.set()
    news = house.changed()
    assert (news.change_id, news.error, news.digest) == (7, "", digest)
    assert [item.name for item in news.versions] == ["own", "late"]
    assert house.worker.offer.model.versions == news.versions  # for the next batcher
    house.begin(0, "late", digest)
    assert house.drawn(0) == drawn_with("late", digest)


def test_the_engine_may_prepare_again_once_it_has_one_more(house: House) -> None:
    """Its smaller buckets, on a GPU."""
    assert house.engine.asked.acquire(timeout=PATIENCE_S)  # and has said that there is nothing
    assert not house.engine.asked.acquire(blocking=False)
    house.write("late", "1")
    assert not house.load("late").error
    assert house.engine.asked.acquire(timeout=PATIENCE_S)


def test_what_comes_after_a_load_at_once_has_it(house: House) -> None:
    digest = house.write("late", "1")
    house.send(LoadAdapter(7, "late", at_once=True))
    house.begin(0, "late", digest)
    assert house.drawn(0) == drawn_with("late", digest)
    assert house.changed().error == ""


def test_jobs_keep_their_version_until_it_is_dropped(house: House) -> None:
    house.write("late", "1")
    first = house.load("late")
    house.begin(0, "late", first.digest)
    house.write("late", "2")
    second = house.load("late")
    assert [item.digest for item in second.versions][1:] == [first.digest, second.digest]
    house.begin(1, "late", first.digest)
    house.begin(2, "late", second.digest)
    assert [house.drawn(slot) for slot in (0, 1, 2)] == [
        drawn_with("late", digest) for digest in (first.digest, first.digest, second.digest)
    ]
    house.send(DropAdapter(8, "late", first.digest))
    news = house.changed()
    assert (news.change_id, [item.digest for item in news.versions][1:]) == (8, [second.digest])


def is_not_whole(house: House) -> None:
    house.write("late", "1")
    (house.root / FOLDER / "late" / DESCRIPTION).unlink()


def is_refused(house: House) -> None:
    """In words that mean a lost device where a tick says them."""
    house.write("late", "1")
    house.engine.error = AdapterRefused("CUDA out of memory. Tried to allocate 1 GB")


def is_odd(house: House) -> None:
    house.write("late", "1")
    house.engine.error = RuntimeError("odd")


@pytest.mark.parametrize(
    ("spoil", "words", "is_missing"),
    [
        (lambda house: None, "adapter 'late' does not exist in", True),
        (is_not_whole, "missing", False),
        (is_refused, "CUDA out of memory", False),
        (is_odd, "RuntimeError: odd", False),
    ],
)
def test_a_load_that_fails_leaves_all_as_it_was(
    house: House, spoil: Callable[[House], object], words: str, is_missing: bool
) -> None:
    spoil(house)
    news = house.load("late")
    assert words in news.error
    assert (news.is_missing, news.digest, [item.name for item in news.versions]) == (is_missing, "", ["own"])
    house.begin(0, "own")
    assert house.drawn(0) == drawn_with("own", "")


def test_a_device_that_is_lost_on_the_way_ends_the_worker(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.write("late", "1")
    house.engine.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    house.send(LoadAdapter(7, "late"))
    with pytest.raises(FatalEngineError, match="illegal memory access"):
        house.worker.ended.result(PATIENCE_S)


def test_a_batcher_that_is_gone_gets_nothing(house: House) -> None:
    """What was read for it is thrown away: the next one finds what it was told."""
    house.write("late", "1")
    house.engine.may_read.clear()
    house.send(LoadAdapter(7, "late"))
    assert house.engine.begun.wait(PATIENCE_S)
    house.worker.close_session(house.session)
    house.engine.may_read.set()
    house.session = house.worker.open_session(house.reports.put, house.news.put)
    house.write("other", "2")
    news = house.load("other")
    assert [item.name for item in news.versions] == ["own", "other"]
    assert house.news.empty()
