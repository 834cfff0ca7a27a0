"""The measurement of plans, over a GPU that is not there: what is right is told from what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shadow_modules import shadows
from tensorrt_house import House, house_of

from steploom_engine_worker.export.references import main as write_references
from steploom_engine_worker.tensorrt.fake.trt import compute
from steploom_engine_worker.tensorrt.measure import _packed, key, main


@pytest.fixture
def house(adapted_dir: Path, tmp_path: Path) -> House:
    return house_of(adapted_dir, tmp_path / "engines")


@pytest.fixture(scope="module")
def references(adapted_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs as torch's networks take them, and the outputs of the fake's networks for them."""
    file = tmp_path_factory.mktemp("references") / "all.npz"
    names = [str(adapted_dir), str(file), "--rows", "3", "12", "--jobs", "1", "4", "--dtype", "float32"]
    assert write_references([*names, "--device", "cpu"]) == 0
    found = dict(np.load(file))
    made = {"unet": "prediction", "text_encoder": "context", "vae_encoder": "latents", "vae_decoder": "pictures"}
    for name, rows in {tuple(entry.split(".")[:2]) for entry in found}:
        given = {entry.split(".")[2]: found[entry] for entry in found if entry.startswith(f"{name}.{rows}.")}
        out = given.pop(made[name])
        assert np.isfinite(out).all()
        assert {value.shape[0] for value in given.values()} == {int(rows)} == {out.shape[0]}
        halves = {part: value.astype(np.float16) if part in ("sample", "context", "pictures", "latents") else value
                  for part, value in given.items()}  # fmt: skip
        found[key(name, int(rows), made[name])] = compute(name, halves, out.shape).astype(np.float32)
    np.savez(file, **found)
    return file


def measured(house: House, *arguments: str) -> int:
    return main([str(house.folder), "--repeats", "2", *arguments], house.finders)


def test_every_bucket_is_measured_and_held_against_the_references(
    house: House, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "figures.json"
    assert measured(house, "--references", str(references), "--json", str(report)) == 0
    figures = json.loads(report.read_text())
    assert [(item["network"], item["rows"]) for item in figures] == [
        ("text_encoder", 4), ("text_encoder", 1), ("vae_encoder", 4), ("vae_encoder", 1),
        ("unet", 12), ("unet", 6), ("unet", 3), ("unet", 1), ("vae_decoder", 4), ("vae_decoder", 1),
    ]  # fmt: skip
    with_reference = [item for item in figures if item["network"] != "unet" or item["rows"] in (3, 12)]
    assert all(0 <= item["error"] < 2e-3 for item in with_reference)
    assert [item["error"] for item in figures if item not in with_reference] == [None, None]
    assert all((item["tick_seconds"] is not None) == (item["network"] == "unet") for item in figures)
    said = capsys.readouterr().out
    assert "unet, 12 rows: " in said
    assert "whole tick" in said


def test_a_network_that_is_wrong_is_told(house: House, references: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(name: str, out: np.ndarray[tuple[int, ...], np.dtype[np.float16]]) -> None:
        out *= np.float16(1.05)

    house.trt.spoil = spoil
    assert measured(house, "--references", str(references), "--only", "vae_decoder") == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_graph_without_its_network_is_told(
    house: House, references: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it should have written is still what was there before."""
    launch = type(house.driver)._cuGraphLaunch
    monkeypatch.setattr(type(house.driver), "_cuGraphLaunch", lambda *_: None)
    assert measured(house, "--references", str(references), "--only", "vae_decoder", "--no-kernels") == 1
    assert "off by inf" in capsys.readouterr().out
    assert measured(house, "--only", "vae_decoder") == 1
    assert "not finite" in capsys.readouterr().err
    monkeypatch.setattr(type(house.driver), "_cuGraphLaunch", launch)


@pytest.mark.parametrize("is_shared", [False, True])
def test_some_networks_are_enough(
    adapted_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_shared: bool
) -> None:
    house = house_of(adapted_dir, tmp_path, "8.6.0", is_shared=is_shared)
    assert measured(house, "--only", "unet") == 0
    assert capsys.readouterr().out.count("no reference") == 4


def test_without_kernels_networks_are_measured_alone(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(house.folder / "kernels")
    assert measured(house, "--only", "unet") == 0
    said = capsys.readouterr()
    assert "holds no kernels; whole ticks are not measured" in said.err
    assert "whole tick" not in said.out


def test_a_folder_without_engines_is_refused(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")], house.finders) == 2
    assert "holds no engines" in capsys.readouterr().err


def test_it_needs_neither_model_nor_the_libraries_of_one(house: House, tmp_path: Path) -> None:
    environment = dict(shadows(tmp_path / "modules"))
    for name in ("safetensors", "tokenizers", "grpc", "tomllib"):
        (tmp_path / "modules" / name).mkdir()
        (tmp_path / "modules" / name / "__init__.py").write_text(f"raise ModuleNotFoundError({name!r})")
    command = [sys.executable, "-P", "-m", "steploom_engine_worker.tensorrt.measure", str(house.folder)]
    done = subprocess.run([*command, "--repeats", "1"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ms a row") == 10


def test_floats_of_16_bits_that_numpy_lacks_are_rounded_as_torch_does(house: House) -> None:
    values = torch.randn(1000).numpy() * np.float32(100.0)

    class Like:
        dtype, shape = "bfloat16", (1000,)

    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(_packed(values, Like()), expected)  # type: ignore[arg-type]
