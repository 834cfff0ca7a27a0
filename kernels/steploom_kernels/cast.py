"""Type and layout of a tensor changed in one pass: float types, contiguous to channels last and back.

Where only the type changes, values keep their order and a program takes a flat run of them. Where the layout changes, a
program takes a tile of pixels by channels of one picture and transposes it in shared memory on the way, so that both
sides are read and written in whole runs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_dtype, require_shape
from steploom_kernels.elementwise import BLOCKS, NUM_WARPS, flat_plan, in_one_order, is_channels_last, require_dense
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl


def cast(
    x: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """A copy of x of another type, or layout, or both; rounded to nearest even.

    Args:
        x: any shape, contiguous or channels last.
        dtype: float16, bfloat16 or float32; None for that of x.
        memory_format: preserve_format, contiguous_format, or channels_last for four axes.
        out: of the shape of x, of this type and layout; None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return cast_triton(x, dtype, memory_format, out=out)
    values = cast_reference(x, dtype, memory_format)
    return values if out is None else out.copy_(values)


def cast_reference(
    x: Tensor, dtype: torch.dtype | None = None, memory_format: torch.memory_format = torch.preserve_format
) -> Tensor:
    """`cast` in plain torch."""
    return x.to(dtype=dtype or x.dtype, memory_format=memory_format, copy=True)


def cast_triton(
    x: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """`cast` as one launch."""
    dtype = dtype or x.dtype
    require_dtype("x", x, *NETWORK_TYPES)
    require_dense("x", x)
    if dtype not in NETWORK_TYPES:
        raise ValueError(f"dtype is {dtype}, must be {' or '.join(map(str, NETWORK_TYPES))}")
    if memory_format is torch.preserve_format:
        memory_format = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    out = _output(x, dtype, memory_format, out)
    if x.numel() and in_one_order(x, out):
        block = flat_plan(x.numel())
        _cast_kernel[(cdiv(x.numel(), block),)](x, out, x.numel(), block=block, num_warps=NUM_WARPS)
    elif x.numel():
        _transpose(x, out)
    return out


def _output(x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format, out: Tensor | None) -> Tensor:
    if memory_format is torch.channels_last and x.dim() != 4:
        raise ValueError(f"x is {list(x.shape)}, channels last takes [n, c, h, w]")
    if out is None:
        return torch.empty_like(x, dtype=dtype, memory_format=memory_format)
    require_shape("out", out, *x.shape)
    require_dtype("out", out, dtype)
    if not out.is_contiguous(memory_format=memory_format):
        raise ValueError(f"out must be of {memory_format}, its strides are {out.stride()}")
    return out


def _transpose(x: Tensor, out: Tensor) -> None:
    rows, channels, height, width = x.shape
    plan = _plan(channels)
    _transpose_kernel[(cdiv(height * width, plan.pixels), cdiv(channels, plan.channels), rows)](
        x, out, height * width, to_channels_last=is_channels_last(out), channels=channels,
        block_pixels=plan.pixels, block_channels=plan.channels, num_warps=NUM_WARPS,
    )  # fmt: skip


class _Plan(NamedTuple):
    pixels: int
    channels: int


_TILE = 4096  # values of a program: in half precision four reads and four writes of 16 bytes a thread


def _plan(channels: int) -> _Plan:
    """The tile of a program: runs of 128 bytes on both sides in half precision, where there are so many channels."""
    block = min(1 << (channels - 1).bit_length(), 64)
    return _Plan(_TILE // block, block)


@jit
def _cast_kernel(x: tl.tensor, out: tl.tensor, total: tl.tensor, block: tl.constexpr) -> None:
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < total
    tl.store(out + index, tl.load(x + index, mask=inside, other=0.0).to(out.dtype.element_ty), mask=inside)


@jit
def _transpose_kernel(
    x: tl.tensor,
    out: tl.tensor,
    pixels: tl.tensor,
    to_channels_last: tl.constexpr,
    channels: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    picture = tl.program_id(2).to(tl.int64) * channels * pixels
    planes = channel[None, :] * pixels + pixel[:, None]
    points = pixel[:, None] * channels + channel[None, :]
    if to_channels_last:
        values = tl.load(x + picture + planes, mask=inside, other=0.0)
        tl.store(out + picture + points, values.to(out.dtype.element_ty), mask=inside)
    else:
        values = tl.load(x + picture + points, mask=inside, other=0.0)
        tl.store(out + picture + planes, values.to(out.dtype.element_ty), mask=inside)


_PAIRS = (("fp32", "fp16"), ("fp16", "fp32"), ("fp32", "bf16"), ("bf16", "fp32"))


def variants() -> list[Variant]:
    """The compiled forms: between float32 and half precision, and latents from float32 planes and back to them."""
    return [
        *(_cast_variant(source, target, block) for source, target in _PAIRS for block in BLOCKS),
        *(_transpose_variant(source, target, channels) for source, target in _PAIRS for channels in (4, 8)),
    ]


def _cast_variant(source: str, target: str, block: int) -> Variant:
    return Variant(
        name=f"cast_{source}_{target}_{block}",
        kernel=_cast_kernel,
        signature={"x": f"*{source}", "out": f"*{target}", "total": "i32", "block": "constexpr"},
        constants={"block": block},
        grid=("cdiv(total, block)", "1", "1"),
        aligned=("x", "out", "total"),
        num_warps=NUM_WARPS,
    )


def _transpose_variant(source: str, target: str, channels: int) -> Variant:
    plan = _plan(channels)
    constants = {
        "to_channels_last": source == "fp32",
        "channels": channels,
        "block_pixels": plan.pixels,
        "block_channels": plan.channels,
    }
    return Variant(
        name=f"transpose_{source}_{target}_{channels}",
        kernel=_transpose_kernel,
        signature={
            "x": f"*{source}",
            "out": f"*{target}",
            "pixels": "i32",
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        grid=("cdiv(pixels, block_pixels)", "cdiv(channels, block_channels)", "rows"),
        aligned=("x", "out", "pixels"),
        num_warps=NUM_WARPS,
    )
