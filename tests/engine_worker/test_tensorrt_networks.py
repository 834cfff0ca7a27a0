"""Networks as they are exported, run by the torch-free engine, draw what the torch engine draws: both sides agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorrt_house import MAX_STEPS, House, done, draw, house_of

from steploom_engine_worker.engine import Job
from steploom_engine_worker.export.host import write_host
from steploom_engine_worker.export.networks import NETWORKS, network
from steploom_engine_worker.model import load_model
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.tensorrt.engine import TensorRTEngine
from steploom_engine_worker.tensorrt.fake.trt import FakeTensorRT
from steploom_engine_worker.torch_engine import TorchEngine

LATENTS = 2e-2  # of latents whose values are about 1: what goes in and out of networks is rounded to half precision
LEVELS = 4  # of 255

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def plain(adapted_dir: Path) -> TorchEngine:
    return TorchEngine(load_model(adapted_dir), 5, MAX_STEPS, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def engine(adapted_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TensorRTEngine:
    """Over a GPU that is not there, whose networks are those that are exported."""
    model = load_model(adapted_dir)
    house: House = house_of(adapted_dir, tmp_path_factory.mktemp("engines"))
    write_host(house.folder, model)
    networks = {name: network(model, name) for name in NETWORKS}

    @torch.inference_mode()
    def fill(name: str, given: Any, out: Any) -> None:
        made = networks[name]
        inputs = [torch.from_numpy(given[port.name].copy()).to(port.dtype) for port in made.inputs]
        assert {*given} == {port.name for port in made.inputs}
        out[:] = made.module(*inputs).numpy()

    house.trt = FakeTensorRT(house.driver, fill=fill)
    return house.engine(record_all=True)


def draw_plain(engine: TorchEngine, jobs: list[Job]) -> tuple[list[Any], list[Any]]:
    """Final latents and pictures."""
    slots = list(range(len(jobs)))
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    done(engine.encode(slots))
    for step in range(max(job.steps for job in jobs)):
        left = [slot for slot, job in zip(slots, jobs, strict=True) if step < job.steps]
        done(engine.denoise(left, [step] * len(left)))
    return [engine.slots.latents[slot].numpy() for slot in slots], list(done(engine.decode(slots)).pictures)


@pytest.mark.parametrize("adapters", [("",), ("few-step",), ("style",), ("", "few-step", "style")])
@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.DPMPP_2M])
def test_both_engines_draw_the_same(
    plain: TorchEngine, engine: TensorRTEngine, make_job: MakeJob, adapters: tuple[str, ...], sampler: Sampler
) -> None:
    jobs = [
        make_job(picture=number, seed=number, adapter=name, steps=3, sampler=sampler, guidance_scale=2.0 + number)
        for number, name in enumerate(adapters)
    ]
    latents, pictures = draw(engine, jobs)
    for found, wanted in zip(latents, draw_plain(plain, jobs)[0], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=LATENTS, atol=LATENTS * np.abs(wanted).max())
    for picture, expected in zip(pictures, draw_plain(plain, jobs)[1], strict=True):
        assert np.abs(picture.astype(int) - expected).max() <= LEVELS
        assert expected.std() > 1.0


def test_previews_are_the_torch_engines(plain: TorchEngine, engine: TensorRTEngine, make_job: MakeJob) -> None:
    shown = []
    for drawing in (plain, engine):
        drawing.admit(1, make_job(steps=2))
        done(drawing.encode([1]))
        shown.append(done(drawing.denoise([1], [0], [1])).previews[1]().astype(int))
        drawing.release(1)
    assert np.abs(shown[0] - shown[1]).max() <= LEVELS
    assert shown[0].std() > 1.0
