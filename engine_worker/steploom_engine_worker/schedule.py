"""The noise schedule of a diffusers scheduler config: signal levels of the training steps, and which are visited.

Follows `from_config` of diffusers' schedulers: a key that is absent takes the default of the sampler asked for. All in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
FINAL_SIGMAS = ("zero", "sigma_min")

# Settings that change the result and that a table of linear coefficients, or this module, does not cover.
_UNSUPPORTED = (
    "thresholding",
    "clip_sample",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)

# Stands for zero signal where a sampler divides by the signal level; the value that diffusers takes.
SMALLEST_ALPHA_BAR = 2.0**-24


class Sampler(IntEnum):
    """The values are those of steploom.v1.Sampler."""

    DDIM = 1  # arXiv 2010.02502, eta = 0
    EULER = 2  # arXiv 2206.00364, algorithm 2 without churn
    DPMPP_2M = 3  # arXiv 2211.01095, algorithm 2

    @property
    def default_spacing(self) -> str:
        """How diffusers spaces the steps where the config does not say."""
        return "leading" if self is Sampler.DDIM else "linspace"


class ScheduleError(ValueError):
    """A scheduler config has a value that is wrong or not supported; the message names the key."""


@dataclass(frozen=True)
class ScheduleConfig:
    """What the samplers need of a diffusers `scheduler_config.json`."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None  # None: the sampler's default
    steps_offset: int = 0
    set_alpha_to_one: bool = True  # DDIM: the last step ends without noise
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"  # Euler and DPM-Solver++: likewise
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = field(default=-math.inf)

    def __post_init__(self) -> None:
        _check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _check_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        _check_choice("timestep_spacing", self.timestep_spacing, (*SPACINGS, None))
        _check_choice("final_sigmas_type", self.final_sigmas_type, FINAL_SIGMAS)
        if not 1 <= self.num_train_timesteps <= 100_000:
            raise ScheduleError(f"num_train_timesteps is {self.num_train_timesteps}, must be 1 to 100000")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ScheduleConfig:
        """Reads a parsed scheduler_config.json; keys of other schedulers are ignored.

        Raises:
            ScheduleError: a value is wrong or not supported.
        """
        for key in _UNSUPPORTED:
            if config.get(key):
                raise ScheduleError(f"{key} is {config[key]!r}, which is not supported")
        known = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None}
        if "trained_betas" in known:
            known["trained_betas"] = tuple(known["trained_betas"])
        try:
            return cls(**known)
        except TypeError as error:
            raise ScheduleError(f"a value has the wrong type: {error}") from None


def _check_choice(key: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ScheduleError(f"{key} is {value!r}, must be one of {', '.join(str(item) for item in choices if item)}")


def alphas_cumprod(config: ScheduleConfig) -> Array:
    """Share of the signal's variance at each training step, falling: alpha-bar of arXiv 2006.11239."""
    betas = _betas(config)
    if config.rescale_betas_zero_snr:
        betas = _rescale_to_zero_snr(betas)
    return _product(1.0 - betas)


def _betas(config: ScheduleConfig) -> Array:
    count, first, last = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        return np.array(config.trained_betas, np.float64)
    if config.beta_schedule == "linear":
        return np.linspace(first, last, count)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count) ** 2
    bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2  # arXiv 2102.09672, equation 17
    return np.array(np.minimum(1.0 - bar[1:] / bar[:-1], 0.999))


def _product(values: Array) -> Array:
    return np.cumprod(values, dtype=np.float64)


def _rescale_to_zero_snr(betas: Array) -> Array:
    """Shifts and scales the signal levels so that the last is zero (arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(_product(1.0 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root**2
    return 1.0 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def timesteps(config: ScheduleConfig, sampler: Sampler, steps: int, levels: Array) -> Array:
    """The training steps that are visited, falling; [steps]. Euler's may lie between two of them.

    Args:
        levels: `alphas_cumprod(config)`; DPM-Solver++ leaves out the noisiest where the config clips them.
    """
    total = config.num_train_timesteps
    usable = _unclipped(config, levels) if sampler is Sampler.DPMPP_2M else total
    spacing = config.timestep_spacing or sampler.default_spacing
    # DPM-Solver++ divides the range as if one more step, to time zero, came at the end
    points = steps + 1 if sampler is Sampler.DPMPP_2M else steps
    if spacing == "trailing":
        times = np.round(np.arange(usable, 0, -total / steps)) - 1
    elif spacing == "leading":
        times = np.arange(points)[::-1] * (usable // points) + config.steps_offset
    else:
        times = np.linspace(0, usable - 1, points)[::-1]
        times = times if sampler is Sampler.EULER else times.round()
    return np.clip(times[:steps].astype(np.float64), 0, total - 1)


def _unclipped(config: ScheduleConfig, levels: Array) -> int:
    """How many training steps have a log signal-to-noise ratio above `lambda_min_clipped`."""
    log_snr = 0.5 * np.log(np.maximum(levels, SMALLEST_ALPHA_BAR) / (1.0 - levels))
    return int(config.num_train_timesteps - np.searchsorted(log_snr[::-1], config.lambda_min_clipped))
