"""The benchmark of a whole service on a device: what it computes, when it refuses, and one small run on the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from steploom_engine_worker import tiny_model
from steploom_loadtest.bench import __main__ as bench
from steploom_loadtest.bench.device_share import DeviceShare, bucket_at, device_share
from steploom_loadtest.bench.outcome import Bar, Options, Outcome, markdown
from steploom_loadtest.bench.saturation import Saturation, capacity
from steploom_loadtest.report import OK, Record, summarize
from steploom_loadtest.traces import Arrival, RequestClass
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse
from steploom_protos.worker.v1 import worker_pb2

PATIENT_S = "600"  # a deadline that is met even where the machine stalls
FREE, PRO = RequestClass("free", 3, rows=1), RequestClass("pro", 35)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model.main([str(root), "--tiny", "--adapter", "few-step", "--rank", "2"])
    return root


def status(*workers: StatusResponse.WorkerStatus) -> StatusResponse:
    return StatusResponse(workers=workers)


def worker(
    denoise: tuple[int, float, int, int], decode_s: float, gaps: dict[float, int], idle_s: float = 0.0
) -> StatusResponse.WorkerStatus:
    ticks, busy_s, rows, padding = denoise
    return StatusResponse.WorkerStatus(
        stages=[
            StatusResponse.StageUse(stage=worker_pb2.STAGE_ENCODE, ticks=1, busy_s=0.5, rows=2),
            StatusResponse.StageUse(
                stage=worker_pb2.STAGE_DENOISE, ticks=ticks, busy_s=busy_s, rows=rows, padding=padding
            ),
            StatusResponse.StageUse(stage=worker_pb2.STAGE_DECODE, ticks=1, busy_s=decode_s, rows=2),
        ],
        denoise_gaps=[StatusResponse.GapBucket(at_most_s=bound, count=count) for bound, count in gaps.items()],
        idle_s=idle_s,
    )


def test_a_share_is_what_came_between_two_looks() -> None:
    before = status(worker((10, 1.0, 100, 50), 1.0, {0.001: 9}, idle_s=2.0))
    after = status(worker((30, 7.0, 280, 70), 3.0, {0.001: 107, 0.5: 1, math.inf: 1}, idle_s=3.0))
    assert device_share(before, after, 8.0) == DeviceShare(
        busy=0.875,
        denoise_busy=0.75,
        others_busy=0.25,
        rows_per_tick=9.0,
        padding_share=0.1,
        tick_ms=300.0,
        row_ms=30.0,
        gap_p50_ms=1.0,
        gap_p99_ms=500.0,
    )


def test_a_share_of_nothing_is_nothing() -> None:
    same = status(worker((10, 1.0, 100, 50), 1.0, {0.001: 9}))
    share = device_share(same, same, 1.0)
    assert (share.busy, share.denoise_busy, share.rows_per_tick, share.padding_share) == (0.0, 0.0, 0.0, 0.0)
    assert share.gap_p99_ms == 0.0


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [({}, 0.5, 0.0), ({1.0: 0}, 0.5, 0.0), ({1.0: 1, 2.0: 1}, 0.5, 1.0), ({2.0: 1, 1.0: 1}, 0.51, 2.0)],
)
def test_a_percentile_is_the_bound_of_its_bucket(counts: dict[float, int], share: float, expected: float) -> None:
    assert bucket_at(counts, share) == expected


def saturation(seconds: float, **pictures: int) -> Saturation:
    """So many pictures of the free and of the pro tier."""
    steps = {"free": 3, "pro": 35}
    records = [
        Record(Arrival(0.0, tier, steps[tier], 1, 1.0), OK, 0.5)
        for tier, count in pictures.items()
        for _ in range(count)
    ]
    nothing = device_share(status(), status(), seconds)
    return Saturation(seconds, summarize(records).classes, 0, nothing)


def test_the_capacity_of_a_mix_counts_the_work_and_not_the_luck_of_the_window() -> None:
    """A free picture takes a tenth of a second, one of pro a whole one: ten of the mix take 1.9 s."""
    mix = [RequestClass("free", 3, 9), RequestClass("pro", 35, 1)]
    alone = {"free 3 steps": saturation(1.0, free=10), "pro 35 steps": saturation(2.0, pro=2)}
    assert capacity(mix, saturation(1.9, free=9, pro=1), alone) == pytest.approx(10 / 1.9)
    assert capacity(mix, saturation(1.9, free=19), alone) == pytest.approx(10 / 1.9)
    assert saturation(1.9, free=19).rate == pytest.approx(10.0)


def test_tables_become_markdown() -> None:
    table = Table("mix", "rate", title="saturated", caption="a note")
    table.add_row("9:1", "2.00")
    outcome = Outcome("gpu", {}, [table], [Bar("failed:", 0, 0)])
    assert markdown(outcome, {"driver": "1.2"}).splitlines() == [
        "# gpu",
        "",
        "- driver: 1.2",
        "",
        "## saturated",
        "",
        "| mix | rate |",
        "|---|---|",
        "| 9:1 | 2.00 |",
        "",
        "a note",
        "",
        "- holds: failed: 0, bar <= 0",
    ]


def test_without_the_device_it_says_so_and_ends_with_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["gpu", "--model", str(model), "--device", "cuda:99"]) == 2
    assert "torch cannot use device 'cuda:99' here" in capsys.readouterr().err


@pytest.mark.parametrize("adapter", ["", "another"])
def test_without_a_model_or_its_adapter_it_says_how_to_make_one(
    adapter: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = model if adapter else tmp_path
    assert bench.main(["gpu", "--model", str(root), "--adapter", adapter]) == 2
    assert f"python -m steploom_engine_worker.tiny_model {root} --adapter few-step" in capsys.readouterr().err


def test_a_worker_that_cannot_start_says_why(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["gpu", "--model", str(model), "--device", "cpu", "--dtype", "float16", "--out", str(tmp_path)]
    assert bench.main(arguments) == 3
    assert "float16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_it_is_run_by_name_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[str, float]] = []

    def pretend(name: str) -> Callable[[Options], Outcome]:
        def run(options: Options) -> Outcome:
            ran.append((name, options.seconds))
            return Outcome(name, {}, [])

        return run

    monkeypatch.setattr(bench, "BENCHMARKS", {name: pretend(name) for name in bench.BENCHMARKS})
    assert bench.main(["--out", str(tmp_path)]) == 0
    assert bench.main(["gpu", "--out", str(tmp_path)]) == 0
    *others, (last, seconds) = ran
    assert last == "gpu"
    assert seconds < min(length for _, length in others)
    assert [name for name, _ in others] == ["single", "policies", "overload", "control-plane"]


def test_a_small_run_on_the_cpu(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way of the figures, not the figures: all four mixes and both policies, every picture in time."""
    arguments = ["gpu", "--model", str(model), "--device", "cpu", "--out", str(tmp_path), "--seconds", "0.5"]
    arguments += ["--slots", "3", "--callers", "3", "--rows", "1,2,3", "--free-steps", "2", "--pro-steps", "4"]
    arguments += ["--loads", "0.5,1.0", "--free-deadline", PATIENT_S, "--pro-deadline", PATIENT_S]
    code = bench.main(arguments)
    said = capsys.readouterr()
    assert code == 0, said.err
    table = json.loads((tmp_path / "gpu.json").read_text())
    page = (tmp_path / "gpu.md").read_text()
    assert table["device"] == "cpu"
    assert table["torch"]
    assert table["command"].startswith("python -m steploom_loadtest.bench gpu --model")
    assert all(f"- {name}: {table[name]}\n" in page for name in ("device", "torch", "command", "when"))
    figures = table["figures"]
    labels = {"free": ["free 2 steps"], "pro": ["pro 4 steps"]}
    assert figures["saturation"].keys() == {"free", "pro", "9:1", "1:1"}
    for mix, found in figures["saturation"].items():
        wanted = labels.get(mix, ["free 2 steps", "pro 4 steps"])
        assert [item["label"] for item in found["classes"]] == wanted
        assert all(0 < item["p50_s"] <= item["p95_s"] <= item["p99_s"] for item in found["classes"])
        assert found["failed"] == 0
        assert found["pictures_per_s"] > 0
        assert found["device"]["gap_p50_ms"] <= found["device"]["gap_p99_ms"]
    devices = {mix: found["device"] for mix, found in figures["saturation"].items()}
    # where the machine stalls, a window may hold the decode ticks of its pictures and no more
    for name in ("denoise_busy", "others_busy", "tick_ms", "row_ms", "gap_p50_ms"):
        assert max(share[name] for share in devices.values()) > 0, name
    assert devices["pro"]["rows_per_tick"] in (0, 3)  # one job each
    assert devices["pro"]["padding_share"] == 0
    assert all(share["rows_per_tick"] <= 3 for share in devices.values())
    assert figures["policies"].keys() == {"0.5", "1.0"}
    for by_policy in figures["policies"].values():
        sent = {policy: [item["sent"] for item in report["classes"]] for policy, report in by_policy.items()}
        assert sent["step"] == sent["request"]
        assert all(item["good"] == item["sent"] for report in by_policy.values() for item in report["classes"])
    for title in ("saturated: pictures", "saturated: the device", "step beside request"):
        assert title in said.out
        assert f"## {title}" in page
