"""The sum of two tensors and, where there is one, a bias of each channel, in one pass.

A residual's bias need not be added where the residual is made: it may wait for the next sum, and costs nothing there.
A program takes a tile of rows by channels, so that its threads have a few channels each and read the bias of these
alone; without a bias all values are one row, of which a program takes a piece.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels.checks import (
    NETWORK_TYPES,
    require_array,
    require_channels_last,
    require_contiguous,
    require_dtype,
    require_shape,
)
from steploom_kernels.elementwise import BLOCKS, NUM_WARPS, flat_plan, in_one_order, output_like
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl


def add(x: Tensor, y: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """x + y + bias, rounded once.

    Args:
        x: [n, c, h, w] channels last in memory, or [..., c] contiguous of any other number of axes; computed in
            float32.
        y: like x.
        bias: [c], contiguous, added to every pixel or row; None for nothing.
        out: like x; may be x or y itself. None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return add_triton(x, y, bias, out=out)
    values = add_reference(x, y, bias)
    return values if out is None else out.copy_(values)


def add_reference(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """`add` in plain torch; float64 is computed in float64."""
    total = x.to(torch.promote_types(x.dtype, torch.float32)) + y
    if bias is not None:
        total = total + (bias[:, None, None] if x.dim() == 4 else bias)
    return total.to(x.dtype)


def add_triton(x: Tensor, y: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """`add` as one launch."""
    width = _check(x, y, bias)
    out = output_like(x, out)
    total = x.numel()
    if not total:
        return out
    if bias is None:
        width = total
    plan = _plan(total, width)
    rows = total // width
    _add_kernel[(cdiv(width, plan.columns) * cdiv(rows, plan.rows),)](
        out, x, y, bias, rows, width, block_rows=plan.rows, block_columns=plan.columns, biased=bias is not None,
        num_warps=NUM_WARPS,
    )  # fmt: skip
    return out


def _check(x: Tensor, y: Tensor, bias: Tensor | None) -> int:
    """How many channels there are."""
    require_dtype("x", x, *NETWORK_TYPES)
    if x.dim() == 4:
        require_channels_last("x", x)
    else:
        require_contiguous("x", x)
    if not x.dim():
        raise ValueError("x must have an axis of channels")
    require_shape("y", y, *x.shape)
    require_dtype("y", y, x.dtype)
    if not in_one_order(x, y):
        raise ValueError(f"y must be laid out as x, its strides are {y.stride()} and not {x.stride()}")
    width = x.shape[1] if x.dim() == 4 else x.shape[-1]
    if bias is not None:
        require_array("bias", bias, NETWORK_TYPES, width)
    return width


class _Plan(NamedTuple):
    rows: int
    columns: int


_MIN_COLUMNS = 64  # a line of memory in half precision


def _plan(total: int, width: int) -> _Plan:
    """The tile of a program: the widest that divides the width, so that no lane is idle, in bounds."""
    tile = flat_plan(total)
    if width == total:
        return _Plan(1, tile)
    columns = max(_MIN_COLUMNS, min(width & -width, BLOCKS[0]))
    return _Plan(tile // columns, columns)


@jit
def _add_kernel(
    out: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    biased: tl.constexpr,
) -> None:
    tiles = tl.cdiv(width, block_columns)  # neighbours in a row run side by side
    row = (tl.program_id(0) // tiles).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = (tl.program_id(0) % tiles).to(tl.int64) * block_columns + tl.arange(0, block_columns)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    total = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if biased:
        # a tile of equal rows: each thread reads what its own columns need, from the cache, and exchanges nothing
        every_row = tl.zeros((block_rows, 1), tl.int32) + column[None, :]
        total += tl.load(bias + every_row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total, mask=inside)


# Channels of Stable Diffusion's UNet and of the embedded model.
_WIDTHS = (320, 640, 1280, 64, 96, 160)


def variants() -> list[Variant]:
    """The compiled forms: flat without a bias, which may be null then, and one for each tile of the models' widths."""
    flat = [(_Plan(1, block), False) for block in BLOCKS]
    # one tile small and one large for each width
    tiles = [(_plan(size, width), True) for width in _WIDTHS for size in (2 * width, 2**25)]
    return [_variant(dtype, *form) for dtype in ("fp16", "bf16", "fp32") for form in dict.fromkeys(flat + tiles)]


def _variant(dtype: str, plan: _Plan, biased: bool) -> Variant:
    pointers = dict.fromkeys(("out", "x", "y", "bias"), f"*{dtype}")
    constants = {"block_rows": plan.rows, "block_columns": plan.columns, "biased": biased}
    return Variant(
        name=f"add{'_bias' if biased else ''}_{dtype}_{plan.rows}x{plan.columns}",
        kernel=_add_kernel,
        signature={**pointers, "rows": "i32", "width": "i32", **dict.fromkeys(constants, "constexpr")},
        constants=constants,
        grid=("cdiv(width, block_columns) * cdiv(rows, block_rows)", "1", "1"),
        aligned=(*pointers, "width"),
        num_warps=NUM_WARPS,
    )
