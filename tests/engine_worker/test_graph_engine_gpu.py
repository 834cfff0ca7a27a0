"""The GPU's engine on a GPU: the CPU's pictures, no waiting within a tick, no memory taken once it is warm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.graph_engine import GraphEngine, load_graph_engine
from steploom_engine_worker.torch_engine import TorchEngine, load_torch_engine
from steploom_engine_worker.warmup import warm_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")

MIXES = [("",), ("few-step", "few-step"), ("", "few-step", "style")]


def config(root: Path, **changes: object) -> WorkerConfig:
    values = {"model": str(root), "slots": 4, "max_steps": 8, "denoise_buckets": (1, 3, 6, 12)}
    return WorkerConfig(**{**values, "encode_buckets": (1, 4), "decode_buckets": (1, 4), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def on_cpu(adapted_dir: Path) -> TorchEngine:
    return load_torch_engine(config(adapted_dir))


@pytest.fixture(scope="module")
def half(adapted_dir: Path) -> GraphEngine:
    return load_graph_engine(config(adapted_dir, device="cuda", dtype="float16"))


@pytest.fixture
def exact() -> Iterator[None]:
    """Single precision as it is written, not in nineteen bits."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def draw(engine: TorchEngine, jobs: list[Job]) -> list[np.ndarray]:
    """Pictures of jobs of one step count that share every tick; ticks are started ahead, as a worker does."""
    slots = list(range(len(jobs)))
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    started = [engine.encode(slots)]
    started += [engine.denoise(slots, [step] * len(jobs)) for step in range(jobs[0].steps)]
    started.append(engine.decode(slots))
    done = [each.wait() for each in started]
    assert not any(each.failures for each in done)
    for slot in slots:
        engine.release(slot)
    return [picture.copy() for picture in done[-1].pictures]


def jobs_of(make_job: Callable[..., Job], adapters: tuple[str, ...]) -> list[Job]:
    return [make_job(picture=number, seed=number, adapter=name, steps=3) for number, name in enumerate(adapters)]


@pytest.mark.parametrize("adapters", MIXES)
def test_single_precision_draws_the_cpu_s_pictures(
    adapted_dir: Path, on_cpu: TorchEngine, make_job: Callable[..., Job], adapters: tuple[str, ...], exact: None
) -> None:
    engine = load_graph_engine(config(adapted_dir, device="cuda", denoise_buckets=(12,)))
    jobs = jobs_of(make_job, adapters)
    for theirs, ours in zip(draw(on_cpu, jobs), draw(engine, jobs), strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("adapters", MIXES)
def test_half_precision_draws_nearly_the_cpu_s_pictures(
    on_cpu: TorchEngine, half: GraphEngine, make_job: Callable[..., Job], adapters: tuple[str, ...]
) -> None:
    jobs = jobs_of(make_job, adapters)
    for theirs, ours in zip(draw(on_cpu, jobs), draw(half, jobs), strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2


def test_nothing_in_a_denoise_tick_waits_for_the_device(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    jobs = jobs_of(make_job, ("", "few-step"))
    draw(half, jobs)
    for slot, job in enumerate(jobs):
        half.admit(slot, job)
    torch.cuda.set_sync_debug_mode("error")
    try:
        started = [half.encode([0, 1])]
        started += [half.denoise([0, 1], [step, step]) for step in range(3)]
        started.append(half.decode([0, 1]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(each.wait().failures for each in started)


def test_no_memory_is_taken_once_it_is_warm(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    jobs = jobs_of(make_job, ("", "few-step", "style", ""))
    draw(half, jobs)
    reserved = torch.cuda.memory_reserved()
    for _ in range(5):
        draw(half, jobs[:1])
        draw(half, jobs)
    assert torch.cuda.memory_reserved() == reserved
    for slot, job in enumerate(jobs):
        half.admit(slot, job)
    half.encode([0, 1, 2, 3]).wait()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    half.denoise([0, 1, 2, 3], [0, 0, 0, 0]).wait()
    half.decode([0, 1, 2, 3]).wait()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_a_job_that_overflows_fails_alone(half: GraphEngine, make_job: Callable[..., Job]) -> None:
    expected = draw(half, [make_job(steps=1)])[0]
    for slot in (0, 1):
        half.admit(slot, make_job(steps=1))
    half.encode([0, 1]).wait()
    half.slots.latents[1] = torch.nan
    torch.cuda.synchronize()
    assert half.denoise([0, 1], [0, 0]).wait().failures == {1: "the UNet gave values that are not finite"}
    assert np.abs(half.decode([0]).wait().pictures[0].astype(int) - expected).max() <= 2


def test_costs_are_of_device_time(half: GraphEngine, adapted_dir: Path) -> None:
    costs = warm_up(half, config(adapted_dir))
    assert len(costs) == 2 + 4 + 2
    assert all(0 < seconds < 1 for seconds in costs.values())
