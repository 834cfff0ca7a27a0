"""The driving thread with the fake engine: order, SKIPPED and FAILED, sessions, pictures, fatal errors."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steploom_common.arena import Arena, RegionRef
from steploom_engine_worker.commands import Admit, Picture, Release, Tick, TickDone, TickStatus
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Costs, Job, Stage
from steploom_engine_worker.errors import FatalEngineError
from steploom_engine_worker.fake_engine import FakeEngine, draw
from steploom_engine_worker.mailbox import Mailbox
from steploom_engine_worker.worker import MAX_WAITING, Session, SessionTaken, Worker

SIDE = 16
PATIENCE_S = 60.0  # for what comes soon unless the machine stalls
OK, FAILED, SKIPPED = TickStatus.OK, TickStatus.FAILED, TickStatus.SKIPPED
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


class Driver:
    """Plays the batcher: commands in, reports out, one at a time."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.reports: queue.Queue[TickDone] = queue.Queue()
        self.session: Session = worker.open_session(self.reports.put)
        self._next_tick = 0

    def admit(self, slot: int, **changes: Any) -> None:
        values = {
            "instruction": "x",
            "picture": Picture(SIDE, SIDE, PIXELS.tobytes()),
            "output": None,
            "steps": 2,
            "guidance_scale": 7.5,
            "image_guidance_scale": 1.5,
            "seed": slot,
        }
        self.send(Admit(job_id=f"job-{slot}", slot=slot, **{**values, **changes}))

    def send(self, command: Admit | Tick | Release) -> None:
        assert self.worker.submit(self.session, command)

    def post(self, stage: Stage, slots: list[int], steps: list[int] | None = None) -> int:
        self._next_tick += 1
        self.send(Tick(self._next_tick, stage, slots, steps or []))
        return self._next_tick

    def report(self) -> TickDone:
        return self.reports.get(timeout=PATIENCE_S)

    def tick(self, stage: Stage, slots: list[int], steps: list[int] | None = None) -> TickDone:
        number = self.post(stage, slots, steps)
        done = self.report()
        assert done.tick_id == number
        return done

    def finish(self, slot: int, steps: int = 2) -> np.ndarray:
        assert self.tick(Stage.ENCODE, [slot]).status is OK
        for step in range(steps):
            assert self.tick(Stage.DENOISE, [slot], [step]).status is OK
        done = self.tick(Stage.DECODE, [slot])
        assert done.status is OK
        return np.frombuffer(done.pictures[0].picture.data, np.uint8).reshape(SIDE, SIDE, 3)


class Held(FakeEngine):
    """Stays in a tick of one stage until it is let go."""

    def __init__(self, config: WorkerConfig, stage: Stage) -> None:
        super().__init__(config)
        self._stage = stage
        self.is_inside = threading.Event()
        self.go = threading.Event()

    def _spend(self, stage: Stage, count: int) -> None:
        if stage is self._stage:
            self.is_inside.set()
            assert self.go.wait(PATIENCE_S)


def with_costs(engine: FakeEngine) -> tuple[FakeEngine, Costs]:
    assert engine.known_costs is not None
    return engine, engine.known_costs


Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    workers = []

    def begin(engine: Callable[[WorkerConfig], FakeEngine] = FakeEngine, **fake: Any) -> Worker:
        config = WorkerConfig(engine="fake", slots=4, fake=FakeConfig(height=SIDE, width=SIDE, **fake))
        worker = Worker("w", lambda: with_costs(engine(config)), tmp_path)
        worker.start()
        worker.ready.result(timeout=PATIENCE_S)
        workers.append(worker)
        return worker

    yield begin
    for worker in workers:
        assert worker.stop(PATIENCE_S)


def start_held(start: Start, stage: Stage) -> tuple[Worker, Held]:
    engines: list[Held] = []

    def build(config: WorkerConfig) -> Held:
        engines.append(Held(config, stage))
        return engines[0]

    return start(engine=build), engines[0]


@pytest.fixture
def driver(start: Start) -> Driver:
    return Driver(start())


def expected(slot: int, **changes: Any) -> np.ndarray:
    return draw(Job("x", PIXELS, changes.get("steps", 2), 7.5, 1.5, slot), changes.get("steps", 2))


def test_says_what_it_is(start: Start) -> None:
    ready = start(denoise_s=0.5, denoise_row_s=0.25).ready.result()
    assert (ready.worker_id, ready.engine, ready.slots) == ("w", "fake", 4)
    assert (ready.model.height, ready.model.width) == (SIDE, SIDE)
    assert ready.costs[Stage.DENOISE, 6] == 2.0


def test_runs_a_job_to_its_picture(driver: Driver) -> None:
    driver.admit(1)
    np.testing.assert_array_equal(driver.finish(1), expected(1))


def test_a_picture_tells_seed_instruction_steps_and_input_apart() -> None:
    job = Job("x", PIXELS, 2, 7.5, 1.5, 1)
    others = [
        draw(Job("y", PIXELS, 2, 7.5, 1.5, 1), 2),
        draw(Job("x", PIXELS, 2, 7.5, 1.5, 2), 2),
        draw(Job("x", PIXELS, 2, 7.5, 1.5, 1), 3),
        draw(Job("x", PIXELS.transpose(1, 0, 2), 2, 7.5, 1.5, 1), 2),
    ]
    assert all((draw(job, 2) != other).any() for other in others)
    np.testing.assert_array_equal(draw(job, 2), draw(job, 2))


def test_answers_in_order(driver: Driver) -> None:
    for slot in range(4):
        driver.admit(slot)
    sent = [driver.post(Stage.ENCODE, [0, 1, 2, 3]), driver.post(Stage.DENOISE, [0, 1], [0, 0])]
    sent += [driver.post(Stage.DENOISE, [0, 2], [1, 0]), driver.post(Stage.DECODE, [0])]
    done = [driver.report() for _ in sent]
    assert [report.tick_id for report in done] == sent
    assert {report.status for report in done} == {OK}


def test_poison_fails_its_ticks_alone_and_moves_no_job(driver: Driver) -> None:
    driver.admit(0)
    driver.admit(1, instruction="this is poison")
    assert driver.tick(Stage.ENCODE, [0, 1]).status is OK
    together = driver.tick(Stage.DENOISE, [0, 1], [0, 0])
    assert (together.status, together.error) == (FAILED, "EngineError: poisoned instruction")
    assert driver.tick(Stage.DENOISE, [1], [0]).status is FAILED
    assert driver.tick(Stage.DENOISE, [0], [0]).status is OK  # still at its first step
    assert driver.tick(Stage.DENOISE, [0], [1]).status is OK
    assert driver.tick(Stage.DECODE, [0]).status is OK


def test_ticks_sent_ahead_of_a_failure_are_skipped(start: Start) -> None:
    driver = Driver(start(fail_tick=1))
    driver.admit(0)
    driver.admit(1)
    assert driver.tick(Stage.ENCODE, [0, 1]).status is OK
    driver.post(Stage.DENOISE, [0], [0])
    driver.post(Stage.DENOISE, [0, 1], [1, 0])
    driver.post(Stage.DENOISE, [1], [0])
    assert [driver.report().status for _ in range(3)] == [FAILED, SKIPPED, OK]
    assert driver.tick(Stage.DENOISE, [0], [0]).status is OK


def test_skips_what_it_does_not_hold(driver: Driver) -> None:
    assert driver.tick(Stage.ENCODE, [2]).status is SKIPPED
    driver.admit(2)
    assert driver.tick(Stage.DENOISE, [2], [0]).status is SKIPPED  # not encoded yet
    assert driver.tick(Stage.DENOISE, [7], [0]).status is SKIPPED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 101}, "steps is 101, must be 1 to 100"),
        ({"picture": Picture(8, 8, bytes(192))}, "the picture is 8x8, the model takes 16x16"),
        ({"picture": Picture(SIDE, SIDE, bytes(5))}, "the picture has 5 bytes"),
        ({"picture": Picture(SIDE, SIDE, region=RegionRef("/etc/passwd", 0, 4096))}, "is no arena in"),
    ],
)
def test_a_job_that_cannot_be_admitted_fails_with_the_reason(driver: Driver, changes: Any, reason: str) -> None:
    driver.admit(0, **changes)
    driver.admit(1)
    done = driver.tick(Stage.ENCODE, [0])
    assert done.status is FAILED
    assert reason in done.error
    assert driver.tick(Stage.ENCODE, [1]).status is OK
    driver.send(Release(0))
    driver.admit(0)
    assert driver.tick(Stage.ENCODE, [0]).status is OK


def test_two_jobs_in_one_slot_both_fail(driver: Driver) -> None:
    driver.admit(0)
    driver.admit(0, seed=9)
    done = driver.tick(Stage.ENCODE, [0])
    assert (done.status, done.error) == (FAILED, "slot 0 holds job 'job-0'")


def test_a_released_slot_is_free_and_its_ticks_are_skipped(driver: Driver) -> None:
    driver.admit(0)
    driver.tick(Stage.ENCODE, [0])
    driver.send(Release(0))
    driver.send(Release(0))  # an error in the log, no more
    assert driver.tick(Stage.DENOISE, [0], [0]).status is SKIPPED
    driver.admit(0, steps=1)
    np.testing.assert_array_equal(driver.finish(0, steps=1), expected(0, steps=1))


def test_pictures_go_through_the_arena(tmp_path: Path, driver: Driver) -> None:
    arena = Arena(tmp_path, SIDE * SIDE * 3, 2)
    arena.borrow()
    block = arena.borrow()
    assert block is not None
    arena.write(block.input, PIXELS)
    driver.admit(0, picture=Picture(SIDE, SIDE, region=block.input), output=block.output)
    driver.tick(Stage.ENCODE, [0])
    driver.tick(Stage.DENOISE, [0], [0])
    driver.tick(Stage.DENOISE, [0], [1])
    picture = driver.tick(Stage.DECODE, [0]).pictures[0].picture
    assert (picture.data, picture.region) == (b"", block.output)
    np.testing.assert_array_equal(arena.read(block.output, SIDE, SIDE), expected(0))
    np.testing.assert_array_equal(arena.read(block.input, SIDE, SIDE), PIXELS)
    arena.close()


def test_a_job_whose_output_is_too_small_fails_alone(tmp_path: Path, driver: Driver) -> None:
    arena = Arena(tmp_path, 100, 1)
    block = arena.borrow()
    assert block is not None
    driver.admit(0, steps=1, output=block.output)
    driver.admit(1, steps=1)
    driver.tick(Stage.ENCODE, [0, 1])
    driver.tick(Stage.DENOISE, [0, 1], [0, 0])
    done = driver.tick(Stage.DECODE, [0, 1])
    assert done.status is OK
    assert "does not fit" in done.failures[0]
    assert (list(done.failures), [item.slot for item in done.pictures]) == ([0], [1])
    arena.close()


def test_a_job_whose_values_overflow_fails_alone(driver: Driver) -> None:
    driver.admit(0)
    driver.admit(1, instruction="overflow", preview_every=1)
    driver.tick(Stage.ENCODE, [0, 1])
    done = driver.tick(Stage.DENOISE, [0, 1], [0, 0])
    assert (done.status, list(done.failures), done.pictures) == (OK, [1], [])
    assert driver.tick(Stage.DENOISE, [0], [1]).status is OK


def test_previews_come_where_they_were_asked_for(driver: Driver) -> None:
    driver.admit(0, steps=5, preview_every=2)
    driver.admit(1, steps=5)
    driver.tick(Stage.ENCODE, [0, 1])
    previews = [[item.slot for item in driver.tick(Stage.DENOISE, [0, 1], [step, step]).pictures] for step in range(5)]
    assert previews == [[], [0], [], [0], []]


def test_a_tick_takes_the_time_of_the_cost_table(start: Start) -> None:
    driver = Driver(start(denoise_s=0.02, denoise_row_s=0.01))
    driver.admit(0)
    driver.tick(Stage.ENCODE, [0])
    done = driver.tick(Stage.DENOISE, [0], [0])
    assert done.seconds >= 0.05  # three rows
    assert done.start_unix_s > 1e9


def test_one_batcher_at_a_time(start: Start) -> None:
    worker = start()
    first = Driver(worker)
    with pytest.raises(SessionTaken):
        worker.open_session(lambda done: None)
    worker.close_session(first.session)
    Driver(worker)


def test_a_closed_session_frees_all_slots_while_a_tick_is_under_way(start: Start) -> None:
    worker, engine = start_held(start, Stage.DENOISE)
    first = Driver(worker)
    for slot in range(4):
        first.admit(slot)
    first.tick(Stage.ENCODE, [0, 1, 2, 3])
    first.post(Stage.DENOISE, [0], [0])
    first.post(Stage.DENOISE, [1], [0])
    assert engine.is_inside.wait(PATIENCE_S)
    worker.close_session(first.session)
    engine.go.set()
    second = Driver(worker)
    for slot in range(4):
        second.admit(slot, steps=1, seed=50 + slot)
    assert second.tick(Stage.ENCODE, [0, 1, 2, 3]).status is OK
    assert first.reports.empty()
    assert worker.statistics() == {"waiting": 0, "free": 0, "encoded": 4}


def test_a_closed_session_writes_no_picture(start: Start, tmp_path: Path) -> None:
    worker, engine = start_held(start, Stage.DECODE)
    driver = Driver(worker)
    arena = Arena(tmp_path, SIDE * SIDE * 3, 1)
    block = arena.borrow()
    assert block is not None
    driver.admit(0, steps=1, output=block.output)
    driver.tick(Stage.ENCODE, [0])
    driver.tick(Stage.DENOISE, [0], [0])
    driver.post(Stage.DECODE, [0])
    assert engine.is_inside.wait(PATIENCE_S)
    worker.close_session(driver.session)
    engine.go.set()
    Driver(worker).tick(Stage.ENCODE, [0])  # answered after the decode
    assert not arena.read(block.output, SIDE, SIDE).any()
    arena.close()


def test_a_block_that_was_lent_again_is_not_written(start: Start, tmp_path: Path) -> None:
    """As after SIGSTOP and SIGCONT: the batcher has given the worker up, and the worker does not know it yet."""
    worker, engine = start_held(start, Stage.DECODE)
    driver = Driver(worker)
    arena = Arena(tmp_path, SIDE * SIDE * 3, 1)
    block = arena.borrow()
    assert block is not None
    driver.admit(0, steps=1, output=block.output)
    driver.tick(Stage.ENCODE, [0])
    driver.tick(Stage.DENOISE, [0], [0])
    driver.post(Stage.DECODE, [0])
    assert engine.is_inside.wait(PATIENCE_S)
    arena.give_back(block)
    again = arena.borrow()
    assert again is not None
    engine.go.set()
    assert "has ended" in driver.report().failures[0]
    assert not arena.read(again.output, SIDE, SIDE).any()
    arena.close()


def test_running_out_of_memory_ends_the_worker_unheard(driver: Driver) -> None:
    driver.admit(0, instruction="exhaust")
    driver.tick(Stage.ENCODE, [0])
    driver.post(Stage.DENOISE, [0], [0])
    with pytest.raises(FatalEngineError, match="MemoryError"):
        driver.worker.ended.result(timeout=PATIENCE_S)
    assert driver.reports.empty()


def test_an_engine_that_cannot_be_built_says_so(tmp_path: Path) -> None:
    def build() -> Any:
        raise ValueError("no such device")

    worker = Worker("w", build, tmp_path)
    worker.start()
    for future in (worker.ready, worker.ended):
        with pytest.raises(ValueError, match="no such device"):
            future.result(timeout=PATIENCE_S)


def test_a_full_queue_refuses(start: Start) -> None:
    worker, engine = start_held(start, Stage.ENCODE)
    driver = Driver(worker)
    driver.admit(0)
    driver.post(Stage.ENCODE, [0])
    assert engine.is_inside.wait(PATIENCE_S)
    accepted = 0
    while driver.worker.submit(driver.session, Release(3)):
        accepted += 1
        assert accepted <= MAX_WAITING
    assert accepted == MAX_WAITING
    driver.worker.close_session(driver.session)
    engine.go.set()


def test_a_mailbox_keeps_order_and_wakes_its_reader() -> None:
    box: Mailbox[int] = Mailbox(2)
    assert box.try_put(1)
    assert box.try_put(2)
    assert not box.try_put(3)
    assert [box.get(), box.get()] == [1, 2]
    threading.Timer(0.05, box.try_put, [4]).start()
    assert box.get() == 4
    box.try_put(5)
    box.replace(6)
    assert (box.get(), len(box)) == (6, 0)


def test_the_fake_engine_checks_the_order_of_steps() -> None:
    engine = FakeEngine(WorkerConfig(engine="fake"))
    engine.admit(0, Job("x", np.zeros((128, 128, 3), np.uint8), 3, 7.5, 1.5, 0))
    with pytest.raises(RuntimeError, match="slot 0 is at step 0, not 1"):
        engine.denoise([0], [1])


def test_the_fake_engine_keeps_a_picture_of_its_own() -> None:
    engine = FakeEngine(WorkerConfig(engine="fake", fake=FakeConfig(height=SIDE, width=SIDE)))
    pixels = PIXELS.copy()
    job = Job("x", pixels, 1, 7.5, 1.5, 0)
    engine.admit(0, job)
    engine.encode([0])
    pixels[:] = 0  # as a gateway may, once the job has ended here
    np.testing.assert_array_equal(engine.decode([0]).wait().pictures[0], draw(replace(job, pixels=PIXELS), 0))


class Counting(FakeEngine):
    """Takes no time, and remembers how many rows each denoise tick has."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.rows: list[int] = []

    def _spend(self, stage: Stage, count: int) -> None:
        if stage is Stage.DENOISE:
            self.rows.append(count)


def test_the_fake_engine_spends_one_row_on_a_step_with_an_adapter() -> None:
    engine = Counting(WorkerConfig(engine="fake", fake=FakeConfig(adapters=("fast",))))
    pixels = np.zeros((128, 128, 3), np.uint8)
    plain = Job("x", pixels, 3, 7.5, 1.5, 0)
    fast = Job("x", pixels, 3, 7.5, 1.5, 0, adapter="fast")
    for slot, job in enumerate((plain, fast)):
        engine.admit(slot, job)
    for slots in ([0], [1]):
        engine.denoise(slots, [0])
    engine.denoise([0, 1], [1, 1])
    assert engine.rows == [3, 1, 4]
    assert not np.array_equal(draw(plain, 3), draw(fast, 3))
    with pytest.raises(ValueError, match="adapter 'other' does not exist"):
        engine.admit(2, Job("x", pixels, 3, 7.5, 1.5, 0, adapter="other"))
