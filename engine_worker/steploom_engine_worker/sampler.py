"""Samplers as tables: each step of a job is one line of coefficients.

The one idea: with the schedule fixed, a step of DDIM, Euler or DPM-Solver++ (2M) is linear in the noisy picture x, the
model's prediction and, for multistep solvers, the estimate of the finished picture from the step before. So a job's
whole course is computed at admission, and jobs of any sampler and step count share one update.

All samplers work on the variance-preserving x = alpha * picture + sigma * noise with alpha^2 + sigma^2 = 1, which is
what the UNet takes: Euler, usually written for picture + sigma * noise, needs no scaling of the model's input. The
first-order step of all three is then the same; they differ in which noise levels they visit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steploom_engine_worker.schedule import (
    SMALLEST_ALPHA_BAR,
    Array,
    Sampler,
    ScheduleConfig,
    alphas_cumprod,
    timesteps,
)

# DPM-Solver++ takes its last step at first order below this many steps (arXiv 2211.01095, section 6; diffusers)
_FEW_STEPS = 15


@dataclass(frozen=True)
class Table:
    """A job's course: one line for each step."""

    timesteps: NDArray[np.float32]  # [steps], what the UNet is told
    coefficients: NDArray[np.float32]  # [steps, 6], columns as in steploom_kernels.guidance_step
    initial_scale: float  # of the normal noise that the job starts from


@dataclass(frozen=True)
class Level:
    """Signal and noise: x = alpha * picture + sigma * noise."""

    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """Half of the log of the signal-to-noise ratio: lambda of arXiv 2211.01095."""
        return float(np.log(self.alpha) - np.log(self.sigma))


@dataclass(frozen=True)
class Course:
    """The noise level at which each step begins and ends."""

    times: Array
    starts: list[Level]
    ends: list[Level]
    initial_scale: float


def build_table(config: ScheduleConfig, sampler: Sampler, steps: int) -> Table:
    """The table of a job of so many steps.

    Raises:
        ValueError: more steps than the model was trained with, or none.
    """
    if not 1 <= steps <= config.num_train_timesteps:
        raise ValueError(f"steps is {steps}, must be 1 to {config.num_train_timesteps}")
    course = build_course(config, sampler, steps)
    lines = [_line(config, sampler, course, step) for step in range(steps)]
    return Table(course.times.astype(np.float32), np.asarray(lines, np.float32), course.initial_scale)


def build_course(config: ScheduleConfig, sampler: Sampler, steps: int) -> Course:
    """The noise levels that a job of so many steps passes."""
    return _ddim_course(config, steps) if sampler is Sampler.DDIM else _sigma_course(config, sampler, steps)


def _ddim_course(config: ScheduleConfig, steps: int) -> Course:
    """Each step goes from its training step to the one a fixed stride before it."""
    bar = alphas_cumprod(config)
    if config.prediction_type == "epsilon":
        bar = np.maximum(bar, SMALLEST_ALPHA_BAR)
    times = timesteps(config, Sampler.DDIM, steps, bar)
    final = 1.0 if config.set_alpha_to_one else float(bar[0])
    targets = times.astype(int) - config.num_train_timesteps // steps
    ends = [_level(float(bar[time])) if time >= 0 else _level(final) for time in targets]
    return Course(times, [_level(float(bar[time])) for time in times.astype(int)], ends, 1.0)


def _sigma_course(config: ScheduleConfig, sampler: Sampler, steps: int) -> Course:
    """Each step ends where the next begins; levels between training steps are interpolated in sigma / alpha."""
    bar = alphas_cumprod(config)
    if config.rescale_betas_zero_snr:
        bar[-1] = SMALLEST_ALPHA_BAR
    ratios = np.sqrt((1.0 - bar) / bar)
    times = timesteps(config, sampler, steps, bar)
    visited = np.interp(times, np.arange(len(ratios)), ratios)
    last = 0.0 if config.final_sigmas_type == "zero" else float(ratios[0])
    levels = [_level(1.0 / (1.0 + float(ratio) ** 2)) for ratio in [*visited, last]]
    if sampler is Sampler.EULER:
        levels[-1] = Level(1.0, last)  # it leaves the picture at full strength, whatever noise is left
    return Course(times, levels[:-1], levels[1:], _initial_scale(config, sampler, levels[0]))


def _initial_scale(config: ScheduleConfig, sampler: Sampler, first: Level) -> float:
    """Euler starts from noise alone, of the first level's strength, where its steps reach the noisiest level."""
    spacing = config.timestep_spacing or sampler.default_spacing
    return first.sigma if sampler is Sampler.EULER and spacing != "leading" else 1.0


def _level(bar: float) -> Level:
    return Level(float(np.sqrt(bar)), float(np.sqrt(1.0 - bar)))


def _line(config: ScheduleConfig, sampler: Sampler, course: Course, step: int) -> list[float]:
    """Coefficients of x, prediction, noise, history; then of the picture's estimate: x, prediction."""
    start = course.starts[step]
    keep, change = picture_estimate(config.prediction_type, start)
    if sampler is Sampler.DPMPP_2M and not _is_first_order(config, course, step):
        return [*_second_order(course, step, keep, change), keep, change]
    on_x, on_prediction = first_order(config.prediction_type, start, course.ends[step])
    return [on_x, on_prediction, 0.0, 0.0, keep, change]


def first_order(prediction_type: str, start: Level, end: Level) -> tuple[float, float]:
    """One step of DDIM (arXiv 2010.02502, equation 12, without noise): coefficients of x and of the prediction."""
    keep, change = picture_estimate(prediction_type, start)
    noise_x, noise_prediction = _noise_estimate(prediction_type, start)
    return end.alpha * keep + end.sigma * noise_x, end.alpha * change + end.sigma * noise_prediction


def picture_estimate(prediction_type: str, level: Level) -> tuple[float, float]:
    """The finished picture from x and the prediction (v: arXiv 2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return 1.0 / level.alpha, -level.sigma / level.alpha
    if prediction_type == "v_prediction":
        return level.alpha, -level.sigma
    return 0.0, 1.0


def _noise_estimate(prediction_type: str, level: Level) -> tuple[float, float]:
    """The noise from x and the prediction."""
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return level.sigma, level.alpha
    return 1.0 / level.sigma, -level.alpha / level.sigma


def _is_first_order(config: ScheduleConfig, course: Course, step: int) -> bool:
    """The first step has no history; the last goes to zero noise, where the second order is not defined."""
    steps = len(course.times)
    if step == 0:
        return True
    few = config.lower_order_final and steps < _FEW_STEPS
    return step == steps - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero")


def _second_order(course: Course, step: int, keep: float, change: float) -> list[float]:
    """DPM-Solver++ (2M), midpoint (arXiv 2211.01095, algorithm 2, with the picture as the prediction)."""
    before, start, end = course.starts[step - 1], course.starts[step], course.ends[step]
    width = end.log_snr - start.log_snr
    ratio = (start.log_snr - before.log_snr) / width
    gain = -end.alpha * np.expm1(-width)
    on_picture = gain * (1.0 + 0.5 / ratio)
    return [end.sigma / start.sigma + on_picture * keep, on_picture * change, 0.0, -gain * 0.5 / ratio]
