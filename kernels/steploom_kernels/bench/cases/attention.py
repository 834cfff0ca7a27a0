"""Attention at the UNet's shapes: to the picture itself and to the text, beside torch's fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.attention import attention, attention_reference, attention_triton, candidate_plans
from steploom_kernels.bench import rivals
from steploom_kernels.bench.case import TOLERANCES, Case
from steploom_kernels.bench.shapes import UNET, normal
from steploom_kernels.hopper_attention import HOPPER_WIDTHS, HopperPlan, attention_hopper
from steploom_kernels.hopper_attention import candidate_plans as hopper_plans

_VALUE = 2  # bytes, of half precision
_HEADS = 8
_TEXT = 77  # tokens
_ROWS = (12, 24, 3)
_LEVELS = UNET[:3]


def cases() -> Iterator[Case]:
    """Every level that attends, at all numbers of rows."""
    for rows in _ROWS:
        for index, level in enumerate(_LEVELS):
            rank = (index > 0) + (rows != _ROWS[0])
            for keys in (level.tokens, _TEXT):
                yield _attention(rows, level.tokens, keys, level.channels // _HEADS, rank)


def sweep() -> Iterator[Case]:
    """Every plan that might be the best, at the usual number of rows: what costs most first, the text last."""
    for index, level in enumerate(_LEVELS):
        width = level.channels // _HEADS
        for keys in (level.tokens, _TEXT):
            rank = len(_LEVELS) if keys == _TEXT else index
            usual = _attention(_ROWS[0], level.tokens, keys, width, rank)
            for plan in candidate_plans(width, keys):
                name = f"{plan.block_m}x{plan.block_n}, {plan.num_warps} warps, {plan.num_stages} stages"
                shape = f"{usual.shape}, {name}, {plan.polynomial}/8 by polynomial{', ahead' if plan.ahead else ''}"
                run = partial(attention_triton, plan=plan)
                yield replace(usual, op="attention_plan", shape=shape, run=run, rivals={})
        if width in HOPPER_WIDTHS:
            usual = _attention(_ROWS[0], level.tokens, level.tokens, width, index)
            for form in hopper_plans(width):
                run = partial(attention_hopper, plan=form)
                yield replace(usual, op="attention_plan", shape=f"{usual.shape}, {_hopper(form)}", run=run, rivals={})


def _hopper(plan: HopperPlan) -> str:
    beside = ("nothing", "sums", "scores")[plan.beside]
    words = [
        f"Hopper: {plan.programs} programs of {plan.groups} x {plan.warps} warps",
        f"{plan.block_n} keys, {plan.stages} stages, {beside} beside powers, parts {plan.k_parts} and {plan.v_parts}",
        *[f"{plan.polynomial}/8 by polynomial"] * (plan.polynomial > 0),
        *["queries shared"] * plan.q_shared,
        *["sums by products"] * plan.ones,
        *["one block each"] * (not plan.stays),
    ]
    return ", ".join(words)


def _attention(rows: int, queries: int, keys: int, width: int, rank: int) -> Case:
    """Queries, keys and values are slices of what one wide projection gave, or two where the keys are of the text."""

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        if queries == keys:
            wide = normal(device, generator, rows, queries, 3, _HEADS, width)
            return wide.unbind(2)
        wide = normal(device, generator, rows, keys, 2, _HEADS, width)
        return normal(device, generator, rows, queries, _HEADS, width), *wide.unbind(2)

    values = rows * _HEADS * width
    return Case(
        op="attention" if queries == keys else "attention_text",
        shape=f"{rows} x {queries} to {keys} x {_HEADS} heads of {width} fp16",
        make=make,
        run=attention,
        eager=_eager,
        reference=_reference,
        num_bytes=_VALUE * values * 2 * (queries + keys),
        flops=4 * values * queries * keys,
        tolerance=TOLERANCES[torch.float16],
        rank=rank,
        rivals=rivals.sdpa(),
    )


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    apart = (each.transpose(1, 2) for each in (q, k, v))
    return functional.scaled_dot_product_attention(next(apart), next(apart), next(apart)).transpose(1, 2)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Picture by picture: all scores at once, in double precision, would be tens of gigabytes."""
    pictures = zip(q, k, v, strict=True)
    return torch.stack([attention_reference(*(each[None].double() for each in triple))[0] for triple in pictures])
