"""One trace of arrivals and cancels gives the same ticks under the driver and under an event heap."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque

import pytest

from steploom_batcher import virtual_time
from steploom_batcher.config import BatcherConfig
from steploom_batcher.driver import Driver
from steploom_batcher.fake_worker import FakeWorker
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import JobSpec, Outcome, Status, Tick, WorkerProfile

from .driver_rig import COSTS, KEY, READY, config, payload

Trace = list[tuple[float, Tick]]
Step = tuple[float, JobSpec | str]  # when; a job, or the id of one to cancel

WORKERS = ("w0", "w1")


def arrivals(seed: int) -> list[Step]:
    """Bursts and lulls, short and long jobs, some with little time, some cancelled."""
    rng = random.Random(seed)
    now = 0.0
    steps: list[Step] = []
    for number in range(150):
        now += rng.expovariate(rng.choice((40.0, 400.0)))
        length, tier = rng.choice(((3, "free"), (3, "free"), (35, "pro")))
        spec = JobSpec(f"j{number}", KEY, tier, length, rng.choice((1, 2, 3)), now + rng.choice((0.3, 2.0, 60.0)))
        steps.append((now, spec))
        if rng.random() < 0.2:
            steps.append((now + rng.expovariate(20.0), spec.job_id))
    return sorted(steps, key=lambda step: step[0])


async def by_driver(settings: BatcherConfig, steps: list[Step]) -> Trace:
    """The asyncio driver with fake workers."""
    loop = asyncio.get_running_loop()
    trace: Trace = []
    driver = Driver(Scheduler(settings), loop, on_tick=lambda now, tick: trace.append((now, tick)))
    for name in WORKERS:
        worker = FakeWorker(COSTS, lambda report, name=name: driver.report(name, report))  # type: ignore[misc]
        driver.worker_up(name, READY, worker)
    for when, step in steps:
        if isinstance(step, str):
            loop.call_at(when, driver.cancel, step)
        else:
            loop.call_at(when, driver.submit, step, payload(step.steps))
    await asyncio.sleep(steps[-1][0] + 0.001)
    await driver.idle()
    driver.close()
    return trace


def by_heap(settings: BatcherConfig, steps: list[Step]) -> Trace:
    """The scheduler alone, with a heap of events for a world."""
    scheduler = Scheduler(settings)
    for name in WORKERS:
        scheduler.worker_up(WorkerProfile(name, KEY, READY.num_slots, COSTS), 0.0)
    count = itertools.count()
    events: list[tuple[float, int, JobSpec | str | Tick]] = [(when, next(count), step) for when, step in steps]
    lines: dict[str, deque[Tick]] = {name: deque() for name in WORKERS}
    trace: Trace = []

    def begin(tick: Tick, now: float) -> None:
        heapq.heappush(events, (now + COSTS[tick.stage][tick.bucket], next(count), tick))

    while events or scheduler.wake_at() is not None:
        wake = scheduler.wake_at()
        if wake is not None and (not events or wake < events[0][0]):
            now = wake
        else:
            now, _, event = heapq.heappop(events)
            if isinstance(event, JobSpec):
                scheduler.submit(event, now)
            elif isinstance(event, str):
                scheduler.cancel(event, now)
            else:
                scheduler.finish(event.tick_id, Outcome(Status.OK, COSTS[event.stage][event.bucket]), now)
                line = lines[event.worker_id]
                line.popleft()
                if line:
                    begin(line[0], now)
        scheduler.expire(now)
        for tick in scheduler.next_ticks(now):
            trace.append((now, tick))
            lines[tick.worker_id].append(tick)
            if len(lines[tick.worker_id]) == 1:
                begin(tick, now)
    return trace


@pytest.mark.parametrize("policy", ["step", "request"])
@pytest.mark.parametrize("seed", range(4))
def test_driver_and_event_heap_plan_the_same_ticks(seed: int, policy: str) -> None:
    settings = config(policy=policy)
    steps = arrivals(seed)
    expected = by_heap(settings, steps)
    assert len(expected) > 200
    assert virtual_time.run(by_driver(settings, steps)) == expected
