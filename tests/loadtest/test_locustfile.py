"""Locust's users and shapes against a live service, in a process of its own: gevent changes the one that imports it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import authority, needs_openssl, signed

from steploom.testing import FakeGateway, serving
from steploom_common import errors
from steploom_common.tls import server_credentials
from steploom_common.tls_files import TlsFiles
from steploom_loadtest.stack import Stack, running

FOLDER = Path(__file__).parents[2] / "loadtest"
# a short warning of Python about gevent's import order is no failure of ours
COMMAND = (sys.executable, "-W", "ignore", "-m", "locust", "--headless", "--only-summary")
_SPIKE = ("--spike-base", "1", "--spike-users", "3", "--spike-at", "1")
TOKEN = "steploom_web_0123456789abcdef"
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


def files(*names: str) -> tuple[str, str]:
    """The option that names them."""
    return "-f", ",".join(str(FOLDER / name) for name in names)


def to_its_end(*arguments: str) -> tuple[int, str]:
    """Runs until it ends by itself; exit code and output."""
    done = subprocess.run((*COMMAND, *arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout + done.stderr


def locust(stack: Stack, users: int, is_enough: Callable[[], bool], *arguments: str) -> tuple[int, str]:
    """Runs until it is enough, then ends in order; exit code and output."""
    options = ("--host", stack.gateway, "-u", str(users), "-r", str(users), *files("locustfile.py"), *arguments)
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


def test_mixed_users_ask_for_what_the_mix_says(tmp_path: Path) -> None:
    with serving(FakeGateway()) as gateway:
        options = ("--host", gateway.address, "-u", "4", "-r", "4", "-t", "3s", "--picture-side", "32")
        mix = ("--mix", "free:2=1,free:5=1", "--image-model", "avatar", "--html", str(tmp_path / "run.html"))
        code, output = to_its_end(*files("mixed_users.py"), *options, *mix, "--csv", str(tmp_path / "run"))
    assert code == 0, output
    assert {(item.tier, item.steps, item.model) for item in gateway.requests} <= {
        ("free", 2, "avatar"),
        ("free", 5, "avatar"),
    }
    assert gateway.requests
    assert "<html" in (tmp_path / "run.html").read_text()
    with (tmp_path / "run_stats.csv").open(newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert set(rows) - {"Aggregated"} <= {"Edit free 2 steps", "Edit free 5 steps"}
    assert rows["Aggregated"]["Failure Count"] == "0"


@needs_openssl
def test_users_show_certificates_and_a_token(tmp_path: Path) -> None:
    ca = authority(tmp_path)
    server, own = signed(tmp_path, "server", ca), signed(tmp_path, "client", ca)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    names = TlsFiles(("cert", server.cert), ("key", server.key), ("client_ca", ca.cert))
    with serving(FakeGateway(), server_credentials(names)) as gateway:
        options = ("--host", gateway.address, "-u", "2", "-r", "2", "-t", "3s", "--token-file", str(tmp_path / "token"))
        certificates = ("--grpc-ca", ca.cert, "--grpc-cert", own.cert, "--grpc-key", own.key)
        code, output = to_its_end(*files("locustfile.py"), *options, *certificates)
    assert code == 0, output
    assert set(gateway.authorizations) == {f"Bearer {TOKEN}"}
    assert TOKEN not in output


def test_failures_are_told_with_their_cause() -> None:
    with serving(FakeGateway(errors.QueueFull("256 wait", "tier:free", 1.0))) as gateway:
        options = ("--host", gateway.address, "-u", "1", "-r", "1", "-t", "2s")
        code, output = to_its_end(*files("locustfile.py"), *options, "FreeUser")
    assert code == 1
    assert "RESOURCE_EXHAUSTED: full: tier:free" in output


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("locustfile.py", ("--grpc-ca", "none.pem"), "--grpc-ca: none.pem cannot be read: No such file"),
        ("locustfile.py", ("--grpc-cert", "a.pem"), "--grpc-key: is empty, must be set where cert is"),
        ("locustfile.py", ("--token-file", "none"), "--token-file: none cannot be read"),
        ("mixed_users.py", ("--mix", "free=50%,pro=60%"), "add up to 110, must make 100"),
    ],
)
def test_a_wrong_option_ends_it_before_any_user_starts(file: str, options: tuple[str, ...], words: str) -> None:
    code, output = to_its_end(*files(file), "--host", "127.0.0.1:1", "-u", "1", "-t", "60s", *options)
    assert code == 2
    assert words in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ("spike", (*_SPIKE, "--spike-seconds", "600", "--shape-seconds", "600"), "to 3 users"),
        ("diurnal", ("--day-low", "1", "--day-high", "4", "--day-seconds", "6", "--days", "100"), "to 4 users"),
        ("ramp", ("--ramp-users", "1", "--ramp-seconds", "1", "--ramp-factor", "1e9"), "to [2-9] users"),
    ],
)
def test_shapes_say_how_many_users_there_are(shape: str, options: tuple[str, ...], words: str) -> None:
    """Until that is seen: a machine that stands still may skip a moment of a shape, which then comes again or stays."""
    with serving(FakeGateway()) as gateway:
        names = files("locustfile.py", f"shapes/{shape}.py")
        process = subprocess.Popen(
            (*COMMAND, *names, "--host", gateway.address, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        killer = threading.Timer(PATIENCE_S, process.kill)
        killer.start()
        try:
            seen = any(re.search(f"Shape test updating {words}", line) for line in process.stdout)
        finally:
            killer.cancel()
            process.kill()
            process.communicate()
    assert seen


def test_a_ramp_ends_by_itself_and_tells_what_it_has_found() -> None:
    with serving(FakeGateway()) as gateway:
        options = ("--ramp-users", "1", "--ramp-seconds", "1", "--ramp-most", "2")
        names = files("locustfile.py", "shapes/ramp.py")
        code, output = to_its_end(*names, "--host", gateway.address, *options)
    assert code == 0, output
    assert re.search("knee: [0-9]+ users|no knee up to 2 users", output)
