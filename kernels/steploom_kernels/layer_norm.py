"""Layer normalisation over the last axis, alone or with the addition of a vector or a residual before it.

A program holds a few whole rows in registers: every value is read once, and mean and then variance are taken of what
is held. Widths are no powers of two (320 is five times 64), so a row is held in parts that are: no lane is idle, and
as every part is spread over the threads in the same way, they are added up thread by thread. A row of a part lies
within one warp, which joins its sums without shared memory or a barrier. How a row is summed depends on its width
alone, never on how many rows there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_array, require_contiguous, require_dtype
from steploom_kernels.elementwise import output_like
from steploom_kernels.fp8 import as_bytes, codes_like, e4m3_codes, has_unit, quantise_reference
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

MAX_WIDTH = 8192  # more would not be held in registers


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    shift: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (arXiv 1607.06450, equation 4).

    Args:
        x: [..., width], contiguous, at most 8192 wide; computed in float32.
        weight: [width], contiguous.
        bias: [width], contiguous.
        eps: added to the variance.
        shift: [width], contiguous, added to every row of x before anything else, and not rounded; None for nothing.
        scale: above 0: the result is quantised by it in the same pass, see `fp8.quantise`; None for the type of x.
        out: like x; may be x itself. With a scale e4m3, of the shape of x. None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return layer_norm_triton(x, weight, bias, eps=eps, shift=shift, scale=scale, out=out)
    values = layer_norm_reference(x, weight, bias, eps=eps, shift=shift, scale=scale)
    return values if out is None else out.copy_(values)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """x + residual, and its `layer_norm`: of the sum as it is stored, so that fused and apart agree.

    Args:
        x: [..., width], contiguous, at most 8192 wide; computed in float32.
        residual: like x.
        weight: [width], contiguous.
        bias: [width], contiguous.
        eps: added to the variance.
        out: where to put the sum and the normalised sum, each like x; the sum may go into x or residual. None for new
            tensors.

    Returns:
        The sum and the normalised sum, both like x.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return add_layer_norm_triton(x, residual, weight, bias, eps=eps, out=out)
    values = add_layer_norm_reference(x, residual, weight, bias, eps=eps)
    return values if out is None else (out[0].copy_(values[0]), out[1].copy_(values[1]))


def layer_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    shift: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`layer_norm` in plain torch; float64 is computed in float64."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if shift is not None:
        wide = wide + shift.to(wide.dtype)
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    result = (centred * torch.rsqrt(variance + eps) * weight.to(wide.dtype) + bias.to(wide.dtype)).to(x.dtype)
    return result if scale is None else quantise_reference(result, scale)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """`add_layer_norm` in plain torch."""
    total = x + residual
    return total, layer_norm_reference(total, weight, bias, eps=eps)


def layer_norm_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    shift: Tensor | None = None,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`layer_norm` as one launch."""
    _check(x, weight, bias)
    if shift is not None:
        require_array("shift", shift, NETWORK_TYPES, x.shape[-1])
    out = output_like(x, out) if scale is None else codes_like(x, out)
    _launch(x, None, shift, weight, bias, eps, None, out, scale)
    return out


def add_layer_norm_triton(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`add_layer_norm` as one launch."""
    _check(x, weight, bias)
    require_array("residual", residual, [x.dtype], *x.shape)
    total, normed = out or (None, None)
    total, normed = output_like(x, total, "out's sum"), output_like(x, normed, "out's norm")
    _launch(x, residual, None, weight, bias, eps, total, normed)
    return total, normed


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    require_dtype("x", x, *NETWORK_TYPES)
    require_contiguous("x", x)
    if not x.dim() or not 0 < x.shape[-1] <= MAX_WIDTH:
        raise ValueError(f"x is {list(x.shape)}, its last axis must be 1 to {MAX_WIDTH}")
    require_array("weight", weight, NETWORK_TYPES, x.shape[-1])
    require_array("bias", bias, NETWORK_TYPES, x.shape[-1])


def _launch(
    x: Tensor,
    residual: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    total: Tensor | None,
    out: Tensor,
    scale: float | None = None,
) -> None:
    width = x.shape[-1]
    rows = x.numel() // width
    plan = _plan(width)
    if rows:
        _layer_norm_kernel[(cdiv(rows, plan.rows),)](
            out if scale is None else as_bytes(out), total, x, residual, shift, weight, bias, rows, width, eps,
            1.0 / (scale or 1.0), block_rows=plan.rows, columns=plan.columns, parts=plan.parts,
            is_sum=residual is not None, shifted=shift is not None, quantised=scale is not None, has_unit=has_unit(x),
            num_warps=_NUM_WARPS,
        )  # fmt: skip


class _Plan(NamedTuple):
    rows: int
    columns: int  # of a part
    parts: int


_NUM_WARPS = 4
_TILE = 1024  # values of a part: in half precision one read of 16 bytes by each of 128 threads
_WARP = 256  # values that one warp reads so
_MAX_PARTS = 8  # 64 values a thread


def _plan(width: int) -> _Plan:
    """How rows are cut, by the width alone: into parts that divide it, unless these are too short or too many."""
    columns = min(width & -width, _WARP)
    if columns < 32:
        columns = min(1 << (width - 1).bit_length(), _WARP)
    while cdiv(width, columns) > _MAX_PARTS:
        columns *= 2
    return _Plan(_TILE // columns, columns, cdiv(width, columns))


@jit
def _layer_norm_kernel(
    out: tl.tensor,
    total: tl.tensor,
    x: tl.tensor,
    residual: tl.tensor,
    shift: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    inverse: tl.tensor,
    block_rows: tl.constexpr,
    columns: tl.constexpr,
    parts: tl.constexpr,
    is_sum: tl.constexpr,
    shifted: tl.constexpr,
    quantised: tl.constexpr,
    has_unit: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    is_row = (row < rows)[:, None]
    column = tl.arange(0, columns)
    place = row[:, None] * width + column[None, :]
    # a tile of equal rows: each thread reads what its own columns need, from the cache, and exchanges nothing
    every_row = tl.zeros((block_rows, 1), tl.int32) + column[None, :]
    kept = ()
    sums = tl.zeros((block_rows, columns), tl.float32)
    for part in tl.static_range(parts):
        start = part * columns
        inside = is_row & (column < width - start)[None, :]
        values = tl.load(x + place + start, mask=inside, other=0.0)
        if is_sum:
            added = tl.load(residual + place + start, mask=inside, other=0.0)
            values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
            tl.store(total + place + start, values, mask=inside)
        values = values.to(tl.float32)
        if shifted:
            values += tl.load(shift + every_row + start, mask=inside, other=0.0).to(tl.float32)
        # a tuple, which Triton has where Python would have a list; it knows no starred item
        kept = kept + (values,)  # type: ignore[assignment]  # noqa: RUF005
        sums += kept[part]
    mean = tl.sum(sums, axis=1)[:, None] / width

    squares = tl.zeros((block_rows, columns), tl.float32)
    for part in tl.static_range(parts):
        centred = tl.where((column < width - part * columns)[None, :], kept[part] - mean, 0.0)
        squares += centred * centred
    factor = tl.rsqrt(tl.sum(squares, axis=1)[:, None] / width + eps)

    for part in tl.static_range(parts):
        start = part * columns
        inside = is_row & (column < width - start)[None, :]
        scale = tl.load(weight + every_row + start, mask=inside, other=0.0).to(tl.float32)
        offset = tl.load(bias + every_row + start, mask=inside, other=0.0).to(tl.float32)
        normed = (kept[part] - mean) * factor * scale + offset
        if quantised:  # of what would be stored: rounded, so that fused and apart agree
            rounded = normed.to(x.dtype.element_ty).to(tl.float32)
            tl.store(out + place + start, e4m3_codes(rounded * inverse, has_unit), mask=inside)
        else:
            tl.store(out + place + start, normed, mask=inside)


# Transformers of Stable Diffusion and of the embedded model.
_WIDTHS = (320, 640, 1280, 96, 160)


def variants() -> list[Variant]:
    """The compiled forms, one for each tile that the models' widths take: with a residual, with a shift, with neither;
    and the two without a residual in e4m3.

    Without a residual `total` and `residual` are not touched and may be null; without a shift `shift` may; `inverse` is
    read in e4m3 alone.
    """
    plans = dict.fromkeys(_plan(width) for width in _WIDTHS)
    forms = ((False, False), (True, False), (False, True))
    plain = [_variant(dtype, plan, *form) for dtype in ("fp16", "bf16", "fp32") for plan in plans for form in forms]
    eight = [
        _variant(dtype, plan, False, shifted, True)
        for dtype in ("fp16", "bf16")
        for plan in plans
        for shifted in (False, True)
    ]
    return [*plain, *eight]


def _variant(dtype: str, plan: _Plan, add: bool, shifted: bool, quantised: bool = False) -> Variant:
    pointers = dict.fromkeys(("out", "total", "x", "residual", "shift", "weight", "bias"), f"*{dtype}")
    if quantised:
        pointers["out"] = "*u8"
    constants = {
        "block_rows": plan.rows,
        "columns": plan.columns,
        "parts": plan.parts,
        "is_sum": add,
        "shifted": shifted,
        "quantised": quantised,
        "has_unit": quantised,
    }
    steps = f"{'add_' if add else ''}layer_norm{'_shift' if shifted else ''}{'_e4m3' if quantised else ''}"
    return Variant(
        name=f"{steps}_{dtype}_{plan.rows}x{plan.columns}x{plan.parts}",
        kernel=_layer_norm_kernel,
        signature={
            **pointers,
            "rows": "i32",
            "width": "i32",
            "eps": "fp32",
            "inverse": "fp32",
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        grid=("cdiv(rows, block_rows)", "1", "1"),
        aligned=(*pointers, "width"),
        num_warps=_NUM_WARPS,
        lowest=89 if quantised else 0,
    )
