"""Model directories of random weights, and the student that can be added to one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from steploom_engine_worker import tiny_model
from steploom_engine_worker.adapter import linear_maps
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.model import load_model
from steploom_engine_worker.torch_engine import load_torch_engine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "random"
    tiny_model.main([str(folder), "--tiny", "--adapter", "few-step", "--rank", "2"])
    return folder


def test_a_student_draws_few_steps_of_one_row(root: Path) -> None:
    (adapter,) = load_model(root).adapters
    assert adapter.name == "few-step"
    assert adapter.manifest.rank == 2
    traits = adapter.manifest.traits
    assert traits.is_guidance_distilled
    assert traits.violations("few-step", 3, 7.5, 1.5) == []
    assert traits.violations("few-step", 35, 7.5, 1.5)


def test_a_student_changes_every_map_by_about_a_tenth(root: Path) -> None:
    model = load_model(root)
    maps = dict(linear_maps(model.unet))
    changes = model.adapters[0].network.changes
    assert changes.keys() == maps.keys()
    shares = [
        float((change.merged_into(maps[name]).weight - maps[name].weight).std() / maps[name].weight.std())
        for name, change in changes.items()
    ]
    assert min(shares) > 0.01
    assert 0.05 < median(shares) < 0.2
    assert max(shares) < 0.5


def test_a_student_draws_beside_the_model(root: Path, make_job: Callable[..., Job]) -> None:
    engine = load_torch_engine(WorkerConfig(model=str(root), slots=2, max_steps=4, threads=1))
    job = make_job(steps=3)
    for slot, one in enumerate((job, replace(job, adapter="few-step"))):
        engine.admit(slot, one)
    assert [engine.slots.rows([slot])[0] for slot in (0, 1)] == [[0, 0, 0], [0]]
    engine.encode([0, 1])
    for step in range(3):
        assert not engine.denoise([0, 1], [step, step]).wait().failures
    assert not engine.decode([0, 1]).wait().failures


def test_a_second_student_stands_beside_the_first(root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(root, tmp_path / "copy"))
    tiny_model.add_student(root, "another", rank=1, seed=5)
    tiny_model.add_student(root, "another", rank=1, seed=6)
    assert json.loads((root / "steploom.json").read_text()) == {"adapters": ["few-step", "another"]}
    assert [adapter.name for adapter in load_model(root).adapters] == ["few-step", "another"]
