"""SiLU, x times its sigmoid, elementwise."""

from __future__ import annotations

import torch
from torch import Tensor

from steploom_kernels.elementwise import NUM_WARPS, elementwise_output, flat_plan, flat_variants
from steploom_kernels.jit import INTERPRETED, Variant, cdiv, constant, jit, runs_on_triton, tl

_SILU = constant(
    """{
    .reg .f32 t;
    mul.f32 t, $1, 0fBFB8AA3B;  // -log2(e)
    ex2.approx.ftz.f32 t, t;
    add.f32 t, t, 0f3F800000;  // 1
    rcp.approx.ftz.f32 t, t;
    mul.f32 $0, $1, t;
}"""
)


def silu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x / (1 + exp(-x)), elementwise (arXiv 1702.03118, equation 5).

    Args:
        x: any shape, contiguous or channels last; computed in float32.
        out: of the shape, type and layout of x; may be x itself. None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another type or layout.
    """
    if runs_on_triton(x):
        return silu_triton(x, out=out)
    values = silu_reference(x)
    return values if out is None else out.copy_(values)


def silu_reference(x: Tensor) -> Tensor:
    """`silu` in plain torch; float64 is computed in float64."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / (1.0 + torch.exp(-wide))).to(x.dtype)


def silu_triton(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`silu` as one launch."""
    out = elementwise_output(x, out)
    if x.numel():
        block = flat_plan(x.numel())
        _silu_kernel[(cdiv(x.numel(), block),)](x, out, x.numel(), block=block, num_warps=NUM_WARPS)
    return out


@jit
def _silu_kernel(x: tl.tensor, out: tl.tensor, total: tl.tensor, block: tl.constexpr) -> None:
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < total
    values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + index, silu_values(values), mask=inside)


@jit
def silu_values(x: tl.tensor) -> tl.tensor:
    """Inside of a kernel: of float32 values."""
    # far below zero exp(-x) is infinite and the quotient -0, as it should be
    if INTERPRETED:
        return x / (1.0 + tl.exp(-x))
    # What the units for powers and reciprocals give at once. A divisor of 1 or more needs none of the care for tiny and
    # huge ones that more than doubles the instructions.
    return tl.inline_asm_elementwise(_SILU, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


def variants() -> list[Variant]:
    """The compiled forms."""
    return flat_variants("silu", _silu_kernel)
