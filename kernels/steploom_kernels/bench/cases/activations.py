"""What is between the layers: GEGLU in the transformers, sums, elementwise functions, changes of type and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.add import add, add_reference
from steploom_kernels.bench import rivals
from steploom_kernels.bench.case import TOLERANCES, Case
from steploom_kernels.bench.shapes import Place, normal, picture, places
from steploom_kernels.cast import cast, cast_reference
from steploom_kernels.geglu import geglu, geglu_reference
from steploom_kernels.gelu import gelu, gelu_reference
from steploom_kernels.silu import silu, silu_reference

_VALUE = 2  # bytes, of half precision
_EXPANSION = 4  # a feed-forward layer's width over the level's channels


def cases() -> Iterator[Case]:
    """GEGLU at the transformers, and the others at every level."""
    for place in places(transformers=True):
        yield _geglu(place)
    for place in places():
        yield _add(place)
        yield _elementwise(place, "silu", silu, functional.silu, silu_reference)
        yield _elementwise(place, "gelu", gelu, functional.gelu, gelu_reference)
        yield _to_channels_last(place)
        yield _to_half(place)


def _geglu(place: Place) -> Case:
    tokens, width = place.rows * place.level.tokens, _EXPANSION * place.level.channels

    def eager(x: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, dim=-1)
        return hidden * functional.gelu(gate)

    return Case(
        op="geglu",
        shape=place.name(),
        make=lambda device, generator: (normal(device, generator, tokens, 2 * width),),
        run=geglu,
        eager=eager,
        reference=lambda x: geglu_reference(x.double()),
        num_bytes=_VALUE * 3 * tokens * width,
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
        rivals=rivals.liger_geglu(),
    )


def _add(place: Place) -> Case:
    """A residual sum that takes a waiting bias along."""
    channels = place.level.channels

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        return *(picture(device, generator, place) for _ in range(2)), normal(device, generator, channels)

    return Case(
        op="add_bias",
        shape=place.name(),
        make=make,
        run=add,
        eager=lambda x, y, bias: x + y + bias[:, None, None],
        reference=lambda *inputs: add_reference(*(each.double() for each in inputs)),
        num_bytes=_VALUE * (3 * _values(place) + channels),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank,
    )


def _elementwise(
    place: Place,
    op: str,
    run: Callable[[Tensor], Tensor],
    eager: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
) -> Case:
    return Case(
        op=op,
        shape=place.name(),
        make=lambda device, generator: (picture(device, generator, place),),
        run=run,
        eager=eager,
        reference=lambda x: reference(x.double()),
        num_bytes=_VALUE * 2 * _values(place),
        tolerance=TOLERANCES[torch.float16],
        rank=place.rank + 1,
    )


def _to_channels_last(place: Place) -> Case:
    return Case(
        op="cast_channels_last",
        shape=place.name(),
        make=lambda device, generator: (picture(device, generator, place).contiguous(),),
        run=lambda x: cast(x, memory_format=torch.channels_last),
        eager=lambda x: x.to(memory_format=torch.channels_last),
        reference=lambda x: cast_reference(x, memory_format=torch.channels_last),
        num_bytes=_VALUE * 2 * _values(place),
        tolerance=0.0,
        rank=place.rank + 1,
    )


def _to_half(place: Place) -> Case:
    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor]:
        level = place.level
        return (normal(device, generator, place.rows, level.tokens, level.channels, dtype=torch.float32),)

    return Case(
        op="cast_to_half",
        shape=place.name(),
        make=make,
        run=lambda x: cast(x, torch.float16),
        eager=lambda x: x.half(),
        reference=lambda x: cast_reference(x, torch.float16),
        num_bytes=(4 + _VALUE) * _values(place),
        tolerance=0.0,
        rank=place.rank + 1,
    )


def _values(place: Place) -> int:
    return place.rows * place.level.tokens * place.level.channels
