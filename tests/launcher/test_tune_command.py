"""`steploom tune` as a person meets it: files that can be used, what it says where nothing is better, errors."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steploom import tune
from steploom.cli import main
from steploom.config import read_config
from steploom.exit_codes import ExitCode
from steploom_batcher.config import SchedulerConfig
from steploom_loadtest.cost_tables import CostTable, DeviceCosts, linear
from steploom_loadtest.tuner import Score

# a tick of many rows costs little more than one of few: whoever takes few rows a tick is slow
WIDE = linear((0.010, 0.001), (0.020, 0.0005), (0.010, 0.001), rows=(1, 3, 6, 12, 24))
NARROW = """[batcher]
max_rows = 3
[batcher.tiers.free]
steps = 3
deadline_s = 1.0
[batcher.tiers.pro]
steps = 12
deadline_s = 4.0
[gateway]
listen = "127.0.0.1:7001"
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A short search on a wide device, with settings that leave it narrow."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "costs.json").write_text(CostTable("a test", [DeviceCosts("wide", 24, WIDE)]).to_json())
    (tmp_path / "narrow.toml").write_text(NARROW)

    def invoke(*arguments: object) -> Done:
        always = ("--costs", tmp_path / "costs.json", "-o", tmp_path / "out", "--rate", 30, "--seconds", 4)
        monkeypatch.setattr(sys, "argv", ["steploom", "tune", *map(str, (*always, *arguments))])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)

    return invoke


def test_better_settings_are_written_as_a_file_that_serves(run: Run, tmp_path: Path) -> None:
    arguments = ("--no-live", "--trials", 10, "--mix", "free=3,pro=1", "--top", 2)
    done = run(*arguments, "--config", tmp_path / "narrow.toml")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "candidate 1" in done.stdout
    assert "pictures in time, p99" in done.stdout
    path = tmp_path / "out" / "steploom.toml"
    found = read_config(path)
    assert found.batcher.max_rows > 3
    assert found.gateway.listen == "127.0.0.1:7001"  # what was not searched stays
    text = path.read_text()
    assert f"batcher.max_rows: {found.batcher.max_rows}, was 3" in text
    assert "in the simulator, on traces that the search had not seen" in text
    told = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert len(told["tried"]) == 10
    assert (tmp_path / "out" / "tune.html").read_text().count("<circle") >= 10
    # from there, the same search finds nothing that is as much better again
    again = run(*arguments, "--config", path, "--quiet")
    assert again.returncode == ExitCode.OK


def test_where_nothing_is_better_no_settings_are_written(run: Run, tmp_path: Path) -> None:
    done = run("--no-live", "--trials", 3, "--rate", 2, "--top", 1)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "nothing that was tried is better than the settings as they are" in done.stdout
    assert not (tmp_path / "out" / "steploom.toml").exists()
    assert (tmp_path / "out" / "tune.html").exists()


def test_what_is_confirmed_live_decides(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services that are started in truth are replaced: what they give is as a test says."""
    served: list[SchedulerConfig] = []

    @contextmanager
    def services(_: Any, scheduler: SchedulerConfig, __: Path) -> Iterator[None]:
        served.append(scheduler)
        yield

    def gives(place: int) -> Score:
        return Score(20.0 if place == 2 else 10.0, 0.5, {"free": 0.9, "pro": 0.9})

    monkeypatch.setattr(tune, "_services", services)
    monkeypatch.setattr(tune, "_live_score", lambda *_: gives(len(served) - 1))
    arguments = ("--trials", 10, "--mix", "free=3,pro=1", "--top", 2, "--config", tmp_path / "narrow.toml")
    done = run(*arguments)
    assert done.returncode == ExitCode.OK, done.stderr
    assert served[0].max_rows == 3
    assert len(served) == 3
    assert "candidate 2: +100.0% pictures in time" in done.stdout
    path = tmp_path / "out" / "steploom.toml"
    assert read_config(path).batcher.max_rows == served[2].max_rows
    assert ", live." in path.read_text()


def test_without_optuna_it_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ModuleNotFoundError("no", name="optuna")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run("--no-live")
    assert done.returncode == ExitCode.USAGE
    assert "searching settings needs Optuna, which is not installed" in done.stderr
    assert "pip install 'steploom[tune]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", -1), "--rate: is -1, must be above 0, at most 1e+06"),
        (("--nodes", 2), "--nodes: services are started on this host alone"),
        (("--no-live", "--mix", "gold=1"), "tier 'gold' is not in the configuration"),
        (("--no-live", "--rate", 0.001, "--seconds", 0.01), "no request falls into 0.01 s"),
        (("--no-live", "--costs", "none.json"), "--costs: no cost table none.json"),
    ],
)
def test_what_is_wrong_is_told_before_any_search(run: Run, arguments: tuple[object, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr


def test_workers_that_serve_elsewhere_are_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "remote.toml"
    path.write_text('[batcher]\nworkers = ["10.0.0.7:9000"]\n')
    done = run("--config", path)
    assert done.returncode == ExitCode.USAGE
    assert "batcher.workers: these workers serve elsewhere" in done.stderr
