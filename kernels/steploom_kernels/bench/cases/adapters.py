"""Adapters' changes to a layer's result, with rows of several adapters and of none side by side."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from steploom_kernels.bench.case import TOLERANCES, Case
from steploom_kernels.bench.shapes import Place, normal, places
from steploom_kernels.gated_lora import gated_lora, gated_lora_reference, gated_up, gated_up_reference

_RANK = 16
_ADAPTERS = 2
_VALUE = 2  # bytes, of half precision


def cases() -> Iterator[Case]:
    """At an attention layer's projections, and at a convolution."""
    for place in places(transformers=True):
        yield _gated_lora(place)
        yield _gated_up(place)


def _chosen(rows: int) -> list[int]:
    """The adapter of each row; every third has none, and should cost nothing."""
    return [row % (_ADAPTERS + 1) - 1 if rows > 1 else 0 for row in range(rows)]


def _gates(device: torch.device, generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
    gates = torch.rand(rows, device=device, generator=generator)
    return gates, torch.tensor(_chosen(rows), dtype=torch.int32, device=device)


def _touched_values(place: Place) -> int:
    touched = sum(adapter >= 0 for adapter in _chosen(place.rows))
    return touched * place.level.tokens * place.level.channels


def _gated_lora(place: Place) -> Case:
    tokens, width = place.level.tokens, place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        y, x = (normal(device, generator, place.rows, tokens, width) for _ in range(2))
        down = normal(device, generator, _ADAPTERS, _RANK, width) * width**-0.5
        up = normal(device, generator, _ADAPTERS, width, _RANK) * 0.1
        return y, x, down, up, *_gates(device, generator, place.rows)

    def run(y: Tensor, x: Tensor, down: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> Tensor:
        gated_lora(y, x, down, up, gates, adapters)
        return y

    def eager(y: Tensor, x: Tensor, down: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> Tensor:
        index = adapters.clamp(min=0).long()
        strength = torch.where(adapters >= 0, gates, 0.0).to(y.dtype)[:, None, None]
        hidden = torch.bmm(x, down[index].mT) * strength
        return y.add_(torch.bmm(hidden, up[index].mT))

    def reference(y: Tensor, x: Tensor, down: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> Tensor:
        wide = y.double()
        gated_lora_reference(wide, x, down, up, gates, adapters, compute=torch.float64)
        return wide

    values = _touched_values(place)
    return Case(
        op="gated_lora",
        shape=f"{place.name()} rank {_RANK}",
        make=make,
        run=run,
        eager=eager,
        reference=reference,
        num_bytes=_VALUE * (3 * values + 2 * _ADAPTERS * _RANK * width),
        flops=2 * values * 2 * _RANK,
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
    )


def _gated_up(place: Place) -> Case:
    pixels, width = place.level.tokens, place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        y = normal(device, generator, place.rows, pixels, width)
        hidden = normal(device, generator, place.rows, pixels, _ADAPTERS * _RANK)
        up = normal(device, generator, _ADAPTERS, width, _RANK) * 0.1
        return y, hidden, up, *_gates(device, generator, place.rows)

    def run(y: Tensor, hidden: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> Tensor:
        gated_up(y, hidden, up, gates, adapters)
        return y

    def eager(y: Tensor, hidden: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> Tensor:
        index = adapters.clamp(min=0).long()
        strength = torch.where(adapters >= 0, gates, 0.0).to(y.dtype)[:, None, None]
        each = hidden.view(*hidden.shape[:2], _ADAPTERS, _RANK)
        own = torch.take_along_dim(each, index[:, None, None, None], dim=2)[:, :, 0]
        return y.add_(torch.bmm(own * strength, up[index].mT))

    def reference(y: Tensor, hidden: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> Tensor:
        wide = y.double()
        gated_up_reference(wide, hidden, up, gates, adapters, compute=torch.float64)
        return wide

    values = _touched_values(place)
    return Case(
        op="gated_up",
        shape=f"{place.name()} rank {_RANK}",
        make=make,
        run=run,
        eager=eager,
        reference=reference,
        num_bytes=_VALUE * (2 * values + values // width * _RANK + _ADAPTERS * _RANK * width),
        flops=2 * values * _RANK,
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank + 1,
    )
