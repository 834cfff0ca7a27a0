"""Bytes of pictures to the numbers that a VAE takes.

[h, w, 3] is the order of memory on both sides, so a picture is a run of bytes that becomes a run of numbers: a thread
reads 16 bytes and writes 32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steploom_kernels.checks import (
    NETWORK_TYPES,
    require_array,
    require_channels_last,
    require_dtype,
    require_indices,
    require_shape,
)
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl


def pixels_in(
    pixels: Tensor, dtype: torch.dtype = torch.float32, slots: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Pictures of bytes, 0 to 255, as numbers, -1 to 1, channels last in memory.

    Args:
        pixels: uint8 [pictures, h, w, 3].
        dtype: of the result: float16, bfloat16 or float32.
        slots: int32 or int64 [batch], which of the pictures, -1 for padding: a picture of zeros; or None for all.
        out: where to put them, or None for a new tensor.

    Returns:
        [batch, 3, h, w].

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(pixels):
        return pixels_in_triton(pixels, dtype, slots, out)
    numbers = pixels_in_reference(pixels, dtype, slots)
    return numbers if out is None else out.copy_(numbers)


def pixels_in_reference(pixels: Tensor, dtype: torch.dtype = torch.float32, slots: Tensor | None = None) -> Tensor:
    """`pixels_in` in plain torch, computed in float32."""
    if slots is not None:
        pixels = pixels[slots.clamp(min=0)]
    numbers = (pixels.to(torch.float32) / 127.5 - 1.0).to(dtype)
    if slots is not None:
        numbers[slots < 0] = 0.0
    # a permuted view of [batch, h, w, 3] is channels last already: nothing is moved
    return numbers.permute(0, 3, 1, 2)


_BLOCK = 4096  # values a program: 32 a thread


def pixels_in_triton(
    pixels: Tensor, dtype: torch.dtype = torch.float32, slots: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`pixels_in` as one launch."""
    require_array("pixels", pixels, [torch.uint8], None, None, None, 3)
    _, height, width, _ = pixels.shape
    if slots is not None:
        require_indices("slots", slots, None)
    batch, count = len(pixels if slots is None else slots), height * width * 3
    if out is None:
        shape = batch, 3, height, width
        out = torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=torch.channels_last)
    require_dtype("out", out, *NETWORK_TYPES)
    require_dtype("out", out, dtype)
    require_shape("out", out, batch, 3, height, width)
    require_channels_last("out", out)
    if batch:
        _pixels_in_kernel[(cdiv(count, _BLOCK), batch)](
            out, pixels, slots, count, by_slot=slots is not None, block=_BLOCK, num_warps=4
        )
    return out


@jit
def _pixels_in_kernel(
    out: tl.tensor,
    pixels: tl.tensor,
    slots: tl.tensor,
    count: tl.tensor,
    by_slot: tl.constexpr,
    block: tl.constexpr,
) -> None:
    item = tl.program_id(1)
    picture = tl.load(slots + item).to(tl.int64) if by_slot else item.to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    is_drawn = index < tl.where(picture >= 0, count, 0)  # nowhere in padding
    values = tl.load(pixels + picture * count + index, mask=is_drawn, other=0).to(tl.float32)
    # divided as the reference does, so that both give the same bits
    numbers = tl.where(is_drawn, tl.div_rn(values, 127.5) - 1.0, 0.0)
    tl.store(out + item.to(tl.int64) * count + index, numbers, mask=index < count)


def variants() -> list[Variant]:
    """The compiled forms: gathered by slot, and int32 indices."""
    return [
        Variant(
            name=f"pixels_in_{name}",
            kernel=_pixels_in_kernel,
            signature={
                "out": f"*{name}",
                "pixels": "*u8",
                "slots": "*i32",
                "count": "i32",
                "by_slot": "constexpr",
                "block": "constexpr",
            },
            constants={"by_slot": True, "block": _BLOCK},
            grid=("cdiv(count, block)", "batch", "1"),
            aligned=("out", "pixels", "count"),
        )
        for name in ("fp16", "bf16", "fp32")
    ]
