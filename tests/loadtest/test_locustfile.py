"""The locustfile against a live service, in a process of its own: gevent changes the process that imports it."""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steploom_loadtest.stack import Stack, running

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
# a short warning of Python about gevent's import order is no failure of ours
COMMAND = (sys.executable, "-W", "ignore", "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as directory:
        worker = {"engine": "fake", "fake": {"denoise_s": 0.002, "denoise_row_s": 0.0002}}
        with running(Path(directory), {"worker": worker}) as stack:
            yield stack


def locust(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((*COMMAND, *arguments), capture_output=True, text=True, timeout=60, check=False)


def rows(prefix: Path) -> dict[str, dict[str, str]]:
    with Path(f"{prefix}_stats.csv").open() as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def test_free_and_pro_users_get_their_pictures(stack: Stack, tmp_path: Path) -> None:
    prefix = tmp_path / "run"
    end = locust("--host", stack.gateway, "-u", "8", "-r", "8", "-t", "4s", "--csv", str(prefix))
    assert end.returncode == 0, end.stderr
    stats = rows(prefix)
    free, pro = stats["Edit free 3 steps"], stats["Edit pro 35 steps"]
    assert int(free["Request Count"]) > 10
    assert int(pro["Request Count"]) >= 1
    assert int(free["Failure Count"]) == int(pro["Failure Count"]) == 0
    assert float(free["Median Response Time"]) >= 6  # ms: three steps of 2 ms
    assert float(pro["Median Response Time"]) >= 70
    assert float(free["Average Content Size"]) > 1000
    assert stack.status().finished >= int(free["Request Count"]) + int(pro["Request Count"])


def test_failures_are_counted_by_status(stack: Stack, tmp_path: Path) -> None:
    prefix = tmp_path / "run"
    end = locust("--host", stack.gateway, "-u", "2", "-r", "2", "-t", "2s", "--free-steps", "900", "--csv", str(prefix))
    assert end.returncode == 1
    with Path(f"{prefix}_failures.csv").open() as file:
        failures = list(csv.DictReader(file))
    assert {"INVALID_ARGUMENT"} == {row["Error"].split("'")[1] for row in failures if "free" in row["Name"]}
