"""The simulator stands for the service: one trace gives the same ticks under it and under the asyncio driver."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.driver import Driver, key_of
from steploom_batcher.fake_worker import FakeWorker, fake_model, fake_ready
from steploom_batcher.messages import AdapterChanged, Payload, Picture, TickReport
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.types import JobSpec, SchedulerStats, Stage, StageCosts, Tick, WorkerProfile
from steploom_batcher.virtual_time import run
from steploom_loadtest.simulator import Device, Outage, Simulation, simulate
from steploom_loadtest.traces import Arrival, RequestClass, poisson


def device(factor: float) -> StageCosts:
    """A device on which fuller ticks pay."""
    return {
        Stage.ENCODE: {jobs: factor * (0.006 + 0.003 * jobs) for jobs in (1, 2, 4)},
        Stage.DENOISE: {rows: factor * (0.004 + 0.0007 * rows) for rows in (1, 2, 3, 6, 12, 24)},
        Stage.DECODE: {jobs: factor * (0.005 + 0.004 * jobs) for jobs in (1, 2, 4)},
    }


# unlike speeds, so that no two ticks end within the rounding of the clock, where their order is open
COSTS = {"w0": device(1.0), "w1": device(math.pi / 3)}
SLOTS = 12
MIX = (
    RequestClass("free", 3, 6, deadline_s=4.0, cancel_share=0.2, cancel_within_s=0.1),
    RequestClass("free", 5, 2, rows=1, deadline_s=1.0),
    RequestClass("pro", 20, 2, deadline_s=6.0, cancel_share=0.2, cancel_within_s=0.3),
)
LIGHT, HEAVY = 12.0, 45.0  # requests a second: some slots idle, and more than can be served in time


class Service:
    """The driver with fake workers, on the running loop."""

    def __init__(self, config: SchedulerConfig, worker_ids: tuple[str, ...], poisoned: set[int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ticks: list[tuple[float, Tick]] = []
        self.driver = Driver(Scheduler(config), self.loop, lambda now, tick: self.ticks.append((now, tick)))
        self.stats: SchedulerStats | None = None  # when the last job was done
        self.workers: dict[str, FakeWorker] = {}
        self.poisoned = {str(place) for place in poisoned}
        for worker_id in worker_ids:
            self.worker_up(worker_id)

    def worker_up(self, worker_id: str) -> None:
        def report(told: TickReport | AdapterChanged) -> None:
            assert isinstance(told, TickReport), "no adapter comes or goes here"
            self.driver.report(worker_id, told)

        worker = FakeWorker(COSTS[worker_id], report)
        worker.poison |= self.poisoned
        self.workers[worker_id] = worker
        self.driver.worker_up(worker_id, fake_ready(COSTS[worker_id], SLOTS), worker)

    def worker_down(self, worker_id: str) -> None:
        self.workers[worker_id].crash()
        self.driver.worker_down(worker_id, "it died")

    def submit(self, place: int, arrival: Arrival) -> None:
        spec = JobSpec(
            str(place),
            key_of(fake_model()),
            arrival.tier,
            arrival.steps,
            arrival.rows,
            arrival.at + arrival.deadline_s,
        )
        self.driver.submit(spec, payload(arrival.steps))


def payload(steps: int) -> Payload:
    return Payload("x", Picture(1, 1, b"abc"), None, steps, 7.5, 1.5, 1, 1)


def profile(worker_id: str) -> WorkerProfile:
    return WorkerProfile(worker_id, key_of(fake_model()), SLOTS, COSTS[worker_id])


def under_driver(
    config: SchedulerConfig,
    worker_ids: tuple[str, ...],
    trace: list[Arrival],
    outages: tuple[Outage, ...] = (),
    poisoned: frozenset[int] = frozenset(),
) -> Service:
    async def main() -> Service:
        service = Service(config, worker_ids, set(poisoned))
        loop = service.loop
        for outage in outages:
            loop.call_at(outage.at, service.worker_down, outage.worker_id)
            if outage.back_at is not None:
                loop.call_at(outage.back_at, service.worker_up, outage.worker_id)
        for place, arrival in enumerate(trace):
            loop.call_at(arrival.at, service.submit, place, arrival)
            if arrival.cancel_after_s is not None:
                loop.call_at(arrival.at + arrival.cancel_after_s, service.driver.cancel, str(place))
        await asyncio.sleep(trace[-1].at + 0.001)
        await service.driver.idle()
        service.stats = service.driver.statistics()
        service.driver.close()
        return service

    return run(main())


def under_simulator(
    config: SchedulerConfig, worker_ids: tuple[str, ...], trace: list[Arrival], **script: object
) -> Simulation:
    devices = [Device(profile(worker_id)) for worker_id in worker_ids]
    return simulate(config, devices, trace, keep_ticks=True, **script)  # type: ignore[arg-type]


def assert_same(service: Service, simulation: Simulation) -> None:
    assert len(service.ticks) == len(simulation.ticks)
    for (driver_now, driver_tick), (simulator_now, simulator_tick) in zip(service.ticks, simulation.ticks, strict=True):
        assert driver_tick == simulator_tick
        assert driver_now == pytest.approx(simulator_now, abs=1e-9)
    assert service.stats == simulation.stats


@pytest.mark.parametrize("policy", ["step", "request"])
@pytest.mark.parametrize("rate", [LIGHT, HEAVY])
def test_a_trace_with_cancels_gives_the_same_ticks(policy: str, rate: float) -> None:
    config = SchedulerConfig(policy=policy)
    trace = poisson(MIX, rate, 8.0, seed=5)
    simulation = under_simulator(config, ("w0",), trace)
    assert simulation.stats.cancelled > 3
    assert any(len(tick.entries) > 1 for _, tick in simulation.ticks)
    assert_same(under_driver(config, ("w0",), trace), simulation)


@pytest.mark.parametrize("policy", ["step", "request"])
def test_two_workers_and_the_loss_of_one(policy: str) -> None:
    config = SchedulerConfig(policy=policy)
    trace = poisson(MIX, 40.0, 6.0, seed=6)
    outages = (Outage("w1", 1.2345, 2.3456), Outage("w0", 3.4567, 3.5678))
    simulation = under_simulator(config, ("w0", "w1"), trace, outages=outages)
    assert simulation.stats.finished > 50
    assert_same(under_driver(config, ("w0", "w1"), trace, outages), simulation)


def test_poisoned_requests_fail_alone() -> None:
    config = SchedulerConfig()
    trace = poisson(MIX, 30.0, 5.0, seed=7)
    poisoned = frozenset({3, 17, 60})
    simulation = under_simulator(config, ("w0",), trace, poisoned=poisoned)
    failed = {int(job.job_id) for job in simulation.jobs if job.cause == "poison"}
    assert failed <= poisoned
    assert failed
    assert_same(under_driver(config, ("w0",), trace, poisoned=poisoned), simulation)


def test_the_comparison_can_fail() -> None:
    trace = poisson(MIX, 30.0, 3.0, seed=8)
    simulation = under_simulator(SchedulerConfig(), ("w0",), trace)
    other = under_driver(replace(SchedulerConfig(), batch_gain=0.9, max_rows=6), ("w0",), trace)
    with pytest.raises(AssertionError):
        assert_same(other, simulation)
