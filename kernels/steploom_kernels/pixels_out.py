"""What a VAE gives to bytes of pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def pixels_out(image: Tensor) -> Tensor:
    """[batch, 3, h, w], -1 to 1 and clamped to it, as uint8 [batch, h, w, 3], rounded to nearest."""
    scaled = (image.to(torch.float32) * 127.5 + 127.5).clamp(0.0, 255.0).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
