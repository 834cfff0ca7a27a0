"""One thing to measure: an operation at one shape, what it computes and what it must move."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Any, ...]
Function = Callable[..., Any]  # of the inputs; gives a tensor, or several

# Largest ||out - exact|| / ||exact||. One rounding of the result is 2**-11, 2**-8 or 2**-24 at most, half of that on
# average; inner roundings add to it.
TOLERANCES = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5}
TYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class WrongResult(Exception):
    """A function did not compute what the reference computes."""


@dataclass(frozen=True)
class Rival:
    """Another implementation to hold the operation against."""

    run: Function
    prepare: Callable[..., Inputs] = lambda *inputs: inputs  # brings the inputs into its layout, outside of the timing
    is_same: bool = True  # computes the same function; else, say, an approximation, and its result is not checked


@dataclass(frozen=True)
class Case:
    """An operation at one shape.

    The functions take the inputs of `make` and return what they computed; one that works in place returns what it
    changed.
    """

    op: str
    shape: str  # for people: "12 x 64x64 x 320 fp16"
    make: Callable[[torch.device, torch.Generator], Inputs]
    run: Function  # the operation
    eager: Function  # the same in plain torch, as a model would write it; torch.compile gets it too
    reference: Function  # the same in higher precision
    num_bytes: int  # that must move: each input read once, each result written once
    tolerance: float
    flops: int = 0  # of the tensor cores
    rank: int = 3  # the lower, the earlier it is measured
    rivals: Mapping[str, Rival] = field(default_factory=dict)


def check(case: Case, result: Any, exact: Any, tolerance: float) -> float:
    """The largest relative error, ||out - exact|| / ||exact||, of all that a function returned.

    Raises:
        WrongResult: it is above the tolerance, or not a number, or shapes or the count of results differ.
    """
    found, wanted = _tensors(result), _tensors(exact)
    if [list(each.shape) for each in found] != [list(each.shape) for each in wanted]:
        shapes = [list(each.shape) for each in found], [list(each.shape) for each in wanted]
        raise WrongResult(f"{case.op} {case.shape}: shapes {shapes[0]}, must be {shapes[1]}")
    error = max(map(_error, found, wanted))
    if not error <= tolerance:  # also not a number
        raise WrongResult(f"{case.op} {case.shape}: relative error {error:.2g}, at most {tolerance:.2g}")
    return error


def _tensors(result: Any) -> Sequence[Tensor]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _error(result: Tensor, exact: Tensor) -> float:
    difference = float(torch.linalg.vector_norm(result.double() - exact.double()))
    size = float(torch.linalg.vector_norm(exact.double()))
    if size:
        return difference / size
    return math.inf if difference else 0.0


def poison(result: Any) -> None:
    """Fills memory of the size of a result with not-a-numbers and frees it: whoever asks next for as much will likely
    get it, and then what is not written shows."""
    for fresh in [torch.empty_like(each) for each in _tensors(result)]:
        fresh.fill_(math.nan if fresh.is_floating_point() else 85)
