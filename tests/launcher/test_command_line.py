"""The command line as a person meets it: messages, exit codes, files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from steploom.cli import main
from steploom.exit_codes import MEANINGS, ExitCode
from steploom.testing import FakeGateway, serving
from steploom_common import errors

STEPLOOM = (sys.executable, "-m", "steploom")


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "portrait.png"
    Image.new("RGB", (16, 16), (200, 150, 120)).save(path)
    return path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: it is the same `main`, without the start of an interpreter."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("STEPLOOM_RUNTIME_DIR", "/proc/nonexistent")

    def invoke(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["steploom", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)

    return invoke


@pytest.fixture
def edit(run: Run, gateway: FakeGateway) -> Run:
    """`steploom edit` against the fake gateway."""
    return lambda *arguments: run("edit", "--address", gateway.address, *arguments)


def test_edit_writes_the_picture_and_tells_the_timings(
    edit: Run, gateway: FakeGateway, picture: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.webp"
    done = edit(picture, "썬글라스를 씌워 줘", "-o", output, "--tier", "free", "--seed", "7", "--size-rule", "pad")
    assert done.returncode == ExitCode.OK, done.stderr
    with Image.open(output) as written:
        assert (written.format, written.size) == ("WEBP", (8, 8))
    assert done.stdout.splitlines()[0] == str(output)
    assert all(word in done.stdout for word in ("queue", "denoise", "rows per tick", "tier free", "seed 7"))
    request = gateway.requests[0]
    assert (request.instruction, request.tier, request.seed) == ("썬글라스를 씌워 줘", "free", 7)


@pytest.mark.parametrize(
    ("options", "asked", "words"),
    [
        (("--adapter", "student"), "student", "model fake, adapter student, tier pro"),
        (("--adapter", "none"), "none", "model fake, adapter none, tier pro"),
        ((), "", "model fake, adapter none, tier pro"),
    ],
)
def test_edit_asks_for_an_adapter_and_tells_which_drew(
    edit: Run, gateway: FakeGateway, picture: Path, tmp_path: Path, options: tuple[str, ...], asked: str, words: str
) -> None:
    done = edit(picture, "x", "-o", tmp_path / "out.png", *options)
    assert words in done.stdout
    assert gateway.requests[0].adapter == asked


def test_quiet_prints_the_path_alone(edit: Run, picture: Path, tmp_path: Path) -> None:
    done = edit(picture, "x", "-o", tmp_path / "out.png", "-q")
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'out.png'}\n", "")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("portrait.png", "is the input; it is not overwritten"),
        ("out.gif", "cannot write .gif; use one of .png, .jpg, .jpeg, .webp"),
        ("out", "a file without a suffix"),
        ("no/such/folder/out.png", "there is no folder"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(
    edit: Run, gateway: FakeGateway, picture: Path, tmp_path: Path, output: str, message: str
) -> None:
    before = picture.read_bytes()
    done = edit(picture, "x", "-o", tmp_path / output)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert gateway.requests == []
    assert picture.read_bytes() == before


def test_a_link_to_the_input_is_the_input(edit: Run, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").hardlink_to(picture)
    assert edit(picture, "x", "-o", tmp_path / "link.png").returncode == ExitCode.USAGE


def test_a_missing_input_is_named(edit: Run, tmp_path: Path) -> None:
    done = edit(tmp_path / "none.png", "x", "-o", tmp_path / "out.png")
    assert done.returncode == ExitCode.USAGE
    assert "none.png: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            errors.InvalidRequest(errors.Violation("steps", "is 500, must be at most 100")),
            ExitCode.USAGE,
            "steps: is 500",
        ),
        (errors.NotFound("tier", "gold", ["free", "pro"]), ExitCode.USAGE, "free, pro"),
        (errors.Exhausted("the queue is full", "tier:free", 1.5), ExitCode.EXHAUSTED, "try again in 1.5 s"),
        (errors.DeadlineMissed("cannot finish in time", 12.5), ExitCode.DEADLINE, "about 12.5 s"),
        (errors.Unavailable("no worker is up", 2.0), ExitCode.UNAVAILABLE, "no worker is up"),
        (errors.JobFailed("abc123"), ExitCode.FAILED, "abc123"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_failure_has_its_exit_code_and_leaves_no_file(
    edit: Run,
    gateway: FakeGateway,
    picture: Path,
    tmp_path: Path,
    error: errors.SteploomError,
    code: ExitCode,
    words: str,
) -> None:
    gateway.error = error
    done = edit(picture, "x", "-o", tmp_path / "out.png")
    assert done.returncode == code
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == [picture]


def test_nobody_there_says_how_to_start(run: Run, picture: Path, tmp_path: Path) -> None:
    done = run("edit", picture, "x", "-o", tmp_path / "out.png", "--address", "127.0.0.1:1")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "nothing answers at 127.0.0.1:1" in done.stderr
    assert "steploom up" in done.stderr


def test_ctrl_c_cancels_the_request_and_leaves_no_file(picture: Path, tmp_path: Path) -> None:
    with serving(FakeGateway(steps=1000, step_s=0.05)) as gateway:
        command = [*STEPLOOM, "edit", "-a", gateway.address, str(picture), "x", "-o", str(tmp_path / "out.png")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not gateway.requests and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert process.returncode == ExitCode.INTERRUPTED
        assert "Traceback" not in said
        assert gateway.cancelled.wait(60.0)
    assert list(tmp_path.iterdir()) == [picture]


def test_status_of_nothing_exits_with_3(run: Run) -> None:
    done = run("status", "--address", "127.0.0.1:1")
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "steploom up" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[batcher]\nticks_in_flight = 0\n", "batcher.ticks_in_flight: is 0, must be at least 1 and at most 8"),
        ("[batcher]\ntick_in_flight = 1\n", "did you mean 'ticks_in_flight'"),
        ("[up]\nworkers = 'two'\n", "up.workers: is 'two', must be a whole number"),
        ("[gateway\n", "is not TOML"),
        ("[scheduler]\n", "scheduler: unknown key"),
    ],
)
@pytest.mark.parametrize("command", ["config", "up"])
def test_a_wrong_configuration_names_key_value_and_bound(
    run: Run, tmp_path: Path, command: str, text: str, message: str
) -> None:
    file = tmp_path / "steploom.toml"
    file.write_text(text)
    done = run(command, "-c", file)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr


def test_the_printed_configuration_reads_back(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "steploom.toml"
    file.write_text("[batcher]\nmax_rows = 12\n[batcher.tiers.pro]\nsteps = 20\n")
    printed = run("config", "-c", file).stdout
    assert "max_rows = 12" in printed
    file.write_text(printed)
    assert run("config", "-c", file).stdout == printed
    assert run("config", "-c", file, "--check").returncode == ExitCode.OK


@pytest.mark.parametrize(
    "arguments",
    [["edit"], ["edit", "a.png"], ["up", "--workers", "two"], ["up", "--workers", "0"], ["dance"], ["edit", "-x"]],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).returncode == ExitCode.USAGE


def test_help_documents_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").stdout.split())
    for code, meaning in MEANINGS.items():
        assert f"{code.value} {meaning}" in text


def test_help_loads_neither_grpc_nor_torch() -> None:
    code = (
        "import sys\nfrom steploom import cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'grpc', 'torch', 'numpy', 'google.protobuf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
