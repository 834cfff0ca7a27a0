"""A machine without a GPU that runs the TensorRT engine: fakes, plans for them, and what they should draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steploom_common.guidance import Branch
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.description import Description, describe
from steploom_engine_worker.engine import Done, Job, Pixels
from steploom_engine_worker.orders import Orders
from steploom_engine_worker.rows import NO_ADAPTER
from steploom_engine_worker.tensorrt.engine import TensorRTEngine
from steploom_engine_worker.tensorrt.fake.driver import FakeDriver
from steploom_engine_worker.tensorrt.fake.plans import FakePlans
from steploom_engine_worker.tensorrt.fake.trt import FakeTensorRT, compute
from steploom_engine_worker.tensorrt.flavour import Flavour
from steploom_engine_worker.tensorrt.host import Host, read_host
from steploom_engine_worker.tensorrt.load import load_tensorrt_engine
from steploom_engine_worker.tensorrt.machine import Finders
from steploom_kernels.philox_noise import as_int64, philox_noise_reference

Array = NDArray[Any]
MAX_STEPS = 8


def plans_for(model: Description, **changes: Any) -> FakePlans:
    """Plans of a model for the fakes."""
    values = {
        "model_digest": model.digest,
        "side": model.side,
        "latent_side": model.latent_shape[1],
        "adapters": tuple(item.name for item in model.adapters),
    }
    return FakePlans(**{**values, **changes})


@dataclass
class House:
    """A machine, and the folder of plans for a model."""

    root: Path  # the model directory
    folder: Path  # of the plans
    version: str = "10.9.0"
    driver: FakeDriver = field(default_factory=FakeDriver)

    def __post_init__(self) -> None:
        self.trt = FakeTensorRT(self.driver, self.version)

    @property
    def finders(self) -> Finders:
        """Find the fakes."""
        return Finders(lambda: self.driver, lambda _: Flavour("tensorrt", self.version, self.trt))

    def config(self, **changes: Any) -> WorkerConfig:
        """Settings for a small engine."""
        values = {
            "engine": "tensorrt", "model": str(self.root), "engines": str(self.folder), "slots": 5,
            "max_steps": MAX_STEPS,
        }  # fmt: skip
        return WorkerConfig(**{**values, **changes})

    def engine(self, **changes: Any) -> TensorRTEngine:
        """An engine as it starts: with the largest buckets."""
        return load_tensorrt_engine(self.config(**changes), self.finders)


def array(engine: TensorRTEngine, name: str) -> Array:
    """What an array of the slots holds, when all is done."""
    engine.check()
    item = engine.slots.exported()[name]
    driver: FakeDriver = engine._on._driver
    return driver.array_at(item.address, item.dtype, *item.shape).copy()


def put(engine: TensorRTEngine, name: str, slot: int, value: float) -> None:
    """Fills a slot's part of an array."""
    engine.check()
    item = engine.slots.exported()[name]
    engine._on._driver.array_at(item.address, item.dtype, *item.shape)[slot] = value


def done(started: Any) -> Done:
    """How a stage ended, well."""
    ended: Done = started.wait()
    assert not ended.failures
    return ended


def draw(engine: TensorRTEngine, jobs: Sequence[Job]) -> tuple[list[Array], list[Pixels]]:
    """Final latents and pictures of jobs that share every tick that they can, in slots from the last."""
    slots = [engine.num_slots - 1 - number for number in range(len(jobs))]
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    ticks = [engine.encode(slots)]
    for step in range(max(job.steps for job in jobs)):
        left = [slot for slot, job in zip(slots, jobs, strict=True) if step < job.steps]
        ticks.append(engine.denoise(left, [step] * len(left)))
        if len(ticks) > engine.max_pending - 1:  # as the worker waits: in order, with some ahead
            done(ticks.pop(0))
    ticks.append(engine.decode(slots))
    pictures = [pixels.copy() for pixels in [done(tick) for tick in ticks][-1].pictures]
    latents = list(array(engine, "latents")[slots])
    for slot in slots:
        engine.release(slot)
    return latents, pictures


def expected(model: Description, folder: Path, job: Job) -> tuple[Array, Pixels]:
    """Final latents and picture of a job by itself: the same networks, and nothing else of what is tested."""
    host, order = read_host(folder), Orders(model, MAX_STEPS).order(job)
    shape = model.latent_shape
    half = np.float16
    picture = (job.pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)).astype(half)
    known = _network("vae_encoder", {"pictures": picture[None]}, (1, shape[1], shape[2], shape[0]))
    text, nothing = (_text(host, words, known) for words in (job.instruction, ""))
    count = int(np.prod(shape))
    noise = philox_noise_reference(as_int64([job.seed]), torch.zeros(1, dtype=torch.int64), count)
    latents = noise.numpy().reshape(shape).transpose(1, 2, 0)[None] * np.float32(order.table.initial_scale)
    history = np.zeros_like(latents)
    for time, line in zip(order.table.timesteps, order.table.coefficients, strict=True):
        guided = np.zeros_like(latents)
        for branch, weight in order.weights.items():
            given = {
                "sample": np.concatenate([latents.astype(half), known * half(branch is not Branch.NONE)], axis=-1),
                "timesteps": np.array([time], np.float32),
                "context": text if branch is Branch.FULL else nothing,
                **_adapter(model, order.adapter, job),
            }
            guided += np.float32(weight) * _network("unet", given, latents.shape).astype(np.float32)
        a, b, _, h, p, q = line
        latents, history = a * latents + b * guided + h * history, p * latents + q * guided
    shown = _network("vae_decoder", {"latents": latents.astype(half)}, (1, *job.pixels.shape))
    pixels = np.clip(shown[0].astype(np.float32) * 127.5 + 127.5, 0.0, 255.0).round().astype(np.uint8)
    return latents[0].transpose(2, 0, 1), pixels


def _adapter(model: Description, number: int, job: Job) -> dict[str, Array]:
    if not model.adapters:
        return {}
    gates = np.zeros((1, len(model.adapters)), np.float32)
    if number != NO_ADAPTER:
        gates[0, number] = 1.0
    return {"gates": gates, "scales": np.array([[job.guidance_scale, job.image_guidance_scale]], np.float32)}


def _text(host: Host, words: str, like: Array) -> Array:
    width = FakePlans("").text_shape[1]
    return _network("text_encoder", {"tokens": host.tokens([words])}, (1, host.num_tokens, width))


def _network(name: str, given: Mapping[str, Array], shape: Sequence[int]) -> Array:
    return compute(name, given, shape).astype(np.float16)


def house_of(root: Path, folder: Path, version: str = "10.9.0", is_lazy: bool = True, **plans: Any) -> House:
    """A machine with plans for a model."""
    plans_for(describe(root), version=version, **plans).write(folder)
    return House(root, folder, version, FakeDriver(is_lazy=is_lazy))
