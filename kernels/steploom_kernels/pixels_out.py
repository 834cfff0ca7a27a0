"""What a VAE gives to bytes of pictures.

A program makes a run of bytes in the order of the picture, [h, w, 3], so that a thread writes 16 at once. Where the
VAE's memory is channels last, numbers lie in that order too. Where it is contiguous they come from three planes, whose
lines the cache holds until each value in them has had its turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_array, require_dtype, require_shape
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl


def pixels_out(image: Tensor, out: Tensor | None = None) -> Tensor:
    """Numbers, -1 to 1 and clamped to it, as bytes of pictures, rounded to nearest, halves to even.

    Args:
        image: [batch, 3, h, w], channels last in memory or contiguous.
        out: where to put them, contiguous, or None for a new tensor.

    Returns:
        uint8 [batch, h, w, 3].

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(image):
        return pixels_out_triton(image, out)
    pixels = pixels_out_reference(image)
    return pixels if out is None else out.copy_(pixels)


def pixels_out_reference(image: Tensor) -> Tensor:
    """`pixels_out` in plain torch, computed in float32."""
    scaled = (image.to(torch.float32) * 127.5 + 127.5).clamp(0.0, 255.0).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_BLOCK = 4096  # values a program: 32 a thread


def pixels_out_triton(image: Tensor, out: Tensor | None = None) -> Tensor:
    """`pixels_out` as one launch.

    The same bytes as the reference's from half precision. From float32 a value halfway between two bytes may become
    either, since product and sum are rounded at once.
    """
    require_shape("image", image, None, 3, None, None)
    require_dtype("image", image, *NETWORK_TYPES)
    batch, _, height, width = image.shape
    is_planar = not image.is_contiguous(memory_format=torch.channels_last)
    if is_planar and not image.is_contiguous():
        raise ValueError(f"image must be channels last or contiguous, its strides are {image.stride()}")
    if out is None:
        out = torch.empty(batch, height, width, 3, dtype=torch.uint8, device=image.device)
    require_array("out", out, [torch.uint8], batch, height, width, 3)
    pixels = height * width
    if batch:
        _pixels_out_kernel[(cdiv(3 * pixels, _BLOCK), batch)](
            out, image, pixels, is_planar=is_planar, block=_BLOCK, num_warps=4
        )
    return out


@jit
def _pixels_out_kernel(
    out: tl.tensor,
    image: tl.tensor,
    pixels: tl.tensor,
    is_planar: tl.constexpr,
    block: tl.constexpr,
) -> None:
    first = tl.program_id(1).to(tl.int64) * (3 * pixels)
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < 3 * pixels
    source = index % 3 * pixels + index // 3 if is_planar else index
    value = tl.load(image + first + source, mask=inside, other=0.0).to(tl.float32)
    value = tl.clamp(value * 127.5 + 127.5, 0.0, 255.0)
    # from 2**23 on, float32 holds whole numbers only: the sum is rounded to one, halves to even
    rounded = (value + 8388608.0) - 8388608.0
    tl.store(out + first + index, rounded.to(tl.int32).to(tl.uint8), mask=inside)


def variants() -> list[Variant]:
    """The compiled forms, of both layouts."""
    return [
        Variant(
            name=f"pixels_out_{name}_{layout}",
            kernel=_pixels_out_kernel,
            signature={
                "out": "*u8",
                "image": f"*{name}",
                "pixels": "i32",
                "is_planar": "constexpr",
                "block": "constexpr",
            },
            constants={"is_planar": layout == "planar", "block": _BLOCK},
            grid=("cdiv(3 * pixels, block)", "batch", "1"),
            aligned=("out", "image", "pixels"),
        )
        for name in ("fp16", "bf16", "fp32")
        for layout in ("channels_last", "planar")
    ]
