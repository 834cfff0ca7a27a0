"""The engine against diffusers' own pipeline, and a job's independence of its neighbours.

Tolerances: latents within 1e-4 of their largest value, pictures within one level of 255. Nothing but the rounding of
matrix products of other sizes may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from steploom_engine_worker.engine import Job
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.torch_engine import TorchEngine
from steploom_kernels.philox_noise import as_int64, philox_noise

Run = Callable[[Job], tuple[torch.Tensor, np.ndarray]]

RELATIVE = 1e-4
SCHEDULERS = {
    Sampler.DDIM: DDIMScheduler,
    Sampler.EULER: EulerDiscreteScheduler,
    Sampler.DPMPP_2M: DPMSolverMultistepScheduler,
}


def assert_same_latents(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE * float(expected.abs().max()))


def assert_same_picture(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture(scope="module")
def pipeline(tiny_model_dir: Path) -> StableDiffusionInstructPix2PixPipeline:
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        tiny_model_dir,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sampler", list(Sampler))
def test_equals_diffusers_pipeline(
    pipeline: StableDiffusionInstructPix2PixPipeline,
    tiny_engine: TorchEngine,
    make_job: Callable[..., Job],
    run_alone: Run,
    sampler: Sampler,
    steps: int,
) -> None:
    job = make_job(steps=steps, sampler=sampler)
    latents, picture = run_alone(job)
    pipeline.scheduler = SCHEDULERS[sampler].from_config(pipeline.scheduler.config)
    noise = philox_noise(as_int64([job.seed]), as_int64([0]), latents.numel()).view(1, *latents.shape)

    def by_pipeline(output_type: str) -> Any:
        return pipeline(
            job.instruction,
            Image.fromarray(job.pixels),
            num_inference_steps=steps,
            guidance_scale=job.guidance_scale,
            image_guidance_scale=job.image_guidance_scale,
            latents=noise.clone(),
            output_type=output_type,
        ).images[0]

    assert_same_latents(latents, by_pipeline("latent"))
    assert_same_picture(picture, np.asarray(by_pipeline("pil")))


@pytest.mark.parametrize(("text", "picture"), [(1.0, 1.0), (3.0, 3.0), (4.0, 1.0), (7.5, 1.5)])
def test_branches_of_weight_zero_change_nothing(
    pipeline: StableDiffusionInstructPix2PixPipeline,
    make_job: Callable[..., Job],
    run_alone: Run,
    text: float,
    picture: float,
) -> None:
    """One and two rows a step give what three rows give in diffusers' loop, written out here."""
    job = make_job(steps=2, guidance_scale=text, image_guidance_scale=picture)
    latents, _ = run_alone(job)
    assert_same_latents(latents, three_rows(pipeline, job, latents.shape))


@torch.no_grad()
def three_rows(pipeline: StableDiffusionInstructPix2PixPipeline, job: Job, shape: Sequence[int]) -> torch.Tensor:
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(job.steps)
    latents = philox_noise(as_int64([job.seed]), as_int64([0]), int(np.prod(shape))).view(1, *shape)
    pixels = torch.from_numpy(job.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    encoded = pipeline.vae.encode(pixels).latent_dist.mode()
    condition = torch.cat([encoded, encoded, torch.zeros_like(encoded)])
    text = pipeline._encode_prompt(job.instruction, "cpu", 1, True)
    for time in scheduler.timesteps:
        sample = torch.cat([latents.repeat(3, 1, 1, 1), condition], dim=1)
        full, image, none = pipeline.unet(sample, time, encoder_hidden_states=text).sample.chunk(3)
        guided = none + job.guidance_scale * (full - image) + job.image_guidance_scale * (image - none)
        latents = scheduler.step(guided, time, latents).prev_sample
    return latents[0]


JOBS: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    picture=st.integers(0, 3),
    instruction=st.sampled_from(["make it blue", "add a flower", "눈을 감겨 줘", ""]),
    steps=st.integers(1, 5),
    guidance_scale=st.sampled_from([1.0, 1.5, 7.5]),
    image_guidance_scale=st.sampled_from([1.0, 1.5, 2.0]),
    seed=st.integers(0, 2**64 - 1),
    sampler=st.sampled_from(list(Sampler)),
)


@settings(
    deadline=None,
    max_examples=8,
    derandomize=True,
    phases=[Phase.generate],  # an example takes a second: a failure is not worth minutes of making it smaller
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(values=st.lists(JOBS, min_size=2, max_size=5), arrivals=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_a_job_gives_the_same_picture_alone_and_in_any_batch(
    tiny_engine: TorchEngine,
    make_job: Callable[..., Job],
    run_alone: Run,
    values: list[dict[str, Any]],
    arrivals: list[int],
) -> None:
    """Jobs of all kinds come and go at different ticks, in slots of any order."""
    jobs = [make_job(**value) for value in values]
    together = run_together(tiny_engine, jobs, arrivals)
    for job, (latents, picture) in zip(jobs, together, strict=True):
        expected_latents, expected_picture = run_alone(job)
        assert_same_latents(latents, expected_latents)
        assert_same_picture(picture, expected_picture)


def run_together(engine: TorchEngine, jobs: list[Job], arrivals: list[int]) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Each job's first denoise tick is its arrival; every tick takes all jobs that are under way."""
    slots = [engine.num_slots - 1 - index for index in range(len(jobs))]
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    engine.encode(slots)
    for tick in range(max(arrivals) + max(job.steps for job in jobs)):
        steps = {
            slot: tick - arrival
            for slot, job, arrival in zip(slots, jobs, arrivals, strict=False)
            if 0 <= tick - arrival < job.steps
        }
        if steps:
            engine.denoise(list(steps), list(steps.values()))
    pictures = engine.decode(slots).wait().pictures
    results = [(engine.slots.latents[slot].clone(), picture) for slot, picture in zip(slots, pictures, strict=True)]
    for slot in slots:
        engine.release(slot)
    return results


def test_every_input_of_a_job_matters(make_job: Callable[..., Job], run_alone: Run) -> None:
    job = make_job()
    _, picture = run_alone(job)
    np.testing.assert_array_equal(run_alone(job)[1], picture)
    for changes in (
        {"seed": 12},
        {"instruction": "make the hair black"},
        {"pixels": make_job(picture=1).pixels},
        {"steps": 4},
        {"guidance_scale": 3.0},
        {"image_guidance_scale": 2.5},
        {"sampler": Sampler.EULER},
    ):
        assert np.abs(run_alone(replace(job, **changes))[1].astype(int) - picture).max() > 1, changes


def test_a_longer_instruction_is_cut_and_an_empty_one_runs(make_job: Callable[..., Job], run_alone: Run) -> None:
    run_alone(make_job(instruction="word " * 5000, steps=1))
    run_alone(make_job(instruction="", steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, must be 1 to 12"),
        ({"steps": 13}, "steps is 13, must be 1 to 12"),
        ({"adapter": "turbo"}, "adapter 'turbo' does not exist"),
        ({"guidance_scale": float("nan")}, "guidance scales are nan"),
    ],
)
def test_refuses_jobs_out_of_bounds(
    tiny_engine: TorchEngine, make_job: Callable[..., Job], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_engine.admit(0, make_job(**changes))


def test_a_job_that_overflows_fails_alone(
    tiny_engine: TorchEngine, make_job: Callable[..., Job], run_alone: Run
) -> None:
    expected, _ = run_alone(make_job(steps=2))
    tiny_engine.admit(0, make_job(steps=2))
    tiny_engine.admit(1, make_job(steps=2))
    assert not tiny_engine.encode([0, 1]).wait().failures
    tiny_engine.slots.latents[1] = torch.inf
    for step in (0, 1):
        done = tiny_engine.denoise([0, 1], [step, step]).wait()
        assert done.failures == {1: "the UNet gave values that are not finite"}
    assert_same_latents(tiny_engine.slots.latents[0], expected)
    done = tiny_engine.decode([0, 1]).wait()
    assert done.failures == {1: "the VAE's decoder gave values that are not finite"}
    assert len(done.pictures) == 2
    for slot in (0, 1):
        tiny_engine.release(slot)


@pytest.mark.parametrize(
    ("part", "source"), [("_encode_pictures", "the VAE's encoder"), ("_encode_text", "the text encoder")]
)
def test_what_cannot_be_encoded_fails_alone(
    tiny_engine: TorchEngine, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, part: str, source: str
) -> None:
    encode = getattr(tiny_engine, part)

    def spoil(given: Any) -> torch.Tensor:
        values: torch.Tensor = encode(given).clone()
        values[1, ..., 0] = torch.nan
        return values

    monkeypatch.setattr(tiny_engine, part, spoil)
    for slot in (3, 1):
        tiny_engine.admit(slot, make_job())
    assert tiny_engine.encode([3, 1]).wait().failures == {1: f"{source} gave values that are not finite"}
    for slot in (3, 1):
        tiny_engine.release(slot)


def test_a_preview_has_the_size_of_the_latents_and_looks_like_the_picture(
    tiny_engine: TorchEngine, make_job: Callable[..., Job]
) -> None:
    tiny_engine.admit(0, make_job())
    tiny_engine.encode([0])
    done = tiny_engine.denoise([0], [0], previewed=[0]).wait()
    tiny_engine.denoise([0], [1])
    preview = done.previews[0]()
    assert preview.shape == (8, 8, 3)
    assert preview.dtype == np.uint8


def test_a_branch_that_is_not_computed_names_a_row_of_its_own_job(
    tiny_engine: TorchEngine, make_job: Callable[..., Job]
) -> None:
    """Its weight is zero, but zero times a neighbour's infinity would not be."""
    for slot, (text, picture) in enumerate([(7.5, 1.5), (3.0, 3.0), (4.0, 1.0), (1.0, 1.0)]):
        tiny_engine.admit(slot, make_job(guidance_scale=text, image_guidance_scale=picture))
    row_jobs, row_branches, job_rows = tiny_engine.slots.rows([0, 1, 2, 3])
    assert row_jobs == [0, 0, 0, 1, 1, 2, 2, 3]
    assert row_branches == [0, 1, 2, 0, 2, 0, 1, 0]
    assert job_rows == [[0, 1, 2], [3, 3, 4], [5, 6, 5], [7, 7, 7]]


def test_a_job_needs_no_new_slot_memory(tiny_engine: TorchEngine, make_job: Callable[..., Job], run_alone: Run) -> None:
    places = {name: item.data_ptr() for name, item in vars(tiny_engine.slots).items() if isinstance(item, torch.Tensor)}
    run_alone(make_job())
    for name, place in places.items():
        assert getattr(tiny_engine.slots, name).data_ptr() == place
