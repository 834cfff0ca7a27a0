"""Linear layers in e4m3 and the passes that make their inputs, at the transformers, beside half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.bench.case import Case
from steploom_kernels.bench.shapes import Place, normal, places, scale_and_offset
from steploom_kernels.fp8 import (
    E4M3,
    LARGEST,
    LOWEST_CAPABILITY,
    quantise,
    quantise_channels,
    scaled_linear,
    scaled_linear_reference,
)
from steploom_kernels.geglu import geglu, geglu_reference
from steploom_kernels.layer_norm import layer_norm, layer_norm_reference

_VALUE = 2  # bytes, of half precision
_EXPANSION = 4  # a feed-forward layer's width over the level's channels
_SCALE = 2.0**-4
_EPS = 1e-5
# One rounding to four significant bits is 2**-4 at most, 0.026 on average.
_ROUNDED = 4e-2
# Hopper's fast sums keep fewer bits than float32.
_SUMMED = 5e-3


def cases() -> Iterator[Case]:
    """Products as queries, keys and values, and both of a feed-forward layer have them; the passes before them."""
    for place in places(transformers=True):
        yield _quantise(place)
        yield _layer_norm(place)
        yield _geglu(place)
        if _can_multiply():
            width = place.level.channels
            yield _linear(place, width, 3 * width)
            yield _linear(place, width, 2 * _EXPANSION * width)
            yield _linear(place, _EXPANSION * width, width)


def _can_multiply() -> bool:
    """On a CPU the reference runs."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= LOWEST_CAPABILITY


def _quantise(place: Place) -> Case:
    tokens, width = place.rows * place.level.tokens, place.level.channels
    return Case(
        op="quantise",
        shape=place.name(),
        make=lambda device, generator: (normal(device, generator, tokens, width),),
        run=partial(quantise, scale=_SCALE),
        eager=_rounded,
        reference=lambda x: x.double() / _SCALE,
        num_bytes=(_VALUE + 1) * tokens * width,
        tolerance=_ROUNDED,
        rank=place.rank + 1,
    )


def _layer_norm(place: Place) -> Case:
    tokens, width = place.rows * place.level.tokens, place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        return normal(device, generator, tokens, width), *scale_and_offset(device, generator, width)

    return Case(
        op="layer_norm_e4m3",
        shape=place.name(),
        make=make,
        run=partial(layer_norm, eps=_EPS, scale=_SCALE),
        eager=lambda x, weight, bias: _rounded(functional.layer_norm(x, (width,), weight, bias, _EPS)),
        reference=lambda *inputs: layer_norm_reference(*(each.double() for each in inputs), eps=_EPS) / _SCALE,
        num_bytes=(_VALUE + 1) * tokens * width + 2 * _VALUE * width,
        tolerance=_ROUNDED,
        rank=place.rank,
    )


def _geglu(place: Place) -> Case:
    tokens, width = place.rows * place.level.tokens, _EXPANSION * place.level.channels

    def eager(x: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, dim=-1)
        return _rounded(hidden * functional.gelu(gate))

    return Case(
        op="geglu_e4m3",
        shape=place.name(),
        make=lambda device, generator: (normal(device, generator, tokens, 2 * width),),
        run=partial(geglu, scale=_SCALE),
        eager=eager,
        reference=lambda x: geglu_reference(x.double()) / _SCALE,
        num_bytes=(2 * _VALUE + 1) * tokens * width,
        tolerance=_ROUNDED,
        rank=place.rank,
    )


def _linear(place: Place, width: int, out: int) -> Case:
    """Eager torch is the same product in half precision: how many times as long it takes is what e4m3 saves."""
    tokens = place.rows * place.level.tokens

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        codes = quantise(normal(device, generator, tokens, width), _SCALE)
        weight, scales = quantise_channels(normal(device, generator, out, width) * width**-0.5)
        half, half_weight = codes.half() * _SCALE, (weight.float() * scales[:, None]).half()
        return codes, weight, scales * _SCALE, normal(device, generator, out), half, half_weight

    def run(codes: Tensor, weight: Tensor, scales: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
        return scaled_linear(codes, weight, scales, bias, torch.float16)

    def eager(*given: Tensor) -> Tensor:
        _, _, _, bias, half, weight = given
        return functional.linear(half, weight, bias)

    def reference(codes: Tensor, weight: Tensor, scales: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
        return scaled_linear_reference(codes, weight, scales, bias, torch.float64, torch.float64)

    return Case(
        op="scaled_linear",
        shape=f"{place.name()}: {width} to {out}",
        make=make,
        run=run,
        eager=eager,
        reference=reference,
        num_bytes=tokens * width + out * width + _VALUE * tokens * out,
        tolerance=_SUMMED,
        flops=2 * tokens * width * out,
        rank=place.rank,
    )


def _rounded(x: Tensor) -> Tensor:
    return (x / _SCALE).clamp(-LARGEST, LARGEST).to(E4M3)
