"""GEGLU: one half of each row, gated by the GELU of the other half.

A program takes a tile of output and reads its two inputs, each a run of whole 16-byte pieces of a row. Nothing is kept
between: three values move for each that is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_array
from steploom_kernels.elementwise import NUM_WARPS
from steploom_kernels.fp8 import E4M3, as_bytes, e4m3_codes, has_unit, quantise_reference
from steploom_kernels.gelu import gelu_reference, gelu_values
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl


def geglu(x: Tensor, *, scale: float | None = None, out: Tensor | None = None) -> Tensor:
    """hidden * gelu(gate), where a row is (hidden, gate) (arXiv 2002.05202, equation 6, in the order of diffusers).

    Args:
        x: [rows, 2 * width], contiguous; computed in float32, the gate is not rounded between.
        scale: above 0: the result is quantised by it in the same pass, see `fp8.quantise`; None for the type of x.
        out: [rows, width], contiguous, of the type of x, with a scale e4m3; or None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return geglu_triton(x, scale=scale, out=out)
    values = geglu_reference(x, scale=scale)
    return values if out is None else out.copy_(values)


def geglu_reference(x: Tensor, *, scale: float | None = None) -> Tensor:
    """`geglu` in plain torch; float64 is computed in float64."""
    hidden, gate = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    result = (hidden * gelu_reference(gate)).to(x.dtype)
    return result if scale is None else quantise_reference(result, scale)


def geglu_triton(x: Tensor, *, scale: float | None = None, out: Tensor | None = None) -> Tensor:
    """`geglu` as one launch."""
    require_array("x", x, NETWORK_TYPES, None, None)
    rows, width = x.shape[0], x.shape[1] // 2
    if x.shape[1] % 2:
        raise ValueError(f"x has {x.shape[1]} columns, must be two halves")
    dtype = x.dtype if scale is None else E4M3
    if out is None:
        out = x.new_empty(rows, width, dtype=dtype)
    require_array("out", out, [dtype], rows, width)
    if out.numel():
        plan = _plan(width)
        grid = (cdiv(width, plan.columns) * cdiv(rows, plan.rows),)
        _geglu_kernel[grid](
            x, out if scale is None else as_bytes(out), rows, width, 1.0 / (scale or 1.0), block_rows=plan.rows,
            block_columns=plan.columns, quantised=scale is not None, has_unit=has_unit(x), num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


class _Plan(NamedTuple):
    rows: int
    columns: int


_TILE = 2048  # values written by a program: in half precision two loads of 16 bytes of each half a thread


def _plan(width: int) -> _Plan:
    """The tile of a program: the widest that divides the width, so that no lane is idle, in bounds."""
    columns = max(64, min(width & -width, 1024))
    return _Plan(_TILE // columns, columns)


@jit
def _geglu_kernel(
    x: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    inverse: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    quantised: tl.constexpr,
    has_unit: tl.constexpr,
) -> None:
    tiles = tl.cdiv(width, block_columns)  # neighbours in a row run side by side
    row = (tl.program_id(0) // tiles).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(0) % tiles * block_columns + tl.arange(0, block_columns)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = x + row[:, None] * (2 * width) + column[None, :]
    hidden = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    result = hidden * gelu_values(gate, False)
    if quantised:  # of what would be stored: rounded, so that fused and apart agree
        result = e4m3_codes(result.to(x.dtype.element_ty).to(tl.float32) * inverse, has_unit)
    tl.store(out + row[:, None] * width + column[None, :], result, mask=inside)


def variants() -> list[Variant]:
    """The compiled forms, one for each tile that the models' widths take; half precision also into e4m3, which alone
    reads `inverse`."""
    plans = dict.fromkeys(_plan(width) for width in _WIDTHS)
    plain = [_variant(dtype, plan) for dtype in ("fp16", "bf16", "fp32") for plan in plans]
    return [*plain, *(_variant(dtype, plan, True) for dtype in ("fp16", "bf16") for plan in plans)]


# Four times the channels of the transformers of Stable Diffusion, and of the embedded model.
_WIDTHS = (1280, 2560, 5120, 384, 640)


def _variant(dtype: str, plan: _Plan, quantised: bool = False) -> Variant:
    constants = {
        "block_rows": plan.rows,
        "block_columns": plan.columns,
        "quantised": quantised,
        "has_unit": quantised,
    }
    return Variant(
        name=f"geglu{'_e4m3' if quantised else ''}_{dtype}_{plan.rows}x{plan.columns}",
        kernel=_geglu_kernel,
        signature={
            "x": f"*{dtype}",
            "out": "*u8" if quantised else f"*{dtype}",
            "rows": "i32",
            "width": "i32",
            "inverse": "fp32",
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        grid=("cdiv(width, block_columns) * cdiv(rows, block_rows)", "1", "1"),
        aligned=("x", "out", "width"),
        num_warps=NUM_WARPS,
        lowest=89 if quantised else 0,
    )
