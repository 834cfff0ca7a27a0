"""How different two pictures look: the distance of what a network sees in them."""

from __future__ import annotations

import torch
from torch import Tensor

from .classifier import Classifier


def perceptual_distance(judge: Classifier, first: Tensor, second: Tensor) -> Tensor:
    """The distance of arXiv 1801.03924, equation 1, without learnt weights, on the features of the attribute judge.

    The judge also reads whether edits succeeded: the two figures are not independent of each other.

    Args:
        judge: gives the features after each of its levels.
        first: ``[n, 3, s, s]`` in 0..1.
        second: likewise.

    Returns:
        ``[n]``: over levels the sum, over places the mean, over channels the sum of the squared differences of features
        of unit length. 0 for equal pictures, at most 4 a level.
    """
    total = first.new_zeros(len(first))
    for left, right in zip(_features(judge, first), _features(judge, second), strict=True):
        total = total + (left - right).square().sum(1).mean((1, 2))
    return total


def _features(judge: Classifier, images: Tensor) -> list[Tensor]:
    hidden = images * 2 - 1
    found = []
    for level in judge.levels:
        hidden = level(hidden)
        found.append(torch.nn.functional.normalize(hidden, dim=1))
    return found
