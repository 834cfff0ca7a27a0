"""A small picture from latents without the VAE: each latent's colour by a linear map, fitted once at load."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from steploom_kernels.philox_noise import as_int64, philox_noise

_PICTURES = 2  # to fit on: each gives as many points as a picture has latents
_COARSE = 6  # colour spots along a side of such a picture


def fit_latent_colours(encode: Callable[[Tensor], Tensor], side: int) -> Tensor:
    """The map from a latent's channels, and one, to red, green and blue, by least squares over soft colour spots.

    Args:
        encode: pictures [n, 3, side, side], -1 to 1, to latents [n, channels, h, w].
        side: pixels.

    Returns:
        float32 [channels + 1, 3].
    """
    pictures = colour_spots(side)
    latents = encode(pictures).float()
    colours = torch.nn.functional.interpolate(pictures, latents.shape[-2:], mode="area")
    solution: Tensor = torch.linalg.lstsq(_with_one(latents), colours.permute(0, 2, 3, 1).flatten(0, 2)).solution
    return solution


def latent_colours(latents: Tensor, colour_map: Tensor) -> Tensor:
    """Latents [channels, h, w] as a picture [1, 3, h, w], about -1 to 1."""
    height, width = latents.shape[-2:]
    return (_with_one(latents[None].float()) @ colour_map).view(1, height, width, 3).permute(0, 3, 1, 2)


def colour_spots(side: int) -> Tensor:
    """Two pictures [2, 3, side, side] of soft spots of random colours, -1 to 1, always the same."""
    count = 3 * _COARSE * _COARSE
    noise = philox_noise(as_int64(range(_PICTURES)), as_int64([0] * _PICTURES), count)
    spots = noise.view(_PICTURES, 3, _COARSE, _COARSE)
    return torch.nn.functional.interpolate(spots, (side, side), mode="bicubic").tanh()


def _with_one(latents: Tensor) -> Tensor:
    points = latents.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
