"""Normalisations at the UNets' shapes: before every convolution of a resnet, and every layer of a transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.bench import rivals
from steploom_kernels.bench.case import TOLERANCES, Case
from steploom_kernels.bench.shapes import ROWS, UNET, Place, normal, pairs, picture, places, scale_and_offset
from steploom_kernels.group_norm import group_norm, group_norm_reference, group_norm_triton, new_counters
from steploom_kernels.group_norm_plans import Picture, candidate_plans
from steploom_kernels.layer_norm import add_layer_norm, add_layer_norm_reference, layer_norm, layer_norm_reference

_RESNET_EPS, _TRANSFORMER_EPS, _LAYER_EPS = 1e-5, 1e-6, 1e-5
_VALUE = 2  # bytes, of half precision


def cases() -> Iterator[Case]:
    """Group norm as resnets and transformers take it, layer norm with and without a residual."""
    for place in places(joined=True):
        yield _group_norm(place, "group_norm_silu", _RESNET_EPS, silu=True)
    for place in places():
        yield _group_norm_shift(place)
    for place, border in pairs():
        yield _group_norm_beside(place, border)
    for place in places(transformers=True):
        yield _group_norm(place, "group_norm", _TRANSFORMER_EPS, silu=False)
        yield _layer_norm(place)
        yield _add_layer_norm(place)


def sweep() -> Iterator[Case]:
    """Every plan that might be the best, where most time is spent: the usual number of rows first, then a job alone."""
    for turn, rows in enumerate((ROWS[0], ROWS[2])):
        for level in UNET:
            usual = _group_norm(Place(level, rows, turn), "group_norm_plan", _RESNET_EPS, silu=True)
            for plan in candidate_plans(Picture(level.tokens, level.channels, level.groups)):
                tile = f"{plan.pixels} x {plan.run.groups} groups in {plan.run.width} lanes"
                limits = f"{plan.num_warps} warps, {plan.max_registers or 'any'} registers"

                def run(
                    x: Tensor, weight: Tensor, bias: Tensor, plan: Any = plan, groups: int = level.groups
                ) -> Tensor:
                    counters = _counters(x.device)
                    return group_norm_triton(
                        x, weight, bias, groups, eps=_RESNET_EPS, silu=True, counters=counters, plan=plan
                    )

                yield replace(usual, shape=f"{usual.shape}, {tile}, {limits}", run=run, rivals={})


@cache
def _counters(device: torch.device) -> Tensor:
    """One call after the other is measured."""
    return new_counters(device)


def _group_norm(place: Place, op: str, eps: float, *, silu: bool) -> Case:
    groups, channels = place.level.groups, place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        return picture(device, generator, place), *scale_and_offset(device, generator, channels)

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result = functional.group_norm(x, groups, weight, bias, eps)
        return functional.silu(result) if silu else result

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(x, weight, bias, groups, eps=eps, silu=silu, counters=_counters(x.device))

    def reference(*inputs: Tensor) -> Tensor:
        x, weight, bias = (each.double() for each in inputs)
        return group_norm_reference(x, weight, bias, groups, eps=eps, silu=silu)

    return Case(
        op=op,
        shape=place.name(),
        make=make,
        run=run,
        eager=eager,
        reference=reference,
        num_bytes=_VALUE * (2 * _values(place) + 2 * channels),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
        rivals=rivals.liger_group_norm(groups, eps, silu=silu),
    )


def _group_norm_shift(place: Place) -> Case:
    """A resnet's second norm: the time embedding is added to every pixel before."""
    groups, channels = place.level.groups, place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        x, shift = picture(device, generator, place), normal(device, generator, place.rows, channels)
        return x, shift, *scale_and_offset(device, generator, channels)

    def eager(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        moved = x + shift[:, :, None, None]
        return functional.silu(functional.group_norm(moved, groups, weight, bias, _RESNET_EPS))

    def run(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        counters = _counters(x.device)
        return group_norm(x, weight, bias, groups, eps=_RESNET_EPS, silu=True, shift=shift, counters=counters)

    def reference(*inputs: Tensor) -> Tensor:
        x, shift, weight, bias = (each.double() for each in inputs)
        return group_norm_reference(x, weight, bias, groups, eps=_RESNET_EPS, silu=True, shift=shift)

    return Case(
        op="group_norm_shift_silu",
        shape=place.name(),
        make=make,
        run=run,
        eager=eager,
        reference=reference,
        num_bytes=_VALUE * (2 * _values(place) + (place.rows + 2) * channels),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
    )


def _group_norm_beside(place: Place, border: int) -> Case:
    """The first norm of a resnet that takes a skip connection beside its input."""
    level, rest = place.level, place.level.channels - border

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        shapes = [(place.rows, level.side, level.side, channels) for channels in (border, rest)]
        pair = (normal(device, generator, *shape).permute(0, 3, 1, 2) for shape in shapes)
        return *pair, *scale_and_offset(device, generator, level.channels)

    def eager(x: Tensor, beside: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        joined = torch.cat([x, beside], 1)
        return functional.silu(functional.group_norm(joined, level.groups, weight, bias, _RESNET_EPS))

    def run(x: Tensor, beside: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        counters = _counters(x.device)
        return group_norm(x, weight, bias, level.groups, eps=_RESNET_EPS, silu=True, beside=beside, counters=counters)

    def reference(*inputs: Tensor) -> Tensor:
        x, beside, weight, bias = (each.double() for each in inputs)
        return group_norm_reference(x, weight, bias, level.groups, eps=_RESNET_EPS, silu=True, beside=beside)

    return Case(
        op="group_norm_beside_silu",
        shape=f"{place.rows} x {level.side}x{level.side} x {border}+{rest} fp16",
        make=make,
        run=run,
        eager=eager,
        reference=reference,
        num_bytes=_VALUE * (2 * _values(place) + 2 * level.channels),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
    )


def _layer_norm(place: Place) -> Case:
    width = place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        return _tokens(device, generator, place), *scale_and_offset(device, generator, width)

    return Case(
        op="layer_norm",
        shape=place.name(),
        make=make,
        run=partial(layer_norm, eps=_LAYER_EPS),
        eager=lambda x, weight, bias: functional.layer_norm(x, (width,), weight, bias, _LAYER_EPS),
        reference=lambda *inputs: layer_norm_reference(*(each.double() for each in inputs), eps=_LAYER_EPS),
        num_bytes=_VALUE * (2 * _values(place) + 2 * width),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
        rivals=rivals.liger_layer_norm(_LAYER_EPS),
    )


def _add_layer_norm(place: Place) -> Case:
    width = place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        pair = (_tokens(device, generator, place) for _ in range(2))
        return *pair, *scale_and_offset(device, generator, width)

    def eager(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return total, functional.layer_norm(total, (width,), weight, bias, _LAYER_EPS)

    def reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Any:
        total = x + residual  # as it is stored: rounded
        zeros = torch.zeros_like(total, dtype=torch.float64)
        return add_layer_norm_reference(total.double(), zeros, weight.double(), bias.double(), eps=_LAYER_EPS)

    return Case(
        op="add_layer_norm",
        shape=place.name(),
        make=make,
        run=partial(add_layer_norm, eps=_LAYER_EPS),
        eager=eager,
        reference=reference,
        num_bytes=_VALUE * (4 * _values(place) + 2 * width),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
    )


def _tokens(device: torch.device, generator: torch.Generator, place: Place) -> Tensor:
    return normal(device, generator, place.rows, place.level.tokens, place.level.channels)


def _values(place: Place) -> int:
    return place.rows * place.level.tokens * place.level.channels
