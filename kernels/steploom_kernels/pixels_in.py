"""Bytes of pictures to the numbers that a VAE takes."""

from __future__ import annotations

import torch
from torch import Tensor


def pixels_in(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [batch, h, w, 3], 0 to 255, as [batch, 3, h, w], -1 to 1, channels last in memory."""
    # a permuted view of [batch, h, w, 3] is channels last already: nothing is moved
    return (pixels.to(torch.float32) / 127.5 - 1.0).to(dtype).permute(0, 3, 1, 2)
