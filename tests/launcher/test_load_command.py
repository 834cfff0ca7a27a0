"""`steploom load` as a person meets it: files, messages, exit codes, Ctrl-C."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import authority, needs_openssl, signed

from steploom.cli import main
from steploom.exit_codes import ExitCode
from steploom.testing import FakeGateway, serving
from steploom_common import errors
from steploom_common.tls import server_credentials
from steploom_common.tls_files import TlsFiles
from steploom_loadtest.report import OK
from steploom_loadtest.report_model import Report

TOKEN = "steploom_web_0123456789abcdef"
PATIENCE_S = 120.0
FILES = ("report.json", "requests.csv", "report.html")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as running:
        yield running


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command below `steploom load` in this process; its exit code and what it said."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("STEPLOOM_RUNTIME_DIR", "/proc/nonexistent")
    monkeypatch.chdir(tmp_path)

    def invoke(command: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["steploom", "load", command, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return invoke


def report(folder: Path) -> Report:
    return Report.from_json((folder / "report.json").read_text())


def test_a_run_sends_what_is_asked_for_and_writes_its_report(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    code, said = run(
        "run", "--address", gateway.address, "--rate", 40, "--seconds", 1, "--mix", "free=75%,pro=25%", "--steps",
        "free=3,pro=7", "--adapter", "free=few-step", "--size", 64, "--model", "fake", "--instruction", "smile",
        "--price", 3, "--devices", 2, "--seed", 5, "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == ExitCode.OK, said
    for word in ("free", "pro", "p99.9", "offered", "generator late", "for 1,000 pictures"):
        assert word in said, word
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert len(gateway.requests) == 40
    assert sorted((item.tier, item.steps, item.adapter) for item in gateway.requests) == (
        [("free", 3, "few-step")] * 30 + [("pro", 7, "")] * 10
    )
    assert {(item.model, item.instruction) for item in gateway.requests} == {("fake", "smile")}
    written = report(tmp_path / "out")
    assert [record.status for record in written.requests] == [OK] * 40
    assert (written.offered_rate, written.duration_s, written.price, written.devices) == (40.0, 1.0, 3.0, 2)
    assert written.origin.settings["mix"] == "free:3x64=3,pro:7x64=1"
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40


def test_a_seed_gives_the_same_requests_and_a_report_is_a_trace(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    options = ("--address", gateway.address, "--quiet", "--seconds", 1)
    for out in ("a", "b"):
        assert run("run", *options, "--rate", 20, "--arrivals", "bursty", "--cv", 2, "--seed", 9, "-o", out)[0] == 0
    assert [item.arrival for item in report(tmp_path / "a").requests] == [
        item.arrival for item in report(tmp_path / "b").requests
    ]
    code, said = run("run", *options, "--trace", "a/requests.csv", "--speed", 2, "-o", "c")
    assert code == ExitCode.OK
    assert said.splitlines() == [f"c/{name}" for name in FILES]
    again = [item.arrival.at for item in report(tmp_path / "c").requests]
    assert again == pytest.approx([item.arrival.at / 2 for item in report(tmp_path / "a").requests], abs=1e-5)


def test_some_requests_are_cancelled_by_plan(run: Run, tmp_path: Path) -> None:
    with serving(FakeGateway(step_s=1.0)) as slow:
        options = ("--rate", 10, "--seconds", 1, "--cancel", "free=1", "--cancel-within", 0.05, "--mix", "free=1")
        code, _ = run("run", "--address", slow.address, *options, "-o", "out")
    assert code == ExitCode.FAILED  # nobody waited for a picture
    assert {record.status for record in report(tmp_path / "out").requests} == {"CANCELLED"}


def test_refusals_are_counted_by_cause_and_a_run_without_a_picture_fails(run: Run, tmp_path: Path) -> None:
    with serving(FakeGateway(errors.QueueFull("256 wait", "tier:free", 1.0))) as full:
        code, said = run("run", "--address", full.address, "--rate", 10, "--seconds", 1, "-o", "out")
    assert code == ExitCode.FAILED
    assert "no request got a picture: {'full: tier:free': 10}" in said
    assert all((tmp_path / "out" / name).exists() for name in FILES)


def test_a_share_in_time_can_be_required(run: Run) -> None:
    with serving(FakeGateway(step_s=0.02)) as slow:
        options = ("--address", slow.address, "--seconds", 1, "--rate", 10, "--mix", "free:2=1,pro:50=1", "-q")
        deadlines = ("--deadline", "free=60,pro=0.3")
        code, said = run("run", *options, *deadlines, "--require-in-time", 0.5)
        assert code == ExitCode.FAILED
        assert "in time: pro 0.00%; --require-in-time asks for 50.00%" in said
        assert run("run", *options, "--deadline", 60, "--require-in-time", 0.5)[0] == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--rate: is missing"),
        (("--rate", 0), "--rate: is 0, must be above 0, at most 100000"),
        (("--rate", "nan"), "--rate: is nan, must be above 0"),
        (("--rate", 1, "--seconds", -2), "--seconds: is -2, must be above 0"),
        (("--rate", 90_000, "--seconds", 90_000), "--rate: 90000/s for 90000 s are more than 2000000 requests"),
        (("--rate", 1, "--mix", "free=50%,pro=60%"), "add up to 110, must make 100"),
        (("--rate", 1, "--mix", "gold=1"), "tier 'gold' is not in the configuration"),
        (("--rate", 1, "--deadline", "pro=soon"), "--deadline: is 'soon', must be a number"),
        (("--rate", 1, "--trace", "a.csv"), "--rate: is of no use with --trace"),
        (("--trace", "none.csv"), "--trace: none.csv cannot be read: No such file"),
        (("--trace", "wrong.csv"), "--trace: wrong.csv line 3: steps: is 'x', must be a whole number from 1 to 1000"),
        (("--trace", "late.csv", "--seconds", 1), "no request falls into 1 s"),
        (("--rate", 1, "--picture", "none.png"), "--picture: none.png cannot be read: No such file"),
        (("--rate", 1, "--config", "none.toml"), "none.toml"),
        (("--rate", 1, "--token", "two words"), "the token is empty, or has blanks"),
        (("--rate", 1, "--ca", "none.pem"), "--tls-ca: none.pem cannot be read"),
        (("--rate", 1, "--arrivals", "odd"), "odd"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    run: Run, gateway: FakeGateway, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    (tmp_path / "wrong.csv").write_text("at_s,tier,steps\n0,free,3\n1,free,x\n")
    (tmp_path / "late.csv").write_text("at_s,tier\n5,free\n")
    code, said = run("run", "--address", gateway.address, *arguments)
    assert code == ExitCode.USAGE
    assert words in " ".join(said.split())
    assert "Traceback" not in said
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.NotFound("model", "x", ["avatar"]), "model 'x' does not exist; there is: avatar"),
        (errors.Unauthenticated("no token"), "--token-file"),
        (errors.PermissionDenied("the token is not for pro"), "not for pro"),
        (errors.InvalidRequest(errors.Violation("steps", "is 900")), "steps: is 900"),
    ],
)
def test_requests_that_can_never_be_right_end_the_run(
    run: Run, tmp_path: Path, error: errors.SteploomError, words: str
) -> None:
    with serving(FakeGateway(error)) as strict:
        code, said = run("run", "--address", strict.address, "--rate", 5, "--seconds", 3600, "-o", "out")
        assert code == ExitCode.USAGE
        assert words in said
        assert len(strict.requests) < 100
    assert not (tmp_path / "out").exists()


def test_nobody_at_the_address_is_told(run: Run) -> None:
    for command, options in (("run", ("--rate", 1)), ("sweep", ())):
        code, said = run(command, "--address", "127.0.0.1:1", *options)
        assert code == ExitCode.UNAVAILABLE
        assert "nothing answers at 127.0.0.1:1" in said


def test_a_report_that_cannot_be_written_is_told(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, said = run("run", "--address", gateway.address, "--rate", 10, "--seconds", 1, "-o", "taken/out")
    assert code == ExitCode.USAGE
    assert "--out: cannot write" in said


@needs_openssl
def test_certificates_and_a_token_go_with_every_request(run: Run, tmp_path: Path) -> None:
    ca = authority(tmp_path)
    server, own = signed(tmp_path, "server", ca), signed(tmp_path, "client", ca)
    files = TlsFiles(("cert", server.cert), ("key", server.key), ("client_ca", ca.cert))
    (tmp_path / "token").write_text(TOKEN)
    with serving(FakeGateway(), server_credentials(files)) as secured:
        options = ("--address", secured.address, "--rate", 10, "--seconds", 1, "-o", "out")
        certificates = ("--ca", ca.cert, "--cert", own.cert, "--key", own.key)
        for token in (("--token", TOKEN), ("--token-file", tmp_path / "token")):
            code, said = run("run", *options, *certificates, *token)
            assert code == ExitCode.OK, said
            assert TOKEN not in said
        assert secured.authorizations == [f"Bearer {TOKEN}"] * 20
        assert TOKEN not in "".join((tmp_path / "out" / name).read_text() for name in FILES)
        assert run("run", *options)[0] == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(("command", "number"), [("run", signal.SIGINT), ("sweep", signal.SIGTERM)])
def test_a_signal_ends_it_with_a_report_of_what_there_was(tmp_path: Path, command: str, number: signal.Signals) -> None:
    with serving(FakeGateway(step_s=0.01)) as gateway:
        options = ("--rate", "20") if command == "run" else ("--start", "20", "--max-rate", "20", "--precision", "0.1")
        arguments = (*options, "--seconds", "100", "--mix", "free=1", "-o", str(tmp_path / "out"))
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", "steploom", "load", command, "--address", gateway.address, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"STEPLOOM_RUNTIME_DIR": "/proc/nonexistent"},
        )
        deadline = time.monotonic() + PATIENCE_S
        try:
            while len(gateway.requests) < 20:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            said, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert "interrupted; the report has what there was until then" in said
    assert "Traceback" not in said
    written = report(tmp_path / "out")
    assert written.is_interrupted
    assert sum(record.status == OK for record in written.requests) >= 10
    assert len(written.requests) < 2000
    assert all((tmp_path / "out" / name).exists() for name in FILES)


def test_a_sweep_tries_rates_and_tells_limits(run: Run, tmp_path: Path) -> None:
    """Each request takes so long, however many there are: every rate holds, and so the highest is the answer."""
    with serving(FakeGateway(step_s=0.001)) as gateway:
        options = ("--seconds", 0.5, "--max-seconds", 0.5, "--start", 10, "--max-rate", 40, "--deadline", 60)
        code, said = run("sweep", "--address", gateway.address, *options, "-o", "out")
    assert code == ExitCode.OK, said
    assert "free: 99 of 100 in time at every rate that was tried, up to 40.00/s" in said
    written = report(tmp_path / "out")
    assert written.sweep is not None
    assert [point.rate for point in written.sweep.points][:1] == [10.0]
    assert max(point.rate for point in written.sweep.points) == 40.0
    assert written.offered_rate == 40.0
    assert "latency against load" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", 0), "--start: is 0, must be above 0"),
        (("--seconds", 30, "--max-seconds", 10), "--max-seconds: is 10, must be at least --seconds, 30"),
        (("--max-rate", 100_000, "--seconds", 100), "--max-rate: that would be 10000000 requests in a run"),
        (("--mix", "free"), "--mix: 'free' of 'free' must be TIER=WEIGHT"),
    ],
)
def test_a_wrong_sweep_is_told(run: Run, gateway: FakeGateway, arguments: tuple[object, ...], words: str) -> None:
    code, said = run("sweep", "--address", gateway.address, *arguments)
    assert (code, gateway.requests) == (ExitCode.USAGE, [])
    assert words in said


def test_a_report_can_be_shown_and_written_again(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    assert run("run", "--address", gateway.address, "--rate", 10, "--seconds", 1, "-o", "a")[0] == ExitCode.OK
    code, said = run("show", "a/report.json", "-o", "b")
    assert code == ExitCode.OK
    assert "achieved" in said
    for name in FILES:
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "a" / name).read_text()
    (tmp_path / "a" / "report.json").write_text('{"format": "x"}')
    code, said = run("show", "a/report.json")
    assert (code, "format: is none of ours" in said) == (ExitCode.USAGE, True)
    assert run("show", "none.json")[0] == ExitCode.USAGE
