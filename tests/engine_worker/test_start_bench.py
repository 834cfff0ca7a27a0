"""How soon engines draw: each in a process of its own, and what cannot start is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shadow_modules import shadows
from tensorrt_house import house_of

from steploom_engine_worker.bench.start import main


def test_an_engine_with_torch(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "starts.json"
    arguments = ["--model", str(tiny_model_dir), "--device", "cpu", "--dtype", "float32", "--buckets", "1", "3"]
    assert main([*arguments, "--engine", "torch", "--steps", "2", "--repeats", "1", "--json", str(report)]) == 0
    (run,) = json.loads(report.read_text())["torch"]
    assert 0 < run["import_s"] < run["ready_s"] < run["first_image_s"]
    assert 0 < run["resident_bytes"] <= run["peak_bytes"]
    assert "torch" in run["loaded"]
    said = capsys.readouterr().out
    assert "| torch | " in said
    assert "| engine | import, s | ready, s | first picture, s |" in said


def test_an_engine_without_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house_of(tiny_model_dir, tmp_path / "engines")
    for name, value in shadows(tmp_path / "modules").items():
        monkeypatch.setenv(name, value)
    report = tmp_path / "starts.json"
    arguments = ["--model", str(tiny_model_dir), "--engines", str(tmp_path / "engines"), "--json", str(report)]
    assert main([*arguments, "--engine", "tensorrt", "--steps", "2", "--repeats", "2"]) == 0
    runs = json.loads(report.read_text())["tensorrt"]
    assert len(runs) == 2
    assert all(run["loaded"] == [] and run["device_bytes"] > 0 for run in runs)
    assert "| none of torch |" in capsys.readouterr().out


def test_an_engine_that_does_not_start_is_told(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in shadows(tmp_path / "modules", num_devices=0).items():
        monkeypatch.setenv(name, value)
    assert main(["--model", str(tiny_model_dir), "--engine", "tensorrt", "--repeats", "1"]) == 1
    assert "error: tensorrt: " in capsys.readouterr().err
