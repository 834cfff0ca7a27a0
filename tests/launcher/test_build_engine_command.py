"""`steploom build-engine` as a person meets it: what it refuses, and what it says of what it does."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from steploom import build_engine
from steploom.build_engine import BuildOptions, PhaseBar, parse_buckets, run_build_engine, target_capability
from steploom.cli import main
from steploom.exit_codes import CommandError, ExitCode
from steploom_engine_worker.export import engines
from steploom_engine_worker.tensorrt.device import NoCuda
from steploom_engine_worker.tensorrt.flavour import Flavour, NoTensorRT
from steploom_engine_worker.tensorrt.plan_store import open_store
from steploom_engine_worker.tiny_model import write_tiny_model

RTX = Flavour("tensorrt_rtx", "1.7.1", SimpleNamespace(ComputeCapability=SimpleNamespace(SM89=1, SM120=2)))
BIG = Flavour("tensorrt", "10.9.0", None)


def options(**changes: Any) -> BuildOptions:
    values: dict[str, Any] = {
        "model": None,
        "buckets": "1",
        "encode_buckets": "1",
        "decode_buckets": "1",
        "precision": "fp16",
        "out": None,
        "compute_capability": "8.9",
        "only": [],
        "one_engine": False,
        "optimization_level": 3,
        "check": True,
    }
    return BuildOptions(**{**values, **changes})


def refusal(**changes: Any) -> str:
    with pytest.raises(CommandError) as caught:
        run_build_engine(options(**changes))
    assert caught.value.code is ExitCode.USAGE
    return f"{caught.value} | {caught.value.hint}"


@pytest.mark.parametrize("text", ["", "0,1", "3,1", "1,1", "1,x", "1,,2", "-1", "1.5", "5000", "1," + "9" * 10])
def test_wrong_bucket_lists_are_refused(text: str) -> None:
    assert f"--encode-buckets is {text!r}, must be a rising list of numbers" in refusal(encode_buckets=text)


def test_bucket_lists_may_have_spaces() -> None:
    assert parse_buckets("--buckets", "1, 3,12") == (1, 3, 12)


@pytest.mark.parametrize("text", ["9", "sm_90", "8.9.1", "8.x", ""])
def test_a_wrong_compute_capability_is_refused(text: str) -> None:
    assert f"--compute-capability is {text!r}, must be two numbers" in refusal(compute_capability=text)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert refusal(model=tmp_path) == f"{tmp_path / 'model_index.json'}: is missing | "
    assert refusal(model=tmp_path / "none") == f"{tmp_path / 'none'}: is not a directory | "


def test_without_tensorrt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def find() -> Flavour:
        raise NoTensorRT("no TensorRT can be used: install one")

    monkeypatch.setattr(build_engine, "find_flavour", find)
    assert refusal(out=tmp_path / "engines") == "no TensorRT can be used: install one | "
    assert not (tmp_path / "engines").exists()


def test_without_the_exporters_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_engine, "find_flavour", lambda: RTX)
    monkeypatch.setattr(build_engine, "_EXPORT_PACKAGES", ("onnx", "no_such_package"))
    assert refusal() == 'networks cannot be exported: no_such_package is not installed | pip install "steploom[export]"'


def no_gpu() -> tuple[int, int]:
    raise NoCuda("there is no GPU")


def h100() -> tuple[int, int]:
    return 9, 0


def test_the_gpu_is_the_one_here_or_the_one_that_was_named() -> None:
    assert target_capability(RTX, (12, 0), no_gpu) == (12, 0)
    assert target_capability(RTX, None, lambda: (8, 9)) == (8, 9)
    assert target_capability(BIG, None, h100) == (9, 0)
    assert target_capability(BIG, (9, 0), h100) == (9, 0)


@pytest.mark.parametrize(
    ("flavour", "given", "here", "words"),
    [
        (RTX, None, no_gpu, "which GPU it is to be for is not known: there is no GPU"),
        (RTX, None, h100, r"tensorrt_rtx 1.7.1 does not support compute capability 9.0, only 8.9, 12.0"),
        (RTX, (9, 0), no_gpu, r"does not support compute capability 9.0"),
        (BIG, (9, 0), no_gpu, "tensorrt 10.9.0 builds on a GPU alone: there is no GPU"),
        (
            BIG,
            (8, 9),
            h100,
            r"--compute-capability is 8.9, but tensorrt 10.9.0 builds for the GPU at hand, whose is 9.0",
        ),
    ],
)
def test_a_gpu_that_cannot_be_is_refused(flavour: Flavour, given: Any, here: Any, words: str) -> None:
    with pytest.raises(CommandError, match=words) as caught:
        target_capability(flavour, given, here)
    assert caught.value.code is ExitCode.USAGE


def test_engines_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds engines with tensorrt_rtx, which is not installed here")
    compiled = iter([True, False])  # Triton only interprets here
    monkeypatch.setattr(engines, "write_companions", lambda *_: next(compiled))
    model = write_tiny_model(tmp_path / "tiny")
    wanted = options(model=model, encode_buckets="1,2", only=["text_encoder"])

    def said() -> str:
        text = io.StringIO()
        run_build_engine(wanted, Console(file=text, width=200))
        return text.getvalue()

    first = said()
    assert "for compute capability 8.9, fp16" in first
    assert "nodes folded to" in first
    assert "compiled  the Triton kernels" in first
    assert "of what torch gives" in first
    assert first.count("built ") == 2
    assert f"in {model / 'engines'} after" in first
    assert [plan.buckets for plan in open_store(model / "engines").plans] == [(1,), (2,)]
    again = said()
    assert again.count("there ") == 2
    assert "built " not in again
    assert "compiled" not in again


def test_the_command_line_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["steploom", "build-engine", str(tmp_path), "--compute-capability", "8.9"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ExitCode.USAGE
    assert "model_index.json: is missing" in capsys.readouterr().err


def test_a_build_that_is_interrupted_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_engine, "find_flavour", lambda: RTX)
    monkeypatch.setattr(engines, "build_engines", interrupt)
    with pytest.raises(CommandError, match="interrupted") as caught:
        run_build_engine(options(model=write_tiny_model(tmp_path / "tiny")))
    assert caught.value.code is ExitCode.INTERRUPTED
    assert "goes on where it was" in caught.value.hint


def test_a_bar_counts_the_outermost_phase_and_names_the_innermost() -> None:
    progress = Progress(disable=True)
    bar = PhaseBar(progress, "unet 3")
    bar.start("Building engine", "", 4)
    bar.start("Timing graph nodes", "Building engine", 100)
    bar.advance("Timing graph nodes")
    bar.advance("Building engine")
    (task,) = progress.tasks
    assert (task.completed, task.total, task.description) == (1, 4, "unet 3: Timing graph nodes")
    bar.finish("Timing graph nodes")
    assert task.description == "unet 3: Building engine"
    bar.finish("Building engine")
    assert progress.tasks == []
