"""The losses of the three stages of distillation, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .classifier import Classifier, load_classifier
from .distillation import DistillationError, Loss, Stage
from .ladder import Ladder, LadderError, Levels
from .models import decode
from .perceptual import perceptual_distance
from .predictors import Conditions

Losses = tuple[Tensor, dict[str, Tensor]]


def guidance_loss(stage: Stage) -> Callable[[], Losses]:
    """One row learns what three rows say under guidance, at every noise level (arXiv 2210.03142, section 3.1)."""
    levels = Levels.of(stage.base.schedule, stage.base.device)

    def loss() -> Losses:
        pairs, by, clean = stage.batch()
        times = torch.randint(len(levels.signal), (len(clean),), device=clean.device)
        noisy = _columns(levels.signal[times]) * clean + _columns(levels.noise[times]) * torch.randn_like(clean)
        target = stage.teacher(noisy, times.float(), by)
        squared = (stage.student(noisy, times.float(), by) - target).square()
        return (squared * stage.places(pairs)).mean(), {"snr_db": decibels(squared.mean())}

    return loss


def steps_loss(from_steps: int, to_steps: int) -> Loss:
    """One step learns where several of the teacher's lead (arXiv 2202.00512, algorithm 2), from pictures with noise."""

    def prepare(stage: Stage) -> Callable[[], Losses]:
        ladder = _ladder(stage, from_steps, to_steps)

        def loss() -> Losses:
            pairs, by, clean = stage.batch()
            step = torch.randint(len(ladder.times), (len(clean),), device=clean.device)
            noise = torch.randn_like(clean)
            noisy = _columns(ladder.signal[step]) * clean + _columns(ladder.noise[step]) * noise
            end = teacher_walk(stage, ladder, noisy, step, by)
            predicted = stage.student(noisy, ladder.times[step], by)
            squared = (predicted - target_of(ladder, noisy, end, step)).square()
            weight = _columns(ladder.weight[step]) * stage.places(pairs)
            return (squared * weight).mean(), {"snr_db": decibels(squared.mean())}

        return loss

    return prepare


def rollout_loss(from_steps: int, to_steps: int, judge_folder: Path | None) -> Loss:
    """The student walks from noise by its own steps; each is to end where the teacher's walk from the same noise was.

    So it learns at the very inputs that it meets when it serves, and to undo its earlier steps' errors (the idea of
    backward distillation, arXiv 2405.05224, section 4.1).
    """

    def prepare(stage: Stage) -> Callable[[], Losses]:
        ladder = _ladder(stage, from_steps, to_steps)
        judge = _load_judge(stage, judge_folder)

        def loss() -> Losses:
            pairs, by, clean = stage.batch()
            places = stage.places(pairs)
            noisy = goal = torch.randn_like(clean)
            total = clean.new_zeros(())
            for number in range(len(ladder.times)):
                step = torch.full((len(clean),), number, device=clean.device)
                goal = teacher_walk(stage, ladder, goal, step, by)
                predicted = stage.student(noisy, ladder.times[step], by)
                squared = (predicted - target_of(ladder, noisy, goal, step)).square()
                total = total + (squared * ladder.weight[number] * places).mean()
                walked = ladder.on_x[number] * noisy + ladder.on_prediction[number] * predicted
                noisy = walked.detach()
            extras = {"snr_db": decibels((noisy - goal).square().mean())}
            if judge is not None:
                distance = _picture_distance(stage, judge, walked, goal)
                total = total + stage.config.perceptual_weight * distance
                extras["perceptual"] = distance
            return total / len(ladder.times), extras

        return loss

    return prepare


@torch.no_grad()
def teacher_walk(stage: Stage, ladder: Ladder, noisy: Tensor, step: Tensor, by: Conditions) -> Tensor:
    """Where the teacher's inner steps lead from ``noisy`` ``[n, 4, h, w]`` at the student's steps ``step`` ``[n]``."""
    for inner in range(ladder.inner):
        predicted = stage.teacher(noisy, ladder.teacher_times[step, inner], by)
        on_x, on_prediction = ladder.teacher_on_x[step, inner], ladder.teacher_on_prediction[step, inner]
        noisy = _columns(on_x) * noisy + _columns(on_prediction) * predicted
    return noisy


def target_of(ladder: Ladder, noisy: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """The prediction that takes ``noisy`` to ``end`` in one step (arXiv 2202.00512, appendix G)."""
    return (end - _columns(ladder.on_x[step]) * noisy) / _columns(ladder.on_prediction[step])


def _ladder(stage: Stage, from_steps: int, to_steps: int) -> Ladder:
    try:
        return Ladder.build(stage.base.schedule, from_steps, to_steps, stage.base.device)
    except LadderError as error:
        raise DistillationError(str(error)) from None


def _load_judge(stage: Stage, folder: Path | None) -> Classifier | None:
    if stage.config.perceptual_weight == 0:
        return None
    if folder is None:
        raise DistillationError("rollout.perceptual_weight is not 0: the perceptual distance needs --judge")
    return load_classifier(folder, stage.base.device).requires_grad_(False)


def decibels(error: Tensor) -> Tensor:
    """A mean squared error of latents of about unit variance, as a signal to noise ratio in dB."""
    return -10 * error.detach().clamp_min(1e-10).log10()


def _picture_distance(stage: Stage, judge: Classifier, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean perceptual distance of some of the decoded pictures."""
    rows = slice(stage.config.perceptual_rows)
    vae, scale = stage.base.model.vae, stage.base.latent_scale
    drawn = decode(vae, student[rows] / scale).clamp(0, 1)
    with torch.no_grad():
        wanted = decode(vae, teacher[rows] / scale).clamp(0, 1)
    return perceptual_distance(judge, drawn, wanted).mean()


def _columns(values: Tensor) -> Tensor:
    return values[:, None, None, None]
