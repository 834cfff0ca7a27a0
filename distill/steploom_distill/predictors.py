"""Who gives the guided prediction: the model by three rows, or a student by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from steploom_common.guidance import Branch
from steploom_engine_worker.adapter import AdaptedUNet

from .training import autocast


@dataclass(frozen=True)
class Conditions:
    """What the rows of a batch are conditioned on."""

    before: Tensor  # [n, 4, h, w] latents of the input picture, unscaled
    text: Tensor  # [n, tokens, width]
    empty: Tensor  # [tokens, width] of the empty instruction
    scales: Tensor  # [n, 2] guidance towards text and picture


class Predictor(Protocol):
    """Gives the guided prediction, of the kind that the model was trained for."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, by: Conditions) -> Tensor:
        """``noisy`` is ``[n, 4, h, w]``, ``timesteps`` ``[n]``; the result like ``noisy``."""


class GuidedTeacher:
    """The model itself: three rows a prediction (arXiv 2211.09800, equation 3)."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet

    @torch.no_grad()
    def __call__(self, noisy: Tensor, timesteps: Tensor, by: Conditions) -> Tensor:
        """See `Predictor`."""
        pictures = torch.cat([by.before, by.before, torch.zeros_like(by.before)])
        empty = by.empty.expand_as(by.text)
        texts = torch.cat([by.text, empty, empty])
        sample = _stack(noisy.repeat(3, 1, 1, 1), pictures)
        with autocast(noisy.device):
            rows = self.unet(sample, timesteps.repeat(3), encoder_hidden_states=texts, return_dict=False)[0]
        branches = rows.float().chunk(3)
        text, picture = by.scales[:, 0, None, None, None], by.scales[:, 1, None, None, None]
        full, image, none = (branches[branch] for branch in (Branch.FULL, Branch.IMAGE, Branch.NONE))
        guided: Tensor = none + picture * (image - none) + text * (full - image)
        return guided


class OneRow:
    """A student: one row a prediction, the scales are inputs."""

    def __init__(self, network: AdaptedUNet) -> None:
        self.network = network

    def __call__(self, noisy: Tensor, timesteps: Tensor, by: Conditions) -> Tensor:
        """See `Predictor`."""
        self.network.gates.scales = by.scales
        with autocast(noisy.device):
            prediction: Tensor = self.network(_stack(noisy, by.before), timesteps, by.text)
        return prediction.float()


def _stack(noisy: Tensor, pictures: Tensor) -> Tensor:
    return torch.cat([noisy, pictures], 1).contiguous(memory_format=torch.channels_last)
