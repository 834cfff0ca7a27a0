"""The first product of a feed-forward layer and its GEGLU as one launch, beside torch's and beside our own two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.bench.case import TOLERANCES, Case, Rival
from steploom_kernels.bench.shapes import ROWS, UNET, Place, normal, places
from steploom_kernels.geglu import geglu
from steploom_kernels.linear_geglu import (
    candidate_plans,
    linear_geglu,
    linear_geglu_reference,
    linear_geglu_triton,
)

_VALUE = 2  # bytes, of half precision
_EXPANSION = 4  # a feed-forward layer's width over the level's channels
_SWEPT_ROWS = (ROWS[0], 1)


def cases() -> Iterator[Case]:
    """Every transformer's, at all numbers of rows."""
    for place in places(transformers=True):
        yield _linear_geglu(place)


def sweep() -> Iterator[Case]:
    """Every plan that might be the best, at the levels that cost most: the usual number of rows first, then one."""
    for turn, rows in enumerate(_SWEPT_ROWS):
        for level in UNET[:3]:
            usual = _linear_geglu(Place(level, rows, turn))
            for plan in candidate_plans():
                tile = f"{plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.num_warps} warps, {plan.num_stages} stages"
                how = f"{plan.residents} resident" if plan.residents else "by pointers"
                run = partial(linear_geglu_triton, plan=plan)
                yield replace(usual, op="linear_geglu_plan", shape=f"{usual.shape}, {tile}, {how}", run=run, rivals={})


def _linear_geglu(place: Place) -> Case:
    tokens, inner = place.rows * place.level.tokens, place.level.channels
    width = _EXPANSION * inner

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        weight = normal(device, generator, 2 * width, inner) * inner**-0.5
        return normal(device, generator, tokens, inner), weight, normal(device, generator, 2 * width)

    return Case(
        op="linear_geglu",
        shape=f"{place.name()}: {inner} to {width}",
        make=make,
        run=linear_geglu,
        eager=_eager,
        reference=lambda *inputs: linear_geglu_reference(*(each.double() for each in inputs)),
        num_bytes=_VALUE * (tokens * (inner + width) + 2 * width * inner),
        tolerance=TOLERANCES[torch.float16],
        flops=2 * tokens * inner * 2 * width,
        rank=place.rank,
        rivals={"two launches": Rival(_apart)},
    )


def _eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    hidden, gate = functional.linear(x, weight, bias).chunk(2, dim=-1)
    return hidden * functional.gelu(gate)


def _apart(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As it is done where one launch does not pay."""
    return geglu(functional.linear(x, weight, bias))
