"""`steploom token new`: what it prints, what it stores, what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steploom.cli import main
from steploom.exit_codes import ExitCode
from steploom_gateway.quota import Limits
from steploom_gateway.tokens import read_tokens, recognised

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`steploom token new` in this process; exit code and what it said."""
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steploom", "token", "new", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return invoke


def test_the_token_alone_is_printed_and_its_hash_stored(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    limits = ("--tier", "free", "--tier", "pro", "--rate", 5, "--burst", 9, "--concurrency", 4)
    code, out, err = run("web", *limits, "--file", file)
    assert code == ExitCode.OK, err
    tokens = read_tokens(str(file))
    token = out.removesuffix("\n")
    assert recognised(token, tokens) == "web"
    assert (tokens["web"].tiers, tokens["web"].limits, tokens["web"].admin) == (("free", "pro"), Limits(5, 9, 4), False)
    assert token.rpartition("_")[2] not in file.read_text() + err
    assert str(file) in err


def test_the_file_is_the_configurations(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "steploom.toml"
    config.write_text(f'[gateway]\ntokens = "{tmp_path}/tokens.toml"\n')  # need not be there yet
    assert run("ops", "--admin", "-c", config)[0] == ExitCode.OK
    assert read_tokens(f"{tmp_path}/tokens.toml")["ops"].admin


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a_b",), "'a_b' is no name of a token"),
        (("web", "--rate", "-1"), "--rate: is -1.0, must be at least 0"),
        (("web", "--concurrency", "9999999"), "--concurrency: is 9999999, must be at least 0 and at most 1000000"),
        (("web", "--file", "/nonexistent/tokens.toml"), "/nonexistent/tokens.toml cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "tokens.toml"
    code, out, err = run(*(("--file", str(file)) if "--file" not in arguments else ()), *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert words in err
    assert not file.exists()


def test_a_name_is_not_taken_twice(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    run("web", "--file", file)
    before = file.read_text()
    code, out, err = run("web", "--file", file)
    assert (code, out) == (ExitCode.USAGE, "")
    assert "has a token 'web' already" in err
    assert file.read_text() == before


def test_without_a_file_it_says_how_to_name_one(run: Run) -> None:
    code, _, err = run("web")
    assert code == ExitCode.USAGE
    assert "--file" in err
