"""Several batchers behind one door: every rule serves every request, and looking at the load pays."""

from __future__ import annotations

from collections import Counter

import pytest

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Stage
from steploom_loadtest.cost_tables import DeviceCosts, linear
from steploom_loadtest.fleet import LEAST_LOADED, ROUND_ROBIN, SPREADS, TWO_CHOICES, simulate_fleet
from steploom_loadtest.simulator import Device, End, Simulation, simulate
from steploom_loadtest.traces import STUDENT_AND_PRO, Arrival, poisson

COSTS = DeviceCosts("small", 8, linear((0.010, 0.008), (0.008, 0.007), (0.004, 0.022)))
CONFIG = SchedulerConfig()


def workers(count: int = 1) -> list[Device]:
    return [Device(COSTS.profile(f"w{number}")) for number in range(count)]


def mean_latency(run: Simulation) -> float:
    return sum(job.latency_s for job in run.jobs) / len(run.jobs)


@pytest.mark.parametrize("spread", SPREADS)
def test_every_request_ends_once_and_the_sums_are_those_of_all_hosts(spread: str) -> None:
    trace = poisson(STUDENT_AND_PRO, 12.0, 20.0, seed=1)
    run = simulate_fleet(CONFIG, workers(2), 3, trace, spread=spread)
    assert [job.arrival for job in run.jobs] == trace
    assert Counter(job.end for job in run.jobs) == {End.FINISHED: len(trace)}
    assert (run.stats.submitted, run.stats.finished) == (len(trace), len(trace))
    assert sorted(run.stats.workers) == [f"{host}/w{worker}" for host in range(3) for worker in range(2)]
    assert sum(run.stats.ticks.values()) == sum(use.ticks for use in run.use.values())
    rows = sum(arrival.steps * arrival.rows for arrival in trace)
    assert run.use[Stage.DENOISE].rows == run.stats.denoise_rows == rows
    assert run.busy_s < 6 * run.ended_at


def test_one_host_is_the_simulator_itself() -> None:
    trace = poisson(STUDENT_AND_PRO, 5.0, 10.0, seed=2)
    alone, fleet = simulate(CONFIG, workers(), trace), simulate_fleet(CONFIG, workers(), 1, trace, spread=LEAST_LOADED)
    assert [job.ended_at for job in fleet.jobs] == [job.ended_at for job in alone.jobs]


def test_hosts_on_one_clock_do_what_they_would_do_alone() -> None:
    """Two hosts in strict turn by counts: while all of one burst is open, the next goes to the other."""
    trace = [Arrival(0.001 * place, "free", 3, 1, 60.0) for place in range(8)]
    together = simulate_fleet(CONFIG, workers(), 2, trace, spread=LEAST_LOADED)
    in_turn = simulate_fleet(CONFIG, workers(), 2, trace, spread=ROUND_ROBIN)
    # which of the two begins is the rule's own choice; they are equal
    assert sorted(job.latency_s for job in together.jobs) == pytest.approx(
        sorted(job.latency_s for job in in_turn.jobs)
    )


@pytest.mark.parametrize("spread", [LEAST_LOADED, TWO_CHOICES])
def test_a_burst_at_one_moment_is_spread(spread: str) -> None:
    run = simulate_fleet(CONFIG, workers(), 2, [Arrival(1.0, "free", 3, 1, 60.0)] * 8, spread=spread)
    together = simulate_fleet(CONFIG, workers(), 1, [Arrival(1.0, "free", 3, 1, 60.0)] * 8)
    assert run.stats.ticks["denoise"] == 6  # three steps on each host: half of the requests went to each
    assert max(job.latency_s for job in run.jobs) < max(job.latency_s for job in together.jobs)


def test_looking_at_the_load_shortens_the_wait_where_requests_are_unlike() -> None:
    trace = poisson(STUDENT_AND_PRO, 25.0, 60.0, seed=3)
    waits = {spread: mean_latency(simulate_fleet(CONFIG, workers(), 6, trace, spread=spread)) for spread in SPREADS}
    assert waits[LEAST_LOADED] < 0.9 * waits[ROUND_ROBIN]
    assert waits[TWO_CHOICES] < waits[ROUND_ROBIN]


def test_a_seed_gives_one_run() -> None:
    trace = poisson(STUDENT_AND_PRO, 20.0, 10.0, seed=4)
    first, again, other = (
        [job.ended_at for job in simulate_fleet(CONFIG, workers(), 4, trace, spread=TWO_CHOICES, seed=seed).jobs]
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(("hosts", "spread"), [(0, ROUND_ROBIN), (2, "at-random")])
def test_what_cannot_be_is_refused(hosts: int, spread: str) -> None:
    with pytest.raises(ValueError, match="at least one, and one of round-robin, least-loaded, two-choices"):
        simulate_fleet(CONFIG, workers(), hosts, [], spread=spread)
