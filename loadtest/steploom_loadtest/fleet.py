"""Several batchers behind one door: the simulator for more than one host.

Whoever spreads requests sees no further than a load balancer does: which hosts there are, and how many of its own
requests each of them still has open. So a rule is either blind (`round-robin`), or looks at these counts, of all hosts
(`least-loaded`) or of two that are drawn (`two-choices`: Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", 2001).
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import SchedulerStats, Stage, TierStats
from steploom_loadtest.simulator import Device, JobResult, Node, Simulation, StageUse, jobs_of, simulate
from steploom_loadtest.traces import Arrival

Choose = Callable[[list[int]], int]  # from how many requests each host has open to the host of the next one

ROUND_ROBIN = "round-robin"
LEAST_LOADED = "least-loaded"
TWO_CHOICES = "two-choices"
SPREADS = (ROUND_ROBIN, LEAST_LOADED, TWO_CHOICES)
"""The rules by which requests are spread, by the names that command lines take."""


def simulate_fleet(
    config: SchedulerConfig,
    devices: Sequence[Device],
    num_nodes: int,
    trace: Sequence[Arrival],
    *,
    spread: str = ROUND_ROBIN,
    seed: int = 0,
) -> Simulation:
    """Runs a trace to its end on equal hosts, each with a batcher of its own.

    Args:
        config: of every scheduler.
        devices: workers of each host.
        num_nodes: hosts, at least one.
        trace: arrivals in order of time.
        spread: of `SPREADS`.
        seed: of `two-choices`.

    Returns:
        The jobs in the order of the trace; the statistics of all schedulers together, with workers as `HOST/WORKER`.

    Raises:
        ValueError: there is no such rule, or no host.
    """
    if num_nodes < 1 or spread not in SPREADS:
        raise ValueError(f"{num_nodes} hosts, spread by {spread!r}: at least one, and one of {', '.join(SPREADS)}")
    if num_nodes == 1:
        return simulate(config, devices, trace)
    jobs = jobs_of(trace)
    if spread == ROUND_ROBIN:
        runs = [_alone(config, devices, jobs[number::num_nodes]) for number in range(num_nodes)]
    else:
        runs = _together(config, devices, num_nodes, jobs, _rule(spread, seed))
    return _merged(jobs, runs)


def _alone(config: SchedulerConfig, devices: Sequence[Device], jobs: Sequence[JobResult]) -> Simulation:
    """One host whose requests do not depend on any other host: its own clock does."""
    node = Node(config, devices)
    node.feed(iter(jobs))
    while node.next_at is not None:
        node.turn()
    return node.result(jobs)


def _rule(spread: str, seed: int) -> Choose:
    rng = random.Random(seed)
    turn = 0

    def least_loaded(loads: list[int]) -> int:
        nonlocal turn
        least = min(loads)
        try:  # of equals, the next in turn: the first would get all of a light load
            number = loads.index(least, turn)
        except ValueError:
            number = loads.index(least)
        turn = (number + 1) % len(loads)
        return number

    def two_choices(loads: list[int]) -> int:
        return min(rng.sample(range(len(loads)), 2), key=loads.__getitem__)

    return two_choices if spread == TWO_CHOICES else least_loaded


def _together(
    config: SchedulerConfig, devices: Sequence[Device], num_nodes: int, jobs: Sequence[JobResult], choose: Choose
) -> list[Simulation]:
    """All hosts on one clock: before each arrival, all that happens until then has happened."""
    nodes = [Node(config, devices) for _ in range(num_nodes)]
    given: list[list[JobResult]] = [[] for _ in nodes]
    loads = [0] * num_nodes
    heap: list[tuple[float, int]] = []  # moment, host; one that is not the host's next any more is passed over

    def run_until(moment: float) -> None:
        while heap and heap[0][0] < moment:
            when, number = heapq.heappop(heap)
            if nodes[number].next_at == when:
                nodes[number].turn()
                loads[number] = nodes[number].num_open
                push(number)

    def push(number: int) -> None:
        when = nodes[number].next_at
        if when is not None:
            heapq.heappush(heap, (when, number))

    for job in jobs:
        run_until(job.arrival.at)
        number = choose(loads)
        given[number].append(job)
        nodes[number].offer(job)
        loads[number] = nodes[number].num_open
        push(number)
    run_until(float("inf"))
    return [node.result(own) for node, own in zip(nodes, given, strict=True)]


def _merged(jobs: Sequence[JobResult], runs: Sequence[Simulation]) -> Simulation:
    use = {stage: StageUse() for stage in Stage}
    for run in runs:
        for stage, own in run.use.items():
            use[stage].add(own)
    return Simulation(jobs, [], _sum([run.stats for run in runs]), max(run.ended_at for run in runs), use)


def _sum(all_stats: Sequence[SchedulerStats]) -> SchedulerStats:
    refused: Counter[str] = Counter()
    ticks: Counter[str] = Counter()
    for stats in all_stats:
        refused.update(stats.refused)
        ticks.update(stats.ticks)
    counters = ("submitted", "admitted", "finished", "failed", "cancelled", "expired", "denoise_rows", "padding_rows")
    return replace(
        all_stats[0],
        tiers={
            name: TierStats(
                sum(stats.tiers[name].queued for stats in all_stats),
                sum(stats.tiers[name].running for stats in all_stats),
                sum(stats.tiers[name].max_queued for stats in all_stats),
            )
            for name in all_stats[0].tiers
        },
        workers={
            f"{number}/{name}": worker
            for number, stats in enumerate(all_stats)
            for name, worker in stats.workers.items()
        },
        refused=dict(refused),
        ticks=dict(ticks),
        **{name: sum(getattr(stats, name) for stats in all_stats) for name in counters},
    )
