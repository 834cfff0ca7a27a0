from __future__ import annotations

import io

import pytest
from rich.console import Console

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Key, WorkerProfile
from steploom_loadtest.cost_tables import linear
from steploom_loadtest.report import Record, percentile, records_of, summarize, table
from steploom_loadtest.simulator import Device, simulate
from steploom_loadtest.traces import FREE_AND_PRO, Arrival, RequestClass, poisson


def record(at: float, ended_at: float, status: str = "OK", deadline_s: float = 1.0, steps: int = 3) -> Record:
    return Record(Arrival(at, "free", steps, 3, deadline_s), status, ended_at, queue_s=0.1, mean_rows_per_tick=6.0)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (1, 0.5, 0),
        (2, 0.5, 0),
        (3, 0.5, 1),
        (100, 0.5, 49),
        (100, 0.95, 94),
        (100, 0.99, 98),
        (20, 0.95, 18),
        (5, 1, 4),
    ],
)
def test_a_percentile_is_the_smallest_value_with_that_share_below(count: int, share: float, expected: int) -> None:
    assert percentile([float(place) for place in range(count)], share) == expected


def test_percentile_of_nothing() -> None:
    assert percentile([], 0.5) == 0.0


def test_throughput_counts_pictures_and_goodput_those_in_time() -> None:
    records = [record(0.0, 0.5), record(1.0, 3.0), record(2.0, 2.1, "RESOURCE_EXHAUSTED"), record(3.0, 4.0, steps=35)]
    report = summarize(records)
    assert report.seconds == 4.0
    assert report.throughput == 3 / 4.0
    assert report.goodput == 2 / 4.0
    assert report.statuses == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    few = report.of(3)
    assert (few.sent, few.ok, few.good) == (3, 2, 1)
    assert (few.p50_s, few.max_s) == (0.5, 2.0)  # a refusal's quick answer is no latency
    assert report.of(35).sent == 1


def test_latency_counts_from_the_intended_moment() -> None:
    late = Record(Arrival(1.0, "free", 3, 3, 1.0), "OK", ended_at=3.0, lag_s=1.5)
    assert late.latency_s == 2.0
    assert not late.is_good
    assert summarize([late]).max_lag_s == 1.5


def test_a_simulated_run_has_the_same_report() -> None:
    costs = linear((0.01, 0.008), (0.008, 0.007), (0.004, 0.022))
    device = Device(WorkerProfile("w0", Key("m", (4, 8, 8)), 8, costs))
    mix = (*FREE_AND_PRO, RequestClass("free", 4, 2, deadline_s=0.1), RequestClass("pro", 5, 2, cancel_share=1.0))
    simulation = simulate(SchedulerConfig(), [device], poisson(mix, 3.0, 20.0))
    report = summarize(records_of(simulation))
    assert report.of(3).ok == report.of(3).sent > 10
    assert report.of(4).good < report.of(4).sent
    assert report.statuses["CANCELLED"] == simulation.stats.cancelled > 0
    assert sum(report.statuses.values()) == len(simulation.jobs)
    assert report.throughput == pytest.approx(simulation.stats.finished / simulation.ended_at)


def test_the_table_names_every_class_and_status() -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(table(summarize([record(0.0, 0.5), record(0.0, 1.0, "UNAVAILABLE", steps=35)]), "a run"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for word in ("a run", "free 3 steps", "free 35 steps", "OK 1, UNAVAILABLE 1", "0.500"):
        assert word in text
