"""A tiny model on disk, an engine over it, and jobs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# threads that spin while they wait starve each other on a busy machine; read when torch is first imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from adapted_model import add_adapter

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.adapter import linear_maps
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.model import load_model
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.tiny_model import write_tiny_model
from steploom_engine_worker.torch_engine import TorchEngine, load_torch_engine

SIDE = 64  # pixels of the tiny model


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random tensors are the same whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapted_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a student and a style: an adapter of some layers that takes all three rows."""
    root = tmp_path_factory.mktemp("adapted") / "tiny"
    shutil.copytree(tiny_model_dir, root)
    add_adapter(root, "few-step", seed=1, timestep_spacing="trailing")
    attention = [name for name, _ in linear_maps(load_model(root).unet) if "attn" in name]
    add_adapter(root, "style", seed=2, rank=2, names=attention, traits=AdapterTraits())
    return root


@pytest.fixture(scope="session")
def tiny_engine(tiny_model_dir: Path) -> TorchEngine:
    return load_torch_engine(WorkerConfig(model=str(tiny_model_dir), slots=6, max_steps=12, threads=1))


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    def make(picture: int = 0, **changes: Any) -> Job:
        pixels = np.random.default_rng(picture).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        values = {
            "instruction": "make the hair blond",
            "pixels": pixels,
            "steps": 3,
            "guidance_scale": 7.5,
            "image_guidance_scale": 1.5,
            "seed": 11,
            "sampler": Sampler.DDIM,
        }
        return Job(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def run_alone(tiny_engine: TorchEngine) -> Callable[[Job], tuple[torch.Tensor, np.ndarray]]:
    """A job by itself in slot 0: its final latents and its picture."""

    def run(job: Job) -> tuple[torch.Tensor, np.ndarray]:
        tiny_engine.admit(0, job)
        tiny_engine.encode([0])
        for step in range(job.steps):
            tiny_engine.denoise([0], [step])
        picture = tiny_engine.decode([0]).wait().pictures[0]
        tiny_engine.release(0)
        return tiny_engine.slots.latents[0].clone(), picture

    return run
