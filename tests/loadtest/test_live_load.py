"""The load generator and the benchmarks against a live service with the fake engine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Key, WorkerProfile
from steploom_loadtest.bench import __main__ as bench
from steploom_loadtest.bench.outcome import Bar
from steploom_loadtest.cost_tables import linear
from steploom_loadtest.open_loop import run_closed_loop, run_open_loop
from steploom_loadtest.report import Record, records_of, summarize
from steploom_loadtest.simulator import Device, simulate
from steploom_loadtest.stack import Stack, StackError, cpu_seconds, running, to_toml
from steploom_loadtest.traces import FREE_AND_PRO, Arrival, RequestClass, burst, poisson

FAKE = {"encode_s": 0.004, "denoise_s": 0.008, "denoise_row_s": 0.001, "decode_s": 0.004}
COSTS = linear((0.004, 0.0), (0.008, 0.001), (0.004, 0.0))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as directory:
        tables = {
            "worker": {"engine": "fake", "slots": 8, "fake": FAKE},
            "batcher": {"tiers": {"free": {"max_queued": 4}, "pro": {}}},
        }
        with running(Path(directory), tables) as stack:
            yield stack


async def test_open_loop_sends_at_the_intended_moments(stack: Stack) -> None:
    mix = (*FREE_AND_PRO, RequestClass("free", 5, 2, cancel_share=1.0, cancel_within_s=0.05))
    trace = poisson(mix, 12.0, 3.0, seed=2)
    heard: list[Record] = []
    records = await run_open_loop(stack.gateway, trace, on_record=heard.append)
    assert [record.arrival for record in records] == trace
    assert sorted(record.ended_at for record in heard) == [record.ended_at for record in heard]
    report = summarize(records)
    assert report.max_lag_s < 0.25
    assert report.of(3).good == report.of(3).sent
    assert report.of(3).p50_s > 0.03
    assert set(report.statuses) == {"OK", "CANCELLED"}


async def test_an_overfull_queue_and_a_short_deadline_are_seen_by_status(stack: Stack) -> None:
    many = RequestClass("free", 20, deadline_s=30.0)
    records = await run_open_loop(stack.gateway, burst(many, 30))
    statuses = summarize(records).statuses
    assert statuses["RESOURCE_EXHAUSTED"] == 30 - statuses["OK"] > 10
    hopeless = await run_open_loop(stack.gateway, [Arrival(0.0, "pro", 100, 3, 0.2)])
    assert hopeless[0].status == "DEADLINE_EXCEEDED"


async def test_closed_loop_keeps_so_many_open(stack: Stack) -> None:
    kinds = [Arrival(0.0, "free", 3, 3, 20.0), Arrival(0.0, "free", 4, 3, 20.0)]
    records = await run_closed_loop(stack.gateway, kinds, callers=4, seconds=1.0)
    report = summarize(records)
    assert set(report.statuses) == {"OK"}
    assert abs(report.of(3).sent - report.of(4).sent) <= 1
    moment = 0.5
    assert sum(record.arrival.at <= moment < record.ended_at for record in records) in (3, 4)


async def test_the_simulator_foretells_the_live_service(stack: Stack) -> None:
    """Loosely: here the machine is shared with everything else that runs."""
    trace = poisson(FREE_AND_PRO, 8.0, 6.0, seed=5)
    live = summarize(await run_open_loop(stack.gateway, trace))
    device = Device(WorkerProfile("w0", Key("fake", (4, 16, 16)), 8, COSTS))
    foretold = summarize(records_of(simulate(SchedulerConfig(), [device], trace)))
    assert live.of(3).ok == foretold.of(3).ok
    assert live.of(35).p50_s == pytest.approx(foretold.of(35).p50_s, rel=0.6)
    assert live.of(3).p50_s == pytest.approx(foretold.of(3).p50_s, rel=1.0)


def test_the_stack_tells_its_processes(stack: Stack) -> None:
    pids = stack.pids()
    assert set(pids) == {"gateway", "batcher", "worker-0"}
    assert all(0.0 < cpu_seconds(pid) < 60.0 for pid in pids.values())
    assert stack.metric("steploom_gateway_batcher_up") == 1


def test_a_stack_that_cannot_start_says_why() -> None:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as directory:
        wrong = {"worker": {"engine": "fake", "slots": 0}}
        with pytest.raises(StackError, match=r"worker\.slots"), running(Path(directory), wrong):
            raise AssertionError("it has started")


def test_settings_are_written_as_toml() -> None:
    import tomllib

    tables = {"up": {"workers": 2}, "worker": {"fake": {"denoise_s": 0.5}, "engine": "fake", "buckets": [1, 2]}}
    assert tomllib.loads(to_toml(tables)) == tables


def test_the_benchmarks_write_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = bench.main(["single", "--engine", "fake", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0
    assert "one request on an idle service" in said
    assert "holds" in said
    table = json.loads((tmp_path / "single.json").read_text())
    seconds = {label: row["total_s"] for label, row in table["figures"].items() if isinstance(row, dict)}
    assert seconds["3 steps"] == pytest.approx(0.13, abs=0.1)
    assert seconds["3 steps, few-step"] < seconds["3 steps"]  # a row a step in place of three
    assert all(bar["holds"] for bar in table["bars"])
    assert table["cores"] >= 1


def test_a_bar_can_be_missed() -> None:
    assert not Bar("seconds", 2.0, 1.0).holds
    assert not Bar("share", 0.9, 1.0, at_most=False).holds
    assert str(Bar("seconds", 2.0, 1.0)).startswith("MISSED")
