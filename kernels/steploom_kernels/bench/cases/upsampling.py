"""Upsamplers: the pass that interleaves phases, and the whole of it beside the convolution of the enlarged picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.bench.case import TOLERANCES, Case
from steploom_kernels.bench.shapes import ROWS, Level, Place, normal, picture
from steploom_kernels.interleave import (
    candidate_plans,
    interleave,
    interleave_reference,
    interleave_triton,
    phase_weights,
)

_VALUE = 2  # bytes, of half precision
# Before they are enlarged: the largest of Stable Diffusion's UNet first, its VAE's, the embedded model's.
_UNET = (Level(32, 640, 32), Level(16, 1280, 32), Level(8, 1280, 32))
_VAE = (Level(256, 256, 32), Level(128, 512, 32), Level(64, 512, 32))
_EMBEDDED = (Level(16, 96, 16), Level(8, 160, 16))
_PICTURES = (1, 4)  # that a VAE decodes


def cases() -> Iterator[Case]:
    """Every upsampler of the models, at all numbers of rows."""
    for place in _places():
        yield _interleave(place)
        yield _convolution(place)


def sweep() -> Iterator[Case]:
    """Every plan that might be the best, at the UNet's upsamplers and at the largest of the VAE."""
    usual = [Place(level, ROWS[0], rank) for rank, level in enumerate(_UNET)]
    for place in (*usual, Place(_VAE[0], _PICTURES[0], len(usual))):
        plain = _interleave(place)
        for plan in candidate_plans(place.level.channels):
            name = f"{plan.pixels} pixels x {plan.channels}, {plan.num_warps} warps"
            run = partial(interleave_triton, plan=plan)
            yield replace(plain, op="interleave_plan", shape=f"{plain.shape}, {name}", run=run)


def _places() -> Iterator[Place]:
    for rows in ROWS:
        for index, level in enumerate(_UNET):
            yield Place(level, rows, (index > 0) + (rows != ROWS[0]))
        yield from (Place(level, rows, 4) for level in _EMBEDDED)
    for pictures in _PICTURES:
        yield from (Place(level, pictures, 1 + pictures) for level in _VAE)


def _interleave(place: Place) -> Case:
    """Shapes are of the small picture. The values that no phase needs, at the borders, need not be read."""
    side, channels = place.level.side, place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor]:
        return (normal(device, generator, place.rows, side + 1, side + 1, 4 * channels).permute(0, 3, 1, 2),)

    return Case(
        op="interleave",
        shape=place.name(),
        make=make,
        run=interleave,
        eager=interleave_reference,
        reference=interleave_reference,
        num_bytes=2 * _VALUE * 4 * _values(place),
        tolerance=0.0,
        rank=place.rank,
    )


def _convolution(place: Place) -> Case:
    """Eager torch enlarges the picture: how many times as long it takes is what phases save."""
    channels = place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        weight = (normal(device, generator, channels, channels, 3, 3).float() / (3 * channels**0.5)).half()
        both = (each.contiguous(memory_format=torch.channels_last) for each in (phase_weights(weight), weight))
        return picture(device, generator, place), *both

    def run(x: Tensor, phases: Tensor, _: Tensor) -> Tensor:
        y = functional.conv2d(x, phases, padding=1)
        return interleave(y.contiguous(memory_format=torch.channels_last))

    def eager(x: Tensor, _: Tensor, weight: Tensor) -> Tensor:
        large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return functional.conv2d(large, weight, padding=1)

    return Case(
        op="upsample_convolution",
        shape=place.name(),
        make=make,
        run=run,
        eager=eager,
        reference=lambda x, phases, weight: eager(x.double(), phases, weight.double()),
        num_bytes=_VALUE * (5 * _values(place) + 16 * channels**2),
        tolerance=TOLERANCES[torch.float16],
        flops=2 * 16 * channels * _values(place),
        rank=place.rank,
    )


def _values(place: Place) -> int:
    return place.rows * place.level.tokens * place.level.channels
