"""What must hold of any simulated run, and what the policies give against each other."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Key, Stage, StageCosts, WorkerProfile
from steploom_loadtest.cost_tables import linear
from steploom_loadtest.simulator import Device, End, Outage, Simulation, simulate
from steploom_loadtest.traces import FREE_AND_PRO, Arrival, RequestClass, burst, poisson

KEY = Key("model", (4, 32, 32))
# a small model on two cores, roughly
CPU = linear(encode=(0.010, 0.008), denoise=(0.008, 0.007), decode=(0.004, 0.022))


# a device on which a tick of many rows costs little more than one of few
WIDE = linear(encode=(0.010, 0.001), denoise=(0.020, 0.0005), decode=(0.010, 0.001))


def device(worker_id: str = "w0", slots: int = 32, costs: StageCosts = CPU) -> Device:
    return Device(WorkerProfile(worker_id, KEY, slots, costs))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def latencies(simulation: Simulation, steps: int) -> list[float]:
    return [job.latency_s for job in simulation.jobs if job.arrival.steps == steps and job.end is End.FINISHED]


def test_one_job_alone_takes_what_its_ticks_cost() -> None:
    config = SchedulerConfig(max_queue_delay_s=0.0)
    run = simulate(config, [device()], [Arrival(1.0, "free", 3, 3, 20.0)])
    alone_s = CPU[Stage.ENCODE][1] + 3 * CPU[Stage.DENOISE][3] + CPU[Stage.DECODE][1]
    assert run.jobs[0].end is End.FINISHED
    assert run.jobs[0].latency_s == pytest.approx(alone_s)
    assert run.busy_s == pytest.approx(alone_s)
    assert run.jobs[0].usage is not None
    assert run.jobs[0].usage.ticks == 5


def test_a_burst_shares_ticks() -> None:
    run = simulate(SchedulerConfig(), [device(costs=WIDE)], burst(FREE_AND_PRO[0], 8), keep_ticks=True)
    assert {job.end for job in run.jobs} == {End.FINISHED}
    assert run.stats.mean_rows_per_tick >= 6
    assert max(len(tick.entries) for _, tick in run.ticks) >= 4


def test_ticks_are_shared_even_where_they_cost_nothing() -> None:
    nothing = linear((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    run = simulate(SchedulerConfig(), [device(costs=nothing)], burst(FREE_AND_PRO[0], 8))
    assert run.stats.mean_rows_per_tick >= 12


@pytest.mark.parametrize("policy", ["step", "request"])
@pytest.mark.parametrize("seed", [1, 2])
def test_jobs_are_conserved(policy: str, seed: int) -> None:
    mix = (
        RequestClass("free", 3, 5, deadline_s=1.5, cancel_share=0.2, cancel_within_s=0.5),
        RequestClass("pro", 12, 2, deadline_s=3.0, cancel_share=0.2),
        RequestClass("pro", 4, 1, rows=1, deadline_s=0.3),
    )
    trace = poisson(mix, 14.0, 30.0, seed)
    outages = [Outage("w0", 4.0, 5.0), Outage("w1", 9.0)]
    run = simulate(
        SchedulerConfig(policy=policy), [device("w0", 6), device("w1", 6)], trace, outages=outages, poisoned=[5, 50, 77]
    )
    ends = Counter(job.end for job in run.jobs)
    stats = run.stats
    assert sum(ends.values()) == len(trace) == stats.submitted
    assert None not in ends
    assert ends[End.FINISHED] == stats.finished > 80
    assert ends[End.CANCELLED] == stats.cancelled > 10
    assert ends[End.REFUSED] == sum(stats.refused.values()) > 0
    assert ends[End.FAILED] == stats.failed + stats.expired
    assert all(worker.slots_used == 0 == worker.ticks_in_flight for worker in stats.workers.values())
    assert all(tier.queued == 0 == tier.running for tier in stats.tiers.values())
    for job in run.jobs:
        if job.end is End.FINISHED:
            assert job.latency_s <= job.arrival.deadline_s + 0.5


def test_the_same_trace_gives_the_same_run() -> None:
    trace = poisson(FREE_AND_PRO, 6.0, 20.0, seed=3)
    first, second = (simulate(SchedulerConfig(), [device()], trace, keep_ticks=True) for _ in range(2))
    assert first.ticks == second.ticks
    assert [job.ended_at for job in first.jobs] == [job.ended_at for job in second.jobs]


def test_a_poisoned_job_fails_and_no_other() -> None:
    trace = burst(FREE_AND_PRO[0], 6)
    run = simulate(SchedulerConfig(), [device()], trace, poisoned=[2])
    assert [job.end for job in run.jobs] == [End.FAILED if place == 2 else End.FINISHED for place in range(6)]
    assert run.jobs[2].cause == "poison"


def test_jobs_of_a_lost_worker_run_again() -> None:
    run = simulate(
        SchedulerConfig(), [device()], burst(FREE_AND_PRO[0], 6), outages=[Outage("w0", at=0.15, back_at=1.0)]
    )
    assert {job.end for job in run.jobs} == {End.FINISHED}
    assert all(job.ended_at > 1.0 for job in run.jobs)


def capacity(config: SchedulerConfig) -> float:
    """Requests a second of the mix when there is always more to do: counted in rows, as not every class gets in."""
    run = simulate(config, [device()], poisson(FREE_AND_PRO, 100.0, 3.0, seed=9))
    rows = sum(kind.weight * kind.steps * kind.rows for kind in FREE_AND_PRO)
    return run.stats.denoise_rows / run.ended_at / (rows / sum(kind.weight for kind in FREE_AND_PRO))


def test_few_steps_do_not_wait_behind_many() -> None:
    rate = 0.8 * capacity(SchedulerConfig())
    trace = poisson(FREE_AND_PRO, rate, 600.0 / rate, seed=4)
    step = simulate(SchedulerConfig(policy="step"), [device()], trace)
    request = simulate(SchedulerConfig(policy="request"), [device()], trace)
    assert step.stats.finished >= 0.99 * request.stats.finished
    assert step.stats.finished >= 0.97 * len(trace)
    assert percentile(latencies(step, 3), 0.95) <= percentile(latencies(request, 3), 0.95) / 3


def test_a_request_costs_little_to_simulate() -> None:
    trace = poisson(FREE_AND_PRO[:1], 8.0, 500.0, seed=1)
    began = time.thread_time()
    run = simulate(SchedulerConfig(), [device()], trace)
    cost_s = (time.thread_time() - began) / len(trace)
    assert run.stats.finished > 0.9 * len(trace)
    assert cost_s < 0.002  # ten times what it takes on a machine of its own
