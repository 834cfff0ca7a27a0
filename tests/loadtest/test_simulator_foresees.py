"""The simulator foresees what the asyncio driver does on a real clock: throughput and latencies of the same trace.

The machine may freeze in the middle of a run, and what was foreseen cannot know of that. So one of several runs has to
agree; a simulator that is wrong agrees with none of them.
"""

from __future__ import annotations

import asyncio

import pytest

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.driver import Driver, key_of
from steploom_batcher.fake_worker import FakeWorker, fake_model, fake_ready
from steploom_batcher.messages import Payload, Picture, TickReport
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import JobSpec, Stage, StageCosts, WorkerProfile
from steploom_loadtest.report import percentile
from steploom_loadtest.simulator import Device, simulate
from steploom_loadtest.traces import Arrival, RequestClass, poisson

# Long enough that the loop's own time is little beside them.
COSTS: StageCosts = {
    Stage.ENCODE: {1: 0.030, 2: 0.045, 4: 0.070},
    Stage.DENOISE: {1: 0.025, 3: 0.040, 6: 0.060, 12: 0.100},
    Stage.DECODE: {1: 0.035, 2: 0.055, 4: 0.090},
}
SLOTS = 12
MIX = (RequestClass("free", 3, 4, rows=1, deadline_s=30.0), RequestClass("pro", 12, 1, deadline_s=30.0))
ATTEMPTS = 8
THROUGHPUT, P95 = 0.05, 0.10  # errors that are allowed


async def live(trace: list[Arrival]) -> list[float]:
    """Seconds from arrival to end of each request, on the driver with a fake worker, on the real clock."""
    loop = asyncio.get_running_loop()
    driver = Driver(Scheduler(SchedulerConfig()), loop)

    def report(said: object) -> None:
        assert isinstance(said, TickReport)
        driver.report("w0", said)

    worker = FakeWorker(COSTS, report)
    driver.worker_up("w0", fake_ready(COSTS, SLOTS), worker)
    began = loop.time()

    async def request(place: int, arrival: Arrival) -> float:
        await asyncio.sleep(began + arrival.at - loop.time())
        due = began + arrival.at + arrival.deadline_s
        spec = JobSpec(str(place), key_of(fake_model()), arrival.tier, arrival.steps, arrival.rows, due)
        taken = driver.submit(spec, Payload("x", Picture(1, 1, b"abc"), None, arrival.steps, 7.5, 1.5, 1, 1))
        assert isinstance(taken, tuple)
        async for _ in taken[1].events():
            pass
        return loop.time() - began - arrival.at

    latencies = await asyncio.gather(*(request(place, arrival) for place, arrival in enumerate(trace)))
    driver.close()
    return latencies


def simulated(trace: list[Arrival], costs: StageCosts) -> list[float]:
    run = simulate(SchedulerConfig(), [Device(WorkerProfile("w0", key_of(fake_model()), SLOTS, costs))], trace)
    return [job.latency_s for job in run.jobs]


def figures(trace: list[Arrival], latencies: list[float]) -> tuple[float, float]:
    """Pictures a second, and the p95."""
    ended = max(arrival.at + latency for arrival, latency in zip(trace, latencies, strict=True))
    return len(trace) / ended, percentile(sorted(latencies), 0.95)


def agrees(trace: list[Arrival], seen: list[float], foreseen: list[float]) -> bool:
    (rate, p95), (rate_s, p95_s) = figures(trace, seen), figures(trace, foreseen)
    return abs(rate_s / rate - 1) <= THROUGHPUT and abs(p95_s / p95 - 1) <= P95


def test_throughput_and_p95_are_foreseen() -> None:
    attempts = []
    for seed in range(ATTEMPTS):
        trace = poisson(MIX, 8.0, 3.0, seed=seed)
        seen, foreseen = asyncio.run(live(trace)), simulated(trace, COSTS)
        if agrees(trace, seen, foreseen):
            return
        attempts.append((figures(trace, seen), figures(trace, foreseen)))
    pytest.fail(f"pictures a second and p95, live and simulated, agree in none of {attempts}")


def test_the_comparison_can_fail() -> None:
    """With costs a fifth off, no trace of the test above agrees."""
    slower = {stage: {bucket: 1.2 * seconds for bucket, seconds in table.items()} for stage, table in COSTS.items()}
    for seed in range(ATTEMPTS):
        trace = poisson(MIX, 8.0, 3.0, seed=seed)
        assert not agrees(trace, simulated(trace, COSTS), simulated(trace, slower))
