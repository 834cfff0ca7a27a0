"""GELU, x times the normal distribution function, elementwise; exact, or by the hyperbolic tangent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steploom_kernels.elementwise import NUM_WARPS, elementwise_output, flat_plan, flat_variants
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

_TANH_FACTOR = math.sqrt(2.0 / math.pi)


def gelu(x: Tensor, *, tanh: bool = False, out: Tensor | None = None) -> Tensor:
    """x times the probability that a standard normal value is at most x (arXiv 1606.08415, section 2), elementwise.

    Args:
        x: any shape, contiguous or channels last; computed in float32.
        tanh: the paper's approximation by tanh, for networks that were trained with it.
        out: of the shape, type and layout of x; may be x itself. None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another type or layout.
    """
    if runs_on_triton(x):
        return gelu_triton(x, tanh=tanh, out=out)
    values = gelu_reference(x, tanh=tanh)
    return values if out is None else out.copy_(values)


def gelu_reference(x: Tensor, *, tanh: bool = False) -> Tensor:
    """`gelu` in plain torch; float64 is computed in float64."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if tanh:
        share = 0.5 * (1.0 + torch.tanh(_TANH_FACTOR * (wide + 0.044715 * wide**3)))
    else:
        share = 0.5 * torch.special.erfc(-wide * math.sqrt(0.5))
    return (wide * share).to(x.dtype)


def gelu_triton(x: Tensor, *, tanh: bool = False, out: Tensor | None = None) -> Tensor:
    """`gelu` as one launch."""
    out = elementwise_output(x, out)
    if x.numel():
        block = flat_plan(x.numel())
        grid = (cdiv(x.numel(), block),)
        _gelu_kernel[grid](x, out, x.numel(), tanh=tanh, block=block, num_warps=NUM_WARPS)
    return out


@jit
def _gelu_kernel(x: tl.tensor, out: tl.tensor, total: tl.tensor, tanh: tl.constexpr, block: tl.constexpr) -> None:
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < total
    values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + index, gelu_values(values, tanh), mask=inside)


@jit
def gelu_values(x: tl.tensor, tanh: tl.constexpr) -> tl.tensor:
    """Inside of a kernel: of float32 values."""
    if tanh:
        # (1 + tanh(z)) / 2 is the sigmoid of 2 z, and 2 sqrt(2 / pi) = 1.5957...
        return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    return x * _normal_distribution(x)


@jit
def _normal_distribution(x: tl.tensor) -> tl.tensor:
    """The probability that a standard normal value is at most x, from 2 to the power of a polynomial.

    The logarithm of the tail beyond |x| is so smooth that eight terms do for all of it. An error function has two
    branches and twice the instructions, enough to hold up a kernel that should wait for nothing but memory; and 1 + erf
    loses the tail's digits. Of x times the probability the error is at most 1.6e-7, and of the tail up to x = -6 a
    hundred-thousandth (least maximum of the larger of the two); beyond, the leading term leads to zero.
    """
    u = tl.abs(x)
    power = 1.7462265661208497e-06 + u * -1.575560524695697e-07
    power = 2.8919676579967597e-05 + u * power
    power = -0.0007776983786092134 + u * power
    power = 0.008120425480355544 + u * power
    power = -0.0534415004385979 + u * power
    power = -0.45879502368208325 + u * power
    power = -1.1511708970542691 + u * power
    tail = tl.exp2(-1.0 + u * power)
    return tl.where(x < 0.0, tail, 1.0 - tail)


@jit
def gelu_values_for_half(x: tl.tensor) -> tl.tensor:
    """Inside of a kernel: exact GELU in fewer instructions, for results that are rounded to half precision at once.

    Seven terms of the tail's logarithm: its error is at most 7e-6 of the tail as far as x = -6 (least maximum), where
    half precision rounds by 4.9e-4. An infinite x, which float32 holds only if what made it was not finite, gives not a
    number.
    """
    u = tl.abs(x)
    power = 6.07261335e-05 + u * -1.79377901e-06
    power = -0.000923185534 + u * power
    power = 0.00847684659 + u * power
    power = -0.0538909371 + u * power
    power = -0.458541585 + u * power
    power = -1.15121437 + u * power
    tail = tl.exp2(-1.0 + u * power)
    return tl.maximum(x, 0.0) - u * tail  # not a number if x is none: so is u


def variants() -> list[Variant]:
    """The compiled forms."""
    return [
        *flat_variants("gelu", _gelu_kernel, tanh=False),
        *flat_variants("gelu_tanh", _gelu_kernel, tanh=True),
    ]
