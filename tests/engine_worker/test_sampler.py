"""The tables against diffusers' schedulers, step by step, with a fixed nonlinear model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from steploom_engine_worker.sampler import Table, build_table
from steploom_engine_worker.schedule import Sampler, ScheduleConfig, ScheduleError

CLASSES = {
    Sampler.DDIM: DDIMScheduler,
    Sampler.EULER: EulerDiscreteScheduler,
    Sampler.DPMPP_2M: DPMSolverMultistepScheduler,
}
STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# diffusers hands torch tensors to numpy in the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NOISE = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 4, 4, 4)))


def model(sample: torch.Tensor, timestep: float) -> torch.Tensor:
    """Bounded, smooth, not linear, and different at each time."""
    argument: torch.Tensor = 1.3 * sample + 0.2 * sample.roll(1, -1) ** 2 - float(timestep) / 900.0
    return 0.9 * torch.tanh(argument)


def by_table(table: Table) -> torch.Tensor:
    sample, history = NOISE * table.initial_scale, torch.zeros_like(NOISE)
    for time, (a, b, c, h, p, q) in zip(table.timesteps, table.coefficients.astype(np.float64), strict=True):
        assert c == 0.0
        prediction = model(sample, time)
        sample, history = a * sample + b * prediction + h * history, p * sample + q * prediction
    return sample


def by_diffusers(sampler: Sampler, config: dict[str, Any], steps: int) -> torch.Tensor:
    scheduler = CLASSES[sampler].from_config(config)
    scheduler.set_timesteps(steps)
    sample: torch.Tensor = NOISE * scheduler.init_noise_sigma
    for time in scheduler.timesteps[:steps]:
        prediction = model(scheduler.scale_model_input(sample, time), time)
        sample = scheduler.step(prediction, time, sample, return_dict=False)[0]
    return sample


def assert_equal_to_diffusers(sampler: Sampler, config: dict[str, Any], steps: int, tolerance: float = 1e-4) -> None:
    table = build_table(ScheduleConfig.from_dict(config), sampler, steps)
    expected = by_diffusers(sampler, config, steps)
    assert torch.isfinite(expected).all()
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(by_table(table), expected.double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 35, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", None])
@pytest.mark.parametrize("sampler", list(Sampler))
def test_equals_diffusers(sampler: Sampler, spacing: str | None, prediction_type: str, steps: int) -> None:
    config = {**STABLE_DIFFUSION, "prediction_type": prediction_type}
    if spacing:
        config["timestep_spacing"] = spacing
    assert_equal_to_diffusers(sampler, config, steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 35, 50])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", list(Sampler))
def test_equals_diffusers_from_pure_noise(sampler: Sampler, prediction_type: str, steps: int) -> None:
    config = {
        **STABLE_DIFFUSION,
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
    }
    # diffusers' Euler keeps x at 4096 times the noise in float32, which alone costs 4096 * 2**-24 of the picture
    assert_equal_to_diffusers(sampler, config, steps, 6e-4 if sampler is Sampler.EULER else 1e-4)


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
        {"set_alpha_to_one": True, "steps_offset": 0},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"euler_at_final": True},
        {"num_train_timesteps": 500},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_equals_diffusers_for_other_schedules(sampler: Sampler, changes: dict[str, Any]) -> None:
    for steps in (3, 20):
        assert_equal_to_diffusers(sampler, {**STABLE_DIFFUSION, **changes}, steps)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_table_has_a_line_for_each_step(sampler: Sampler) -> None:
    # 61 trailing steps of 1000 are 62 in floating point
    config = ScheduleConfig.from_dict({**STABLE_DIFFUSION, "timestep_spacing": "trailing"})
    for steps in (1, 61, 100, 1000):
        table = build_table(config, sampler, steps)
        assert table.coefficients.shape == (steps, 6)
        assert table.timesteps.shape == (steps,)
        assert np.isfinite(table.coefficients).all()
        assert (np.diff(table.timesteps) <= 0).all()


@pytest.mark.parametrize("steps", [0, 1001])
def test_refuses_impossible_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}, must be 1 to 1000"):
        build_table(ScheduleConfig(), Sampler.DDIM, steps)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"beta_schedule": "laplace"}, "beta_schedule"),
        ({"timestep_spacing": "random"}, "timestep_spacing"),
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": "many"}, "wrong type"),
    ],
)
def test_refuses_what_it_cannot_follow(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ScheduleError, match=named):
        ScheduleConfig.from_dict(config)
