"""`steploom simulate` and `steploom costs` as a person meets them: tables, files, messages, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from steploom.cli import main
from steploom.exit_codes import ExitCode
from steploom_batcher.fake_worker import flat_costs
from steploom_batcher.types import Stage
from steploom_loadtest.cost_tables import read_table
from steploom_loadtest.report_model import SIMULATED, Report
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1.batcher_pb2_grpc import BatcherServicer, add_BatcherServicer_to_server
from steploom_protos.worker.v1 import worker_pb2


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("STEPLOOM_RUNTIME_DIR", "/proc/nonexistent")

    def invoke(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["steploom", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)

    return invoke


def test_a_load_is_simulated_and_its_report_written(run: Run, tmp_path: Path) -> None:
    done = run("simulate", "--rate", 40, "--seconds", 3, "--workers", 2, "--ticks", "--price", 2, "-o", tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert all(word in done.stdout for word in ("free", "pro", "in time", "goodput", "rows a tick", "cost"))
    report = Report.from_json((tmp_path / "report.json").read_bytes())
    assert report.origin.kind == SIMULATED
    assert report.origin.settings["workers"] == "2 of NVIDIA H100 80GB HBM3; one host"
    assert {tick.worker for tick in report.ticks} == {"w0", "w1"}
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert {item.arrival.rows for item in report.requests if item.arrival.tier == "free"} == {1}
    # its own CSV is a trace that can be simulated again
    again = run("simulate", "--trace", tmp_path / "requests.csv", "--workers", 2, "--rows", "free=3", "-q")
    assert (again.returncode, again.stdout) == (ExitCode.OK, "")


def test_a_sweep_tells_what_each_tier_bears_on_several_hosts(run: Run) -> None:
    done = run(
        *("simulate", "--sweep", "--costs", "two-cores", "--nodes", 2, "--spread", "least-loaded", "--seconds", 10),
        *("--steps", "2", "--deadline", "3", "--mix", "free=1"),
    )
    assert done.returncode == ExitCode.OK, done.stderr
    assert "free: 99 of 100 in time up to " in done.stdout
    assert "knee" in done.stdout
    assert "/s: free " in done.stderr


def test_a_quiet_sweep_says_nothing_but_where_its_files_are(run: Run, tmp_path: Path) -> None:
    few = ("simulate", "--sweep", "--costs", "two-cores", "--seconds", 5, "--steps", "2", "--mix", "free=1")
    done = run(*few, "--deadline", "3", "-q", "-o", tmp_path)
    assert (done.returncode, done.stderr.strip()) == (ExitCode.OK, "")
    assert len(done.stdout.splitlines()) == 3


def test_settings_of_the_batcher_count(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "steploom.toml"
    config.write_text("[batcher.tiers.free]\nmax_queued = 5000\nsteps = 3\n[batcher.tiers.pro]\nsteps = 35\n")
    arguments = ("simulate", "--rate", 300, "--seconds", 4, "--costs", "h100")
    assert "full: tier:free" in run(*arguments).stdout
    assert "full: tier:free" not in run(*arguments, "--config", config).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--rate: is missing"),
        (("--rate", 0), "--rate: is 0, must be above 0, at most 1e+06"),
        (("--rate", 1, "--seconds", "nan"), "--seconds: is nan, must be above 0"),
        (("--rate", 1, "--trace", "x.csv"), "--trace: goes neither with --rate nor with --sweep"),
        (("--trace", "nowhere.csv"), "--trace: nowhere.csv cannot be read: No such file"),
        (("--rate", 1, "--nodes", 2, "--ticks"), "--ticks: is for one run on one host"),
        (
            ("--rate", 1, "--costs", "b200"),
            "--costs: no cost table b200: No such file or directory; those that are here:",
        ),
        (
            ("--rate", 1, "--mix", "gold=1", "--steps", "3", "--deadline", "3"),
            "tier 'gold' is not in the configuration",
        ),
        (("--rate", 1, "--rows", "free=4"), "--rows: is '4', must be a whole number from 1 to 3"),
        (("--rate", 1, "--rows", "gold=1"), "--rows: tier 'gold' is not in the mix"),
        (
            ("--rate", 1_000_000, "--seconds", 60),
            "--rate: 1e+06/s for 60 s are 60000000 requests, must be at most 5000000",
        ),
        (("--rate", 0.001, "--seconds", 0.01), "no request falls into 0.01 s"),
    ],
)
def test_what_is_wrong_is_told_with_option_and_bound(run: Run, arguments: tuple[object, ...], message: str) -> None:
    done = run("simulate", *arguments)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert done.stdout == ""


def test_too_little_in_time_is_a_failure(run: Run) -> None:
    done = run("simulate", "--rate", 200, "--seconds", 2, "--deadline", "1", "--require-in-time", 0.9)
    assert done.returncode == ExitCode.FAILED
    assert "--require-in-time asks for 90.00%" in done.stderr
    hopeless = run("simulate", "--rate", 20, "--seconds", 2, "--deadline", "0.001")
    assert hopeless.returncode == ExitCode.FAILED
    assert "no request got a picture: {'deadline cannot be met'" in hopeless.stderr


COSTS = flat_costs(0.001, 0.0005, 0.001)


class Told(BatcherServicer):
    """A batcher that tells of one worker, and that another is down."""

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusResponse:  # noqa: N802
        costs = [
            worker_pb2.BucketCost(stage=stage, bucket=bucket, seconds=seconds)  # type: ignore[arg-type]
            for stage, table in COSTS.items()
            for bucket, seconds in table.items()
        ]
        up = pb.StatusResponse.WorkerStatus(address="unix:/w0", is_up=True, slots=16, engine="fake", costs=costs)
        return pb.StatusResponse(workers=[up, pb.StatusResponse.WorkerStatus(address="unix:/w1")])


@pytest.fixture
def batcher(tmp_path: Path) -> Iterator[str]:
    """The address of a batcher that tells."""
    server = grpc.server(ThreadPoolExecutor(1))
    add_BatcherServicer_to_server(Told(), server)  # type: ignore[abstract]
    address = f"unix:{tmp_path}/b.sock"
    server.add_insecure_port(address)
    server.start()
    yield address
    server.stop(None).wait()


def test_costs_of_running_workers_are_a_table_to_simulate_with(run: Run, batcher: str, tmp_path: Path) -> None:
    printed = run("costs", "--batcher", batcher)
    assert printed.returncode == ExitCode.OK, printed.stderr
    assert json.loads(printed.stdout)["devices"][0]["slots"] == 16
    path = tmp_path / "costs.json"
    assert run("costs", "--batcher", batcher, "-o", path).stdout == f"{path}\n"
    (device,) = read_table(str(path)).devices
    assert {stage: dict(table) for stage, table in device.seconds.items()} == COSTS
    assert device.seconds[Stage.DENOISE].keys() == COSTS[Stage.DENOISE].keys()
    assert run("simulate", "--rate", 5, "--seconds", 5, "--costs", path, "-q").returncode == ExitCode.OK


def test_costs_of_nobody(run: Run, tmp_path: Path) -> None:
    done = run("costs", "--batcher", f"unix:{tmp_path}/none.sock")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "no batcher answers at unix:" in done.stderr
