"""Distances between pictures, in pixels."""

from __future__ import annotations

from torch import Tensor

_SMALLEST_ERROR = 1e-10  # equal pictures get 100 dB


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal to noise ratio of each picture, ``[n]`` dB, for images ``[n, 3, h, w]`` in 0..1."""
    return -10 * (images - truth).square().mean(dim=(1, 2, 3)).clamp_min(_SMALLEST_ERROR).log10()


def l2(images: Tensor, truth: Tensor) -> Tensor:
    """Root of the mean squared difference of each picture, ``[n]``, for images ``[n, 3, h, w]`` in 0..1."""
    return (images - truth).square().mean(dim=(1, 2, 3)).sqrt()
