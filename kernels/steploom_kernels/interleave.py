"""Twice the size by nearest neighbours and a convolution of 3 x 3, as one of 2 x 2 whose four phases are interleaved.

Pixel (2 y + a, 2 x + b) of the large picture sees only 2 x 2 pixels of the small one, with sums of the 3 x 3 weights.
The kernels of all four phases (a, b), side by side, are one convolution over the small picture padded by one: 16/36 of
the operations, and the enlarged picture is never made. It leaves the phases of pixel (y, x) at (y + a, x + b). The pass
that puts them in their places reads each value that counts once: a program takes a tile of pixels by channels of one
line, in runs of whole 16-byte pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_channels_last, require_dtype, require_shape
from steploom_kernels.elementwise import BLOCKS, NUM_WARPS, flat_plan
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

_PHASES = 2  # of each axis
# Of each phase: which of three weights in a line count for each of the two pixels that it sees.
_SHARES = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def phase_weights(weight: Tensor) -> Tensor:
    """The weights of all phases, summed in float64 and rounded once.

    Args:
        weight: [out, in, 3, 3], of a convolution with stride 1 and padding 1 of a picture that was enlarged.

    Returns:
        [4 * out, in, 2, 2], of its type: of a convolution with stride 1 and padding 1 whose result `interleave` takes.

    Raises:
        ValueError: the weight is of another shape.
    """
    require_shape("weight", weight, None, None, 3, 3)
    exact = weight.detach().double()
    first, second = (exact.new_tensor(shares) for shares in _SHARES)
    pairs = [(down, right) for down in (first, second) for right in (first, second)]
    return torch.cat([torch.einsum("pk,ql,oikl->oipq", *pair, exact).to(weight.dtype) for pair in pairs])


def interleave(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The large picture of four phases: out[n, c, 2 y + a, 2 x + b] = x[n, (2 a + b) c_all + c, y + a, x + b].

    Args:
        x: [n, 4 * c_all, h + 1, w + 1], channels last in memory.
        out: [n, c_all, 2 * h, 2 * w], channels last, of the type of x; None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return interleave_triton(x, out=out)
    values = interleave_reference(x)
    return values if out is None else out.copy_(values)


def interleave_reference(x: Tensor) -> Tensor:
    """`interleave` in plain torch."""
    n, phases, height, width = x.shape
    channels = phases // _PHASES**2
    parts = x.permute(0, 2, 3, 1).reshape(n, height, width, _PHASES, _PHASES, channels)
    result = x.new_empty(n, height - 1, _PHASES, width - 1, _PHASES, channels)
    for a in range(_PHASES):
        for b in range(_PHASES):
            result[:, :, a, :, b] = parts[:, a : a + height - 1, b : b + width - 1, a, b]
    return result.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class Plan(NamedTuple):
    """How the work is cut."""

    pixels: int  # of a line, that a program takes
    channels: int
    num_warps: int


def interleave_triton(x: Tensor, *, out: Tensor | None = None, plan: Plan | None = None) -> Tensor:
    """`interleave` as one launch; another plan than the usual one is for measurements."""
    require_dtype("x", x, *NETWORK_TYPES)
    require_channels_last("x", x)
    n, phases, height, width = x.shape[0], x.shape[1], _PHASES * (x.shape[2] - 1), _PHASES * (x.shape[3] - 1)
    channels = phases // _PHASES**2
    if phases % _PHASES**2 or height < 0 or width < 0:
        raise ValueError(f"x is {list(x.shape)}, must be four phases of channels, of sides of at least 1")
    shape = (n, channels, height, width)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    require_shape("out", out, *shape)
    require_dtype("out", out, x.dtype)
    require_channels_last("out", out)
    if out.numel():
        plan = plan or _plan(out.numel(), channels)
        grid = (n * height * cdiv(width, plan.pixels) * cdiv(channels, plan.channels),)
        _interleave_kernel[grid](
            out, x, height, width, channels, block_pixels=plan.pixels, block_channels=plan.channels,
            num_warps=plan.num_warps,
        )  # fmt: skip
    return out


_LINE = 64  # values of a line of memory in half precision


def _plan(total: int, channels: int) -> Plan:
    """The tile of a program: the widest that divides the channels, so that no lane is idle, in bounds."""
    return _tile(flat_plan(total), channels, NUM_WARPS)


def _tile(values: int, channels: int, num_warps: int) -> Plan:
    few = 1 << (channels - 1).bit_length()  # an adapter's rank, say
    columns = max(min(_LINE, few), min(channels & -channels, BLOCKS[0]))
    return Plan(values // columns, columns, num_warps)


def candidate_plans(channels: int) -> list[Plan]:
    """Plans to measure for so many channels, the usual ones among them: two to eight pieces of 16 bytes a thread."""
    sizes = ((1024, 4), (2048, 4), (4096, 4), (2048, 8), (4096, 8), (8192, 8))
    return [_tile(values, channels, num_warps) for values, num_warps in sizes]


@jit
def _interleave_kernel(
    out: tl.tensor,
    x: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    strips = tl.cdiv(channels, block_channels)  # neighbours in a line run side by side
    tiles = tl.cdiv(width, block_pixels) * strips
    line, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    pixel = tile // strips * block_pixels + tl.arange(0, block_pixels)
    channel = tile % strips * block_channels + tl.arange(0, block_channels)
    inside = (pixel < width)[:, None] & (channel < channels)[None, :]
    picture, y = line // height, line % height
    # phase a of line y // 2 is at line y // 2 + a
    source = picture.to(tl.int64) * (height // 2 + 1) + y // 2 + y % 2
    first = x + source * ((width // 2 + 1) * 4 * channels) + y % 2 * 2 * channels
    # and phase b of pixel p // 2 at p // 2 + b, behind b times the channels: 4 (p // 2 + b) + b is 2 p + 3 b
    place = (2 * pixel + 3 * (pixel % 2))[:, None] * channels + channel[None, :]
    values = tl.load(first + place, mask=inside, other=0.0)
    into = out + line.to(tl.int64) * (width * channels)
    tl.store(into + pixel[:, None] * channels + channel[None, :], values, mask=inside)


# Channels of upsamplers: of Stable Diffusion's UNet and VAE, and of the embedded model's.
_WIDTHS = (1280, 640, 512, 256, 160, 96, 128, 64)


def variants() -> list[Variant]:
    """The compiled forms, one small and one large tile for each of the models' widths."""
    plans = dict.fromkeys(_plan(total, width) for width in _WIDTHS for total in (width, 2**25))
    return [_variant(dtype, plan) for dtype in ("fp16", "bf16", "fp32") for plan in plans]


def _variant(dtype: str, plan: Plan) -> Variant:
    constants = {"block_pixels": plan.pixels, "block_channels": plan.channels}
    return Variant(
        name=f"interleave_{dtype}_{plan.pixels}x{plan.channels}",
        kernel=_interleave_kernel,
        signature={
            "out": f"*{dtype}",
            "x": f"*{dtype}",
            "height": "i32",
            "width": "i32",
            "channels": "i32",
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        grid=("rows * height * cdiv(width, block_pixels) * cdiv(channels, block_channels)", "1", "1"),
        aligned=("out", "x", "channels"),
        num_warps=plan.num_warps,
    )
