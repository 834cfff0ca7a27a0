"""The noise levels that distillation walks along: a student's steps, and the teacher's inside each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steploom_engine_worker.sampler import Course, Level, build_course, first_order, picture_estimate
from steploom_engine_worker.schedule import Sampler, ScheduleConfig, alphas_cumprod


class LadderError(ValueError):
    """The teacher's steps do not divide into the student's."""


@dataclass(frozen=True)
class Levels:
    """Tensors over the training steps of a schedule."""

    signal: Tensor  # [train steps]
    noise: Tensor  # [train steps]

    @classmethod
    def of(cls, schedule: ScheduleConfig, device: torch.device) -> Levels:
        """The levels of a schedule."""
        bar = torch.from_numpy(alphas_cumprod(schedule)).float().to(device)
        return cls(bar.sqrt(), (1 - bar).sqrt())


@dataclass(frozen=True)
class Ladder:
    """A student's steps, and the teacher's steps inside each of them. All coefficients are those of DDIM."""

    times: Tensor  # [steps] that the student is told
    signal: Tensor  # [steps] at which a step begins
    noise: Tensor  # [steps]
    on_x: Tensor  # [steps] of the student's step
    on_prediction: Tensor  # [steps]
    weight: Tensor  # [steps] of the squared error of a prediction
    teacher_times: Tensor  # [steps, inner]
    teacher_on_x: Tensor  # [steps, inner]
    teacher_on_prediction: Tensor  # [steps, inner]

    @property
    def inner(self) -> int:
        """The teacher's steps in one of the student's."""
        return self.teacher_times.shape[1]

    @classmethod
    def build(cls, schedule: ScheduleConfig, from_steps: int, to_steps: int, device: torch.device) -> Ladder:
        """The ladder from so many of the teacher's steps to so many of the student's.

        Raises:
            LadderError: the teacher's steps do not divide into the student's.
        """
        if to_steps < 1 or from_steps % to_steps or not from_steps <= schedule.num_train_timesteps:
            raise LadderError(
                f"from {from_steps} to {to_steps} steps: the first must be a multiple of the second, "
                f"at most {schedule.num_train_timesteps}"
            )
        inner = from_steps // to_steps
        kind = schedule.prediction_type
        student = build_course(schedule, Sampler.DDIM, to_steps)
        teacher = build_course(schedule, Sampler.DDIM, from_steps)
        outer = [first_order(kind, *ends) for ends in zip(student.starts, student.ends, strict=True)]
        steps = [_inner_steps(kind, student, teacher, step, inner) for step in range(to_steps)]

        def tensor(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        return cls(
            times=tensor(student.times),
            signal=tensor([level.alpha for level in student.starts]),
            noise=tensor([level.sigma for level in student.starts]),
            on_x=tensor([pair[0] for pair in outer]),
            on_prediction=tensor([pair[1] for pair in outer]),
            weight=tensor([_truncated_snr(kind, level) for level in student.starts]),
            teacher_times=tensor(teacher.times).view(to_steps, inner),
            teacher_on_x=tensor([[pair[0] for pair in row] for row in steps]),
            teacher_on_prediction=tensor([[pair[1] for pair in row] for row in steps]),
        )


def _inner_steps(kind: str, student: Course, teacher: Course, step: int, inner: int) -> list[tuple[float, float]]:
    """The teacher's steps inside one of the student's: the last ends where the student's does."""
    starts = teacher.starts[step * inner : (step + 1) * inner]
    if teacher.times[step * inner] != student.times[step]:
        raise LadderError(f"the teacher does not visit training step {student.times[step]:g}")
    return [first_order(kind, *ends) for ends in zip(starts, [*starts[1:], student.ends[step]], strict=True)]


def _truncated_snr(kind: str, level: Level) -> float:
    """Weight of a prediction's squared error that weighs the picture's by max(SNR, 1) (arXiv 2202.00512, section 4).

    At most 10: a model of the noise would weigh its noisiest steps without bound.
    """
    _, change = picture_estimate(kind, level)
    snr = level.alpha**2 / level.sigma**2
    return min(10.0, max(snr, 1.0) * change**2)
