"""Group normalisation of channels-last pictures, of one or two side by side, with a shift before and SiLU after.

Channels last, a group of ten channels is twenty bytes in each pixel. Programs therefore take runs of whole groups, as
many as nearly fill a power of two (twelve groups of ten channels are 120 of 128 lanes), so that each pixel is read in
one run that starts at a multiple of 16 bytes. Sums are kept by channel until the last pixel, and only then joined by
group.

Small pictures take one launch: a program reads its run of all pixels, and again to normalise it, then from the cache
of its multiprocessor. Others take two. The first writes mean and sum of squared deviations of each chunk of pixels;
the second joins the chunks (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979), which is so little work that each of its programs does it again, and normalises from the last
picture to the first, because what was read last is still in the cache. The time embedding of a resnet costs no pass:
its addition moves the means, and what the means are taken off is x without it.

Two pictures side by side are normalised as their concatenation would be, which is never made: each lane reads the one
that its channel is of. As the border is a multiple of 16 bytes, no piece of 16 bytes is of both.

Sums are of deviations from one of the values, the first pixel's. So the sum of squares exceeds the one around the
mean by no more than a factor of the number of pixels, and a mean far from zero costs no digits. Neither form nor
chunks depend on the number of pictures: a picture's result is the same in any batch, bit for bit.
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
from steploom_kernels.elementwise import output_like
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl
from steploom_kernels.silu import silu_reference, silu_values

MAX_GROUP_CHANNELS = 4096
MAX_ROWS = 65535  # the third side of CUDA's grid


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Normalised over pixels and the channels of a group, then times weight plus bias (arXiv 1803.08494, equation 1).

    Args:
        x: [n, c, h, w] channels last in memory, or [n, tokens, c] contiguous; computed in float32. With `beside` c is,
            for the other arguments and the result, the sum of both.
        weight: [c], contiguous.
        bias: [c], contiguous.
        groups: into how many the channels are cut.
        eps: added to the variance.
        silu: apply SiLU to the result.
        shift: [n, c], added to every pixel of x before anything else, and not rounded; None for nothing. Its rows may
            be any number of values apart: the same one again (0, as `expand` makes them), or parts of longer rows.
        beside: like x, but for the number of channels, which come after those of x; groups may span the border. The
            channels of x are then a multiple of 8. None for nothing.
        out: like x, with all channels; may be x itself where nothing is beside it. None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return group_norm_triton(x, weight, bias, groups, eps=eps, silu=silu, shift=shift, beside=beside, out=out)
    values = group_norm_reference(x, weight, bias, groups, eps=eps, silu=silu, shift=shift, beside=beside)
    return values if out is None else out.copy_(values)


def group_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    """`group_norm` in plain torch; float64 is computed in float64."""
    if beside is not None:
        x = torch.cat([x, beside], dim=2 if x.dim() == 3 else 1)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    last = wide if x.dim() == 3 else wide.permute(0, 2, 3, 1)  # [n, pixels..., c]
    values = last.reshape(len(x), -1, groups, last.shape[-1] // groups)
    if shift is not None:
        values = values + shift.to(wide.dtype).view(len(x), 1, groups, -1)
    centred = values - values.mean(dim=(1, 3), keepdim=True)
    variance = centred.square().mean(dim=(1, 3), keepdim=True)
    values = (centred * torch.rsqrt(variance + eps)).view(last.shape)
    values = values * weight.to(wide.dtype) + bias.to(wide.dtype)
    if silu:
        values = silu_reference(values)
    return (values if x.dim() == 3 else values.permute(0, 3, 1, 2)).to(x.dtype)


def group_norm_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`group_norm` as one launch for a small picture, as two for a larger one."""
    shape = _check(x, weight, bias, groups, shift, beside)
    out = output_like(x, out) if beside is None else _joined_output(x, shape.channels, out)
    if not out.numel():
        return out
    plan = _plan(shape.pixels, shape.channels, groups)
    if isinstance(plan, _Whole):
        _launch_whole(plan, shape, out, x, beside, weight, bias, shift, eps, silu)
    else:
        _launch_split(plan, shape, out, x, beside, weight, bias, shift, eps, silu)
    return out


class _Shape(NamedTuple):
    rows: int
    pixels: int
    channels: int
    groups: int
    border: int  # channels of x where another is beside it, else 0


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, shift: Tensor | None, beside: Tensor | None) -> _Shape:
    require_dtype("x", x, *NETWORK_TYPES)
    _require_layout("x", x)
    rows, pixels, channels = _sizes(x)
    border = 0
    if beside is not None:
        border, channels = channels, channels + _channels_beside(x, beside)
    if rows > MAX_ROWS or pixels * channels >= 2**31:
        raise ValueError(f"x is {list(x.shape)}, must be at most {MAX_ROWS} pictures of less than 2**31 values")
    if groups < 1 or channels % groups or channels // groups > MAX_GROUP_CHANNELS:
        raise ValueError(f"groups is {groups}, must cut {channels} channels into at most {MAX_GROUP_CHANNELS} each")
    require_array("weight", weight, NETWORK_TYPES, channels)
    require_array("bias", bias, NETWORK_TYPES, channels)
    if shift is not None:
        require_shape("shift", shift, rows, channels)
        require_dtype("shift", shift, *NETWORK_TYPES)
        if channels > 1 and shift.stride(1) != 1:
            raise ValueError(f"shift must hold a row's values side by side, its strides are {shift.stride()}")
    return _Shape(rows, pixels, channels, groups, border)


def _require_layout(name: str, tensor: Tensor) -> None:
    if tensor.dim() == 3:
        require_contiguous(name, tensor)
    else:
        require_channels_last(name, tensor)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Pictures, pixels and channels."""
    if x.dim() == 3:
        return x.shape[0], x.shape[1], x.shape[2]
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _channels_beside(x: Tensor, beside: Tensor) -> int:
    axis = 2 if x.dim() == 3 else 1
    wanted: list[int | None] = list(x.shape)
    wanted[axis] = None
    require_shape("beside", beside, *wanted)
    require_dtype("beside", beside, x.dtype)
    _require_layout("beside", beside)
    if x.shape[axis] % _PIECE:
        raise ValueError(f"x has {x.shape[axis]} channels, must be a multiple of {_PIECE} where another is beside it")
    return beside.shape[axis]


def _joined_output(x: Tensor, channels: int, out: Tensor | None) -> Tensor:
    shape = (*x.shape[:2], channels) if x.dim() == 3 else (x.shape[0], channels, *x.shape[2:])
    if out is None:
        order = torch.contiguous_format if x.dim() == 3 else torch.channels_last
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=order)
    require_shape("out", out, *shape)
    require_dtype("out", out, x.dtype)
    _require_layout("out", out)
    return out


class _Run(NamedTuple):
    """Neighbouring groups that a program takes."""

    groups: int
    width: int  # their channels, rounded up to a power of two


class _Whole(NamedTuple):
    """One launch: a program takes a run of groups of every pixel of a picture."""

    run: _Run
    step: int  # pixels that a program adds up at a time
    steps: int  # whose reads are on their way at once
    pixels: int  # of a picture, rounded up to a power of two
    apply: int  # pixels that a program normalises at a time


class _Split(NamedTuple):
    """Two launches: moments of chunks of pixels, then the normalisation."""

    run: _Run
    step: int  # pixels that a program of the first launch adds up at a time
    steps: int  # whose reads are on their way at once
    chunk: int  # pixels that it takes
    chunks: int  # of a picture, rounded up to a power of two
    channels: int  # that a program of the second launch takes: they need not be whole groups
    pixels: int  # that it takes
    touched: int  # groups that its channels are of, at most, rounded up to a power of two


# Tiles in values, for programs of 128 threads. In half precision a thread reads eight at once.
_NUM_WARPS = 4
_STEP_TILE = 1024  # one read a thread, so a thread keeps as few sums as it can
_READ_TILE = 16384  # 16 reads a thread on their way: few programs of the first launch fill the memory's pipeline
_APPLY_TILE = 8192  # the second launch keeps them until mean and variance are known
_WHOLE_TILE = 16384  # a picture's run this large is read a second time from the multiprocessor's own cache
_WHOLE_APPLY_TILE = 4096
_MAX_WIDTH = 256
_MAX_CHUNKS = 128
_PIECE = 8  # values of half precision in 16 bytes


def _plan(pixels: int, channels: int, groups: int) -> _Whole | _Split:
    """The form of the launch, by the picture alone and never by how many there are."""
    padded = _power_of_two(pixels)
    if padded * max(32, _power_of_two(channels // groups)) <= _WHOLE_TILE:
        run = _run(channels, groups, min(_MAX_WIDTH, _WHOLE_TILE // padded))
        return _Whole(run, *_steps(run, padded), padded, min(padded, max(1, _WHOLE_APPLY_TILE // run.width)))
    run = _run(channels, groups, _MAX_WIDTH)
    step, steps = _steps(run, padded)
    chunk = step * steps
    while cdiv(pixels, chunk) > _MAX_CHUNKS:
        chunk *= 2
    block = _channel_block(channels)
    return _Split(
        run,
        step,
        steps,
        chunk,
        chunks=_power_of_two(cdiv(pixels, chunk)),
        channels=block,
        pixels=_APPLY_TILE // block,
        touched=_touched(channels, groups, block),
    )


def _steps(run: _Run, padded: int) -> tuple[int, int]:
    """Pixels a step, and steps at once, both powers of two."""
    step = min(padded, max(1, _STEP_TILE // run.width))
    return step, min(padded // step, max(1, _READ_TILE // (step * run.width)))


def _run(channels: int, groups: int, max_width: int) -> _Run:
    """The run that leaves the fewest lanes idle, of those that start at multiples of 16 bytes if there are any."""
    a_group = channels // groups
    width = max(32, _power_of_two(a_group))
    widths = [width]
    while widths[-1] < max_width:
        widths.append(2 * widths[-1])
    runs = [_widest(width, a_group, groups) for width in widths]

    def merit(run: _Run) -> tuple[bool, float, bool, int]:
        lanes = cdiv(groups, run.groups) * run.width
        return _is_aligned(run.groups, a_group, groups), channels / lanes, run.width <= 128, run.width

    return max(runs, key=merit)


def _widest(width: int, a_group: int, groups: int) -> _Run:
    """As many groups as fit, or as fit and keep every run aligned, if any do."""
    most = min(groups, width // a_group)
    aligned = (count for count in range(most, 0, -1) if _is_aligned(count, a_group, groups))
    return _Run(next(aligned, most), width)


def _is_aligned(count: int, a_group: int, groups: int) -> bool:
    """Whether runs of so many groups all start at multiples of 16 bytes in half precision: the only one, or by size."""
    return count == groups or count * a_group % _PIECE == 0


def _channel_block(channels: int) -> int:
    """The largest power of two that divides the channels, so that no lane is idle, if it makes a run of 64 bytes."""
    block = min(channels & -channels, _MAX_WIDTH)
    return block if block >= 32 else min(64, _power_of_two(channels))


def _touched(channels: int, groups: int, block: int) -> int:
    """Groups that a block of channels has a part in, at most, rounded up to a power of two."""
    a_group = channels // groups
    starts = range(0, channels, block)
    most = max((min(start + block, channels) - 1) // a_group - start // a_group + 1 for start in starts)
    return _power_of_two(most)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _launch_whole(
    plan: _Whole,
    shape: _Shape,
    out: Tensor,
    x: Tensor,
    beside: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    eps: float,
    silu: bool,
) -> None:
    _whole_kernel[(cdiv(shape.groups, plan.run.groups), shape.rows)](
        out, x, beside, weight, bias, shift, _row_stride(shift), shape.pixels, eps, num_warps=_NUM_WARPS,
        **_whole_constants(plan, shape.channels, shape.groups, shape.border, silu, shift is not None),
    )  # fmt: skip


def _launch_split(
    plan: _Split,
    shape: _Shape,
    out: Tensor,
    x: Tensor,
    beside: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    eps: float,
    silu: bool,
) -> None:
    rows, pixels, channels, groups, border = shape
    chunks, shifted = cdiv(pixels, plan.chunk), shift is not None
    moments = torch.empty(2, rows, groups, chunks, dtype=torch.float32, device=x.device)
    _moments_kernel[(cdiv(groups, plan.run.groups), chunks, rows)](
        moments, x, beside, shift, _row_stride(shift), rows, pixels, num_warps=_NUM_WARPS,
        **_moments_constants(plan, channels, groups, border, shifted),
    )  # fmt: skip
    _apply_kernel[(cdiv(channels, plan.channels), cdiv(pixels, plan.pixels), rows)](
        out, x, beside, weight, bias, shift, moments, _row_stride(shift), rows, pixels, eps, num_warps=_NUM_WARPS,
        **_apply_constants(plan, channels, groups, border, silu, shifted),
    )  # fmt: skip


def _row_stride(shift: Tensor | None) -> int:
    return 0 if shift is None else shift.stride(0)


def _whole_constants(
    plan: _Whole, channels: int, groups: int, border: int, silu: bool, shifted: bool
) -> dict[str, int]:
    return {
        "channels": channels,
        "groups": groups,
        "border": border,
        "run": plan.run.groups,
        "padded_run": _power_of_two(plan.run.groups),
        "width": plan.run.width,
        "step_pixels": plan.step,
        "steps": plan.steps,
        "padded_pixels": plan.pixels,
        "apply_pixels": plan.apply,
        "silu": silu,
        "shifted": shifted,
    }


def _moments_constants(plan: _Split, channels: int, groups: int, border: int, shifted: bool) -> dict[str, int]:
    return {
        "channels": channels,
        "groups": groups,
        "border": border,
        "run": plan.run.groups,
        "padded_run": _power_of_two(plan.run.groups),
        "width": plan.run.width,
        "step_pixels": plan.step,
        "steps": plan.steps,
        "chunk_pixels": plan.chunk,
        "shifted": shifted,
    }


def _apply_constants(
    plan: _Split, channels: int, groups: int, border: int, silu: bool, shifted: bool
) -> dict[str, int]:
    return {
        "channels": channels,
        "groups": groups,
        "border": border,
        "chunk_pixels": plan.chunk,
        "padded_chunks": plan.chunks,
        "block_channels": plan.channels,
        "block_pixels": plan.pixels,
        "touched": plan.touched,
        "silu": silu,
        "shifted": shifted,
    }


@jit
def _whole_kernel(
    out: tl.tensor,
    x: tl.tensor,
    beside: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    shift_row: tl.tensor,
    pixels: tl.tensor,
    eps: tl.tensor,
    channels: tl.constexpr,
    groups: tl.constexpr,
    border: tl.constexpr,
    run: tl.constexpr,
    padded_run: tl.constexpr,
    width: tl.constexpr,
    step_pixels: tl.constexpr,
    steps: tl.constexpr,
    padded_pixels: tl.constexpr,
    apply_pixels: tl.constexpr,
    silu: tl.constexpr,
    shifted: tl.constexpr,
) -> None:
    a_group: tl.constexpr = channels // groups
    row = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, width)
    channel = tl.program_id(0) * (run * a_group) + lane
    is_channel = (lane < run * a_group) & (channel < channels)
    picture = row * pixels * channels
    group = tl.arange(0, padded_run)
    which = tl.minimum(lane // a_group, padded_run - 1)
    scale, offset, added = _of_channels(weight, bias, shift, row * shift_row + channel, channel, is_channel, shifted)
    mean, m2 = _moments(
        x, beside, row, added, channel, is_channel, which, group, 0, pixels,
        channels, border, a_group, width, step_pixels, steps, padded_pixels,
    )  # fmt: skip
    factor = tl.rsqrt(m2 / (a_group * pixels) + eps)
    centre, slope = tl.gather(mean, which, 0) - added, scale * tl.gather(factor, which, 0)
    for start in range(0, padded_pixels, apply_pixels):
        pixel = start + tl.arange(0, apply_pixels)
        inside = (pixel < pixels)[:, None] & is_channel[None, :]
        place = picture + pixel[:, None] * channels + channel[None, :]
        source = _places(x, beside, row, pixels, pixel, channel, channels, border) if border else x + place
        values = tl.load(source, mask=inside, other=0.0)  # again, from the cache of the multiprocessor
        tl.store(out + place, _normalised(values, centre, slope, offset, silu), mask=inside)


@jit
def _moments_kernel(
    moments: tl.tensor,
    x: tl.tensor,
    beside: tl.tensor,
    shift: tl.tensor,
    shift_row: tl.tensor,
    rows: tl.tensor,
    pixels: tl.tensor,
    channels: tl.constexpr,
    groups: tl.constexpr,
    border: tl.constexpr,
    run: tl.constexpr,
    padded_run: tl.constexpr,
    width: tl.constexpr,
    step_pixels: tl.constexpr,
    steps: tl.constexpr,
    chunk_pixels: tl.constexpr,
    shifted: tl.constexpr,
) -> None:
    a_group: tl.constexpr = channels // groups
    row = tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, width)
    channel = tl.program_id(0) * (run * a_group) + lane
    is_channel = (lane < run * a_group) & (channel < channels)
    group = tl.arange(0, padded_run)
    which = tl.minimum(lane // a_group, padded_run - 1)
    added = _added(shift, row * shift_row + channel, is_channel, shifted)
    mean, m2 = _moments(
        x, beside, row, added, channel, is_channel, which, group, tl.program_id(1) * chunk_pixels, pixels,
        channels, border, a_group, width, step_pixels, steps, chunk_pixels,
    )  # fmt: skip
    group += tl.program_id(0) * run
    is_group = (tl.arange(0, padded_run) < run) & (group < groups)
    slot = (row * groups + group) * tl.num_programs(1) + tl.program_id(1)
    tl.store(moments + slot, mean, mask=is_group)
    tl.store(moments + rows * groups * tl.num_programs(1) + slot, m2, mask=is_group)


@jit
def _apply_kernel(
    out: tl.tensor,
    x: tl.tensor,
    beside: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    moments: tl.tensor,
    shift_row: tl.tensor,
    rows: tl.tensor,
    pixels: tl.tensor,
    eps: tl.tensor,
    channels: tl.constexpr,
    groups: tl.constexpr,
    border: tl.constexpr,
    chunk_pixels: tl.constexpr,
    padded_chunks: tl.constexpr,
    block_channels: tl.constexpr,
    block_pixels: tl.constexpr,
    touched: tl.constexpr,
    silu: tl.constexpr,
    shifted: tl.constexpr,
) -> None:
    a_group: tl.constexpr = channels // groups
    # from the end: what the first launch read last is in the cache
    row = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    pixel = (tl.num_programs(1) - 1 - tl.program_id(1)) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    is_channel = channel < channels
    inside = (pixel < pixels)[:, None] & is_channel[None, :]
    place = row * pixels * channels + pixel[:, None] * channels + channel[None, :]
    source = _places(x, beside, row, pixels, pixel, channel, channels, border) if border else x + place
    values = tl.load(source, mask=inside, other=0.0)  # on its way while the chunks are joined

    scale, offset, added = _of_channels(weight, bias, shift, row * shift_row + channel, channel, is_channel, shifted)
    first = tl.program_id(0) * block_channels // a_group
    mean, m2 = _joined(
        moments, row, rows, first + tl.arange(0, touched), pixels, groups, a_group, chunk_pixels, padded_chunks
    )
    factor = tl.rsqrt(m2 / (a_group * pixels) + eps)
    which = tl.minimum(channel // a_group - first, touched - 1)
    centre, slope = tl.gather(mean, which, 0) - added, scale * tl.gather(factor, which, 0)
    tl.store(out + place, _normalised(values, centre, slope, offset, silu), mask=inside)


@jit
def _places(
    x: tl.tensor,
    beside: tl.tensor,
    row: tl.tensor,
    pixels: tl.tensor,
    pixel: tl.tensor,
    channel: tl.tensor,
    channels: tl.constexpr,
    border: tl.constexpr,
) -> tl.tensor:
    """Addresses [pixels, channels] of a picture's values, of which those from the border on are beside x.

    Whole addresses are chosen: from a chosen distance between pixels the compiler would not see that neighbouring
    channels are neighbours in memory, and read them one by one.
    """
    if border:
        rest: tl.constexpr = channels - border
        left = (x + row * pixels * border + channel)[None, :] + pixel[:, None] * border
        right = (beside + row * pixels * rest + (channel - border))[None, :] + pixel[:, None] * rest
        # No piece of 8 lanes is of both. The compiler compares this with alignments in bytes, so 16 is said; wider than
        # 8 lanes it reads in no case, as they are 16 bytes, and beside no address that is not a multiple of as much.
        is_left = tl.max_constancy((channel < border)[None, :], [1, 16])
        return tl.where(is_left, left, right)
    return x + row * pixels * channels + (pixel[:, None] * channels + channel[None, :])


@jit
def _moments(
    x: tl.tensor,
    beside: tl.tensor,
    row: tl.tensor,
    added: tl.tensor,
    channel: tl.tensor,
    is_channel: tl.tensor,
    which: tl.tensor,
    group: tl.tensor,
    first: tl.tensor,
    pixels: tl.tensor,
    channels: tl.constexpr,
    border: tl.constexpr,
    a_group: tl.constexpr,
    width: tl.constexpr,
    step_pixels: tl.constexpr,
    steps: tl.constexpr,
    chunk_pixels: tl.constexpr,
) -> tl.tensor:
    """Mean and sum of squared deviations [groups] of a chunk of pixels.

    `which` [channels] names each channel's group. The first pixel is read twice: as a tile of equal rows, so that every
    thread has its own part and waits for no exchange before it reads the rest, and for the sums by channel.
    """
    if border:
        rest: tl.constexpr = channels - border
        left, right = x + (row * pixels + first) * border, beside + (row * pixels + first) * rest
        head = tl.where(tl.max_constancy(channel < border, [16]), left + channel, right + (channel - border))
    else:
        head = x + row * pixels * channels + first * channels + channel
    every_row = tl.zeros((step_pixels, 1), tl.int32)
    anchors = tl.load(head[None, :] + every_row, mask=is_channel[None, :], other=0.0).to(tl.float32)
    anchor = tl.load(head, mask=is_channel, other=0.0).to(tl.float32)
    totals = tl.zeros((step_pixels, width), tl.float32)
    squares = tl.zeros((step_pixels, width), tl.float32)
    for start in range(0, chunk_pixels, step_pixels * steps):
        for step in tl.static_range(steps):
            pixel = first + start + step * step_pixels + tl.arange(0, step_pixels)
            inside = (pixel < pixels)[:, None] & is_channel[None, :]
            place = _places(x, beside, row, pixels, pixel, channel, channels, border)
            values = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            deviation = tl.where(inside, values - anchors, 0.0)
            totals += deviation
            squares += deviation * deviation

    total = tl.sum(totals, axis=0)
    count = tl.minimum(chunk_pixels, pixels - first)
    average = total / count
    means = anchor + added + average
    member = (which[None, :] == group[:, None]) & is_channel[None, :]
    mean = _by_group(means, member) / a_group
    between = means - tl.gather(mean, which, 0)
    return mean, _by_group(tl.sum(squares, axis=0) - total * average + count * between * between, member)


@jit
def _by_group(values: tl.tensor, member: tl.tensor) -> tl.tensor:
    """Sums [groups] of values [channels]; member [groups, channels] says which is of which."""
    return tl.sum(tl.where(member, values[None, :], 0.0), axis=1)


@jit
def _joined(
    moments: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    group: tl.tensor,
    pixels: tl.tensor,
    groups: tl.constexpr,
    a_group: tl.constexpr,
    chunk_pixels: tl.constexpr,
    padded_chunks: tl.constexpr,
) -> tl.tensor:
    """Mean and sum of squared deviations [groups] of all chunks of a picture."""
    chunks = tl.cdiv(pixels, chunk_pixels)
    chunk = tl.arange(0, padded_chunks)
    is_known = (group < groups)[:, None] & (chunk < chunks)[None, :]
    slot = (row * groups + group)[:, None] * chunks + chunk[None, :]
    means = tl.load(moments + slot, mask=is_known, other=0.0)
    m2s = tl.load(moments + rows * groups * chunks + slot, mask=is_known, other=0.0)
    count = tl.maximum(tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels), 0).to(tl.float32)[None, :]
    mean = tl.sum(means * count, axis=1) / pixels
    between = means - mean[:, None]
    return mean, tl.sum(m2s + a_group * count * between * between, axis=1)


@jit
def _of_channels(
    weight: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    place: tl.tensor,
    channel: tl.tensor,
    is_channel: tl.tensor,
    shifted: tl.constexpr,
) -> tl.tensor:
    """Weight, bias and what is added to x, each [channels]."""
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    return scale, offset, _added(shift, place, is_channel, shifted)


@jit
def _added(shift: tl.tensor, place: tl.tensor, is_channel: tl.tensor, shifted: tl.constexpr) -> tl.tensor:
    if shifted:
        return tl.load(shift + place, mask=is_channel, other=0.0).to(tl.float32)
    return tl.zeros_like(place).to(tl.float32)


@jit
def _normalised(
    values: tl.tensor, centre: tl.tensor, slope: tl.tensor, offset: tl.tensor, silu: tl.constexpr
) -> tl.tensor:
    result = (values.to(tl.float32) - centre[None, :]) * slope[None, :] + offset[None, :]
    if silu:
        return silu_values(result)
    return result


class _Stage(NamedTuple):
    """The group normalisations of a network at one size of picture."""

    groups: int
    side: int
    taken: tuple[int, ...]  # channels of what resnets take
    inner: int  # channels after their first convolution, where the time embedding is added
    joined: tuple[tuple[int, int], ...]  # what resnets take beside a skip connection
    is_attended: bool = True  # a transformer normalises the inner channels, too


_STAGES = (
    # Stable Diffusion's UNet for 512 x 512 pixels
    _Stage(32, 64, (320, 640, 960), 320, ((640, 320), (320, 320))),
    _Stage(32, 32, (320, 640, 960, 1280, 1920), 640, ((1280, 640), (640, 640), (640, 320))),
    _Stage(32, 16, (640, 1280, 1920, 2560), 1280, ((1280, 1280), (1280, 640))),
    _Stage(32, 8, (1280, 2560), 1280, ((1280, 1280),)),
    # the embedded model's
    _Stage(16, 32, (64, 128, 160), 64, ((96, 64), (64, 64)), is_attended=False),
    _Stage(16, 16, (64, 96, 160, 256), 96, ((160, 96), (96, 64))),
    _Stage(16, 8, (96, 160, 256, 320), 160, ((160, 160), (160, 96))),
)


class _Form(NamedTuple):
    """What a group normalisation does besides."""

    channels: int
    border: int = 0
    silu: bool = True
    shifted: bool = False


def variants() -> list[Variant]:
    """The compiled forms of the models' shapes in float16. Where nothing is added `shift` may be null.

    Where nothing is beside x `beside` may be null.
    """
    found: dict[str, Variant] = {}
    for stage in _STAGES:
        forms = [_Form(channels) for channels in stage.taken]
        forms += [
            _Form(sum(pair), border=pair[0], shifted=shifted) for pair in stage.joined for shifted in (False, True)
        ]
        forms += [_Form(stage.inner, shifted=True), _Form(stage.inner, silu=False)][: 1 + stage.is_attended]
        for form in forms:
            plan = _plan(stage.side**2, form.channels, stage.groups)
            if isinstance(plan, _Whole):
                made = [_whole_variant(plan, stage, form)]
            else:
                made = _split_variants(plan, stage, form)
            found |= {item.name: item for item in made}
    return list(found.values())


def _whole_variant(plan: _Whole, stage: _Stage, form: _Form) -> Variant:
    constants = _whole_constants(plan, form.channels, stage.groups, form.border, form.silu, form.shifted)
    pointers = ("out", "x", "beside", "weight", "bias", "shift")
    return Variant(
        name=_name("group_norm", stage, form),
        kernel=_whole_kernel,
        signature=_signature(pointers, ("shift_row", "pixels"), constants, eps=True),
        constants=constants,
        grid=("cdiv(groups, run)", "rows", "1"),
        aligned=(*pointers, "shift_row", "pixels"),
        num_warps=_NUM_WARPS,
    )


def _split_variants(plan: _Split, stage: _Stage, form: _Form) -> list[Variant]:
    """The first launch is the same with SiLU and without."""
    channels, groups, border = form.channels, stage.groups, form.border
    first = _moments_constants(plan, channels, groups, border, form.shifted)
    second = _apply_constants(plan, channels, groups, border, form.silu, form.shifted)
    pointers = ("out", "x", "beside", "weight", "bias", "shift", "moments")
    sizes = ("shift_row", "rows", "pixels")
    return [
        Variant(
            name=_name("group_moments", stage, form._replace(silu=False)),
            kernel=_moments_kernel,
            signature={"moments": "*fp32"} | _signature(("x", "beside", "shift"), sizes, first),
            constants=first,
            grid=("cdiv(groups, run)", "cdiv(pixels, chunk_pixels)", "rows"),
            aligned=("moments", "x", "beside", "shift", "shift_row", "pixels"),
        ),
        Variant(
            name=_name("group_norm", stage, form),
            kernel=_apply_kernel,
            signature=_signature(pointers, sizes, second, eps=True) | {"moments": "*fp32"},
            constants=second,
            grid=("cdiv(channels, block_channels)", "cdiv(pixels, block_pixels)", "rows"),
            aligned=(*pointers, "shift_row", "pixels"),
        ),
    ]


def _name(kernel: str, stage: _Stage, form: _Form) -> str:
    steps = f"{'_shift' if form.shifted else ''}{'_silu' if form.silu else ''}"
    channels = f"{form.border}+{form.channels - form.border}" if form.border else str(form.channels)
    return f"{kernel}{steps}_{channels}x{stage.side}x{stage.side}_of_{stage.groups}_fp16"


def _signature(
    pointers: tuple[str, ...], sizes: tuple[str, ...], constants: dict[str, int], eps: bool = False
) -> dict[str, str]:
    numbers = dict.fromkeys(sizes, "i32") | ({"eps": "fp32"} if eps else {})
    return dict.fromkeys(pointers, "*fp16") | numbers | dict.fromkeys(constants, "constexpr")
