"""The locustfile against a live service, in a process of its own: gevent changes the process that imports it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steploom_loadtest.stack import Stack, running

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"
# a short warning of Python about gevent's import order is no failure of ours
COMMAND = (sys.executable, "-W", "ignore", "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary")
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as directory:
        worker = {"engine": "fake", "fake": {"denoise_s": 0.002, "denoise_row_s": 0.0002}}
        with running(Path(directory), {"worker": worker}) as stack:
            yield stack


def count(stack: Stack, **labels: str) -> float:
    """Requests that have ended, as the gateway counts them."""
    return stack.metric(
        "steploom_gateway_requests_total" + "".join(f'(?=.*{key}="{value}")' for key, value in labels.items())
    )


def locust(stack: Stack, users: int, is_enough: Callable[[], bool], *arguments: str) -> tuple[int, str]:
    """Runs until it is enough, then ends in order; exit code and output."""
    options = ("--host", stack.gateway, "-u", str(users), "-r", str(users), *arguments)
    process = subprocess.Popen((*COMMAND, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not is_enough():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, output


def test_free_and_pro_users_get_their_pictures(stack: Stack, tmp_path: Path) -> None:
    def is_enough() -> bool:
        """Each user waits for its answer: locust knows all of its requests but one. One of the users is pro."""
        return count(stack, tier="free", status="OK") >= 10 + 8 and count(stack, tier="pro", status="OK") >= 1 + 1

    code, output = locust(stack, 8, is_enough, "--json-file", str(tmp_path / "run"))
    assert code == 0, output
    entries = {entry["name"]: entry for entry in json.loads((tmp_path / "run.json").read_text())}
    free, pro = entries["Edit free 3 steps"], entries["Edit pro 35 steps"]
    assert free["num_requests"] >= 10
    assert pro["num_requests"] >= 1
    assert free["num_failures"] == pro["num_failures"] == 0
    assert free["min_response_time"] >= 6  # ms: three steps of 2 ms
    assert pro["min_response_time"] >= 70
    assert free["total_content_length"] > 1000 * free["num_requests"]
    assert stack.status().finished >= free["num_requests"] + pro["num_requests"]


def test_failures_are_counted_by_status(stack: Stack) -> None:
    code, output = locust(stack, 2, lambda: count(stack, status="INVALID_ARGUMENT") >= 1 + 2, "--free-steps", "900")
    assert code == 1
    failures = [line for line in output.splitlines() if "RequestFailed" in line and "Edit free 900 steps" in line]
    assert len(failures) == 1
    assert "INVALID_ARGUMENT" in failures[0]
