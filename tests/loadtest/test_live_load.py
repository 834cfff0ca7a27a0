"""The load generator and the benchmarks against a live service with the fake engine."""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Key, WorkerProfile
from steploom_loadtest.bench import __main__ as bench
from steploom_loadtest.bench import single
from steploom_loadtest.bench.outcome import Bar
from steploom_loadtest.child import StackError
from steploom_loadtest.cost_tables import linear
from steploom_loadtest.open_loop import run_closed_loop, run_open_loop
from steploom_loadtest.report import Record, records_of, summarize
from steploom_loadtest.simulator import Device, simulate
from steploom_loadtest.stack import Stack, cpu_seconds, running, to_toml
from steploom_loadtest.traces import Arrival, RequestClass, burst, poisson

FAKE = {"encode_s": 0.004, "denoise_s": 0.008, "denoise_row_s": 0.001, "decode_s": 0.004}
COSTS = linear((0.004, 0.0), (0.008, 0.001), (0.004, 0.0))
PATIENT_S = 600.0  # a deadline that is met even where the machine stalls


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as directory:
        tables = {
            "worker": {"engine": "fake", "slots": 8, "fake": FAKE},
            "batcher": {"tiers": {"free": {}, "pro": {}, "small": {"max_queued": 4}}},
        }
        with running(Path(directory), tables) as stack:
            yield stack


async def test_open_loop_tells_what_became_of_every_request(stack: Stack) -> None:
    mix = (
        RequestClass("free", 3, 9, deadline_s=PATIENT_S),
        RequestClass("pro", 35, 1, deadline_s=PATIENT_S),
        RequestClass("free", 100, 2, deadline_s=PATIENT_S, cancel_share=1.0, cancel_within_s=0.05),
    )
    trace = poisson(mix, 12.0, 3.0, seed=2)
    heard: list[Record] = []
    records = await run_open_loop(stack.gateway, trace, on_record=heard.append)
    assert [record.arrival for record in records] == trace
    assert sorted(record.ended_at for record in heard) == [record.ended_at for record in heard]
    assert sorted(map(id, heard)) == sorted(map(id, records))
    report = summarize(records)
    assert report.of(3).good == report.of(3).sent
    assert report.of(3).p50_s > 0.03
    assert set(report.statuses) == {"OK", "CANCELLED"}


async def test_an_overfull_queue_and_a_short_deadline_are_seen_by_status(stack: Stack) -> None:
    """The worker stands still until enough were refused, so that no slot gets free before."""
    worker = stack.pids()["worker-0"]
    refused: list[Record] = []

    def hear(record: Record) -> None:
        if record.status == "RESOURCE_EXHAUSTED":
            refused.append(record)
            if len(refused) > 10:
                os.kill(worker, signal.SIGCONT)

    many = RequestClass("small", 20, deadline_s=120.0)
    os.kill(worker, signal.SIGSTOP)
    try:
        records = await run_open_loop(stack.gateway, burst(many, 30), on_record=hear)
    finally:
        os.kill(worker, signal.SIGCONT)
    statuses = summarize(records).statuses
    assert statuses["RESOURCE_EXHAUSTED"] == 30 - statuses["OK"] > 10
    hopeless = await run_open_loop(stack.gateway, [Arrival(0.0, "pro", 100, 3, 0.2)])
    assert hopeless[0].status == "DEADLINE_EXCEEDED"


async def test_closed_loop_asks_for_the_kinds_in_turn(stack: Stack) -> None:
    kinds = [Arrival(0.0, "free", steps, 3, PATIENT_S) for steps in (3, 4)]
    records = await run_closed_loop(stack.gateway, kinds, callers=4, seconds=1.0)
    assert {record.status for record in records} == {"OK"}
    steps = [record.arrival.steps for record in records]
    assert steps.count(3) - steps.count(4) in (0, 1)


async def test_the_simulator_foretells_the_live_service(stack: Stack) -> None:
    """Loosely, and by the best of several runs where the machine stalls in the first."""
    mix = (RequestClass("free", 3, 3, deadline_s=PATIENT_S), RequestClass("pro", 12, deadline_s=PATIENT_S))
    trace = poisson(mix, 12.0, 1.5, seed=5)
    device = Device(WorkerProfile("w0", Key("fake", (4, 16, 16)), 8, COSTS))
    foretold = records_of(simulate(SchedulerConfig(), [device], trace))
    best = [math.inf] * len(trace)

    def times_as_long(steps: int) -> float:
        of_class = [place for place, arrival in enumerate(trace) if arrival.steps == steps]
        return median(best[place] for place in of_class) / median(foretold[place].latency_s for place in of_class)

    deadline = time.monotonic() + 120.0
    while not (times_as_long(3) <= 4.0 and times_as_long(12) <= 3.0):
        assert time.monotonic() < deadline, f"{times_as_long(3)} and {times_as_long(12)} times what is foretold"
        live = await run_open_loop(stack.gateway, trace)
        assert {record.status for record in (*live, *foretold)} == {"OK"}
        assert [record.ticks for record in live] == [record.ticks for record in foretold]
        best = [min(latency_s, record.latency_s) for latency_s, record in zip(best, live, strict=True)]
    assert times_as_long(12) > 0.4


def test_the_stack_tells_its_processes(stack: Stack) -> None:
    pids = stack.pids()
    assert set(pids) == {"gateway", "batcher", "worker-0"}
    assert all(0.0 < cpu_seconds(pid) < 60.0 for pid in pids.values())
    stack.wait_metric("steploom_gateway_batcher_up", 1, 60.0)


def test_a_stack_that_cannot_start_says_why() -> None:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as directory:
        wrong = {"worker": {"engine": "fake", "slots": -1}}
        with pytest.raises(StackError, match=r"worker\.slots"), running(Path(directory), wrong):
            raise AssertionError("it has started")


def test_settings_are_written_as_toml() -> None:
    import tomllib

    tables = {"up": {"workers": 2}, "worker": {"fake": {"denoise_s": 0.5}, "engine": "fake", "buckets": [1, 2]}}
    assert tomllib.loads(to_toml(tables)) == tables


def test_the_benchmarks_write_tables_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: dict[RequestClass, list[single.Sample]] = {}
    one_by_one = single._one_by_one

    async def keep(address: str, kind: RequestClass) -> list[single.Sample]:
        samples[kind] = await one_by_one(address, kind)
        return samples[kind]

    monkeypatch.setattr(single, "_one_by_one", keep)
    # bars that any machine holds
    monkeypatch.setattr(single, "MAX_SERVICE_S", dict.fromkeys(single.MAX_SERVICE_S, PATIENT_S))
    code = bench.main(["single", "--engine", "fake", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0
    assert "one request on an idle service" in said
    assert "holds" in said
    table = json.loads((tmp_path / "single.json").read_text())
    seconds = {label: row["total_s"] for label, row in table["figures"].items() if isinstance(row, dict)}
    assert 0.12 < seconds["3 steps"] < 60.0  # 0.13 where nothing is in the way
    rows = {
        label: {sample.timings.mean_rows_per_tick for sample in samples[kind]} for label, kind in single.KINDS.items()
    }
    assert rows == {"3 steps, few-step": {1.0}, "3 steps": {3.0}, "35 steps": {3.0}}
    assert all(bar["holds"] for bar in table["bars"])
    assert table["cores"] >= 1


def test_a_bar_can_be_missed() -> None:
    assert not Bar("seconds", 2.0, 1.0).holds
    assert not Bar("share", 0.9, 1.0, at_most=False).holds
    assert str(Bar("seconds", 2.0, 1.0)).startswith("MISSED")
