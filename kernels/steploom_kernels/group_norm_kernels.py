"""The kernel of group normalisation: a tile of pixels and channels is read once, measured, and normalised.

A program holds its tile, some pixels of a run of whole groups, in registers, packed as it was read. Where the tile is
the whole picture, that is all. Else a picture's programs each write mean and sum of squared deviations of their pixels,
and every one of them joins all of these, in the same order (Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", 1979). Between the two they wait for each other; or they are two launches,
where the first may take several tiles a program and the second reads its tile again.

Sums are of deviations from one of the group's own values, in the program's first pixel. So the sum of squares exceeds
the one around the mean by no more than a factor of the number of values, and a mean far from zero costs no digits.
Eight neighbouring channels are of a few groups, mostly of two at the border: each thread adds up its channels by group
before it exchanges anything.
"""

from __future__ import annotations

from steploom_kernels.jit import INTERPRETED, constant, jit, tl
from steploom_kernels.silu import silu_values

# Counters of pictures and runs are so many numbers apart: 32 bytes, so that programs that look at one disturb no other.
COUNTER_GAP = 8
_GAP = constant(COUNTER_GAP)
PIECE = 8  # neighbouring channels that a thread has: 16 bytes of half precision
_PIECE = constant(PIECE)


@jit
def group_norm_kernel(
    out: tl.tensor,
    x: tl.tensor,
    beside: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    moments: tl.tensor,
    counters: tl.tensor,
    shift_row: tl.tensor,
    eps: tl.tensor,
    pixels: tl.constexpr,
    channels: tl.constexpr,
    groups: tl.constexpr,
    border: tl.constexpr,
    run: tl.constexpr,
    padded_run: tl.constexpr,
    width: tl.constexpr,
    parts: tl.constexpr,
    step_pixels: tl.constexpr,
    steps: tl.constexpr,
    tiles: tl.constexpr,
    padded_chunks: tl.constexpr,
    measures: tl.constexpr,
    applies: tl.constexpr,
    silu: tl.constexpr,
    shifted: tl.constexpr,
) -> None:
    a_group: tl.constexpr = channels // groups
    tile_pixels: tl.constexpr = step_pixels * steps
    chunk_pixels: tl.constexpr = tile_pixels * tiles
    is_full: tl.constexpr = pixels % (chunk_pixels if measures else tile_pixels) == 0
    waits: tl.constexpr = measures and applies and padded_chunks > 1
    if measures:
        row = tl.program_id(2).to(tl.int64)
        first = tl.program_id(0) * chunk_pixels
    else:  # from the end: what the first launch read last is still in the cache
        row = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
        first = (tl.num_programs(0) - 1 - tl.program_id(0)) * tile_pixels
    lane = tl.arange(0, width)
    channel = tl.program_id(1) * (run * a_group) + lane
    is_channel = (lane < run * a_group) & (channel < channels)
    slot = tl.arange(0, padded_run)
    group = tl.program_id(1) * run + slot
    is_group = (slot < run) & (group < groups)
    pixel = first + tl.arange(0, step_pixels)

    source = _places(x, beside, row, pixel, channel, pixels, channels, border)
    stride = _stride(channel, step_pixels, channels, border)
    if tiles == 1 or not measures:
        kept = _read(source, stride, pixel, is_channel, pixels, is_full, step_pixels, steps)
    if applies and not waits:
        scale, offset, added = _of_channels(
            weight, bias, shift, row * shift_row + channel, channel, is_channel, shifted
        )
    if measures:
        lead = _lead(
            x, beside, shift, row, first, group * a_group, is_group, shift_row, pixels, channels, border, shifted
        )
        anchor = _lead(
            x, beside, shift, row, first, channel // a_group * a_group, is_channel, shift_row, pixels,
            channels, border, shifted,
        ) - _added(shift, row * shift_row + channel, is_channel, shifted)  # fmt: skip
        totals = tl.zeros((step_pixels, width), tl.float32)
        squares = tl.zeros((step_pixels, width), tl.float32)
        if tiles == 1:
            totals, squares = _summed(
                totals, squares, kept, anchor, pixel, is_channel, pixels, is_full, step_pixels, steps
            )
        else:
            for _ in range(tiles):
                kept = _read(source, stride, pixel, is_channel, pixels, is_full, step_pixels, steps)
                totals, squares = _summed(
                    totals, squares, kept, anchor, pixel, is_channel, pixels, is_full, step_pixels, steps
                )
                source += stride * steps
                pixel += tile_pixels
        total, square = _by_group(totals, squares, a_group, padded_run, width, parts, step_pixels)
        if is_full:
            average = total * (1.0 / (chunk_pixels * a_group))
        else:
            average = total / (tl.minimum(chunk_pixels, pixels - first) * a_group)
        mean = lead + average
        m2 = square - total * average
        if padded_chunks > 1:
            place = ((row * groups + group) * padded_chunks + tl.program_id(0)) * 2
            tl.store(moments + place[:, None] + tl.arange(0, 2)[None, :], tl.join(mean, m2), mask=is_group[:, None])
    if waits:
        _wait_for_all(counters + (row * tl.num_programs(1) + tl.program_id(1)) * _GAP)
        # not before: until here all registers were needed
        scale, offset, added = _of_channels(
            weight, bias, shift, row * shift_row + channel, channel, is_channel, shifted
        )
    if applies:
        if padded_chunks > 1:
            mean, m2 = _joined(
                moments + (row * groups + group) * (padded_chunks * 2), is_group, pixels, a_group, chunk_pixels,
                padded_run, padded_chunks,
            )  # fmt: skip
        factor = tl.rsqrt(m2 * (1.0 / (a_group * pixels)) + eps)
        which = tl.minimum(lane // a_group, padded_run - 1)
        centre, slope = tl.gather(mean, which, 0) - added, scale * tl.gather(factor, which, 0)
        target = out + row * pixels * channels + (pixel[:, None] * channels + channel[None, :])
        for step in tl.static_range(steps):
            values = (_unpacked(kept[step]) - centre[None, :]) * slope[None, :] + offset[None, :]
            if silu:
                values = silu_values(values)
            tl.store(target, values, mask=_inside(pixel + step * step_pixels, is_channel, pixels, is_full))
            target += step_pixels * channels


@jit
def _places(
    x: tl.tensor,
    beside: tl.tensor,
    row: tl.tensor,
    pixel: tl.tensor,
    channel: tl.tensor,
    pixels: tl.constexpr,
    channels: tl.constexpr,
    border: tl.constexpr,
) -> tl.tensor:
    """Addresses [pixels, channels] of a picture's values, of which those from the border on are beside x."""
    if border:
        rest: tl.constexpr = channels - border
        left = (x + row * pixels * border + channel)[None, :] + pixel[:, None] * border
        right = (beside + row * pixels * rest + (channel - border))[None, :] + pixel[:, None] * rest
        return tl.where(_is_left(channel, border), left, right)
    else:  # noqa: RET505 - Triton would look at what is behind, too
        return x + row * pixels * channels + (pixel[:, None] * channels + channel[None, :])


@jit
def _stride(channel: tl.tensor, step_pixels: tl.constexpr, channels: tl.constexpr, border: tl.constexpr) -> tl.tensor:
    """From a step's addresses to the next one's."""
    if border:
        rest: tl.constexpr = channels - border
        stride = tl.where(_is_left(channel, border), step_pixels * border, step_pixels * rest)
        if step_pixels * border % _PIECE == 0 and step_pixels * rest % _PIECE == 0:  # the compiler does not see it
            stride = tl.multiple_of(tl.max_constancy(stride, [1, 16]), [_PIECE, _PIECE])
        return stride
    else:  # noqa: RET505
        return step_pixels * channels


@jit
def _is_left(channel: tl.tensor, border: tl.constexpr) -> tl.tensor:
    """No piece of 8 channels is of both. The compiler compares this with alignments in bytes, so 16 is said; wider than
    8 it reads in no case, as they are 16 bytes, and beside no address that is not a multiple of as much."""
    return tl.max_constancy((channel < border)[None, :], [1, 16])


@jit
def _inside(pixel: tl.tensor, is_channel: tl.tensor, pixels: tl.constexpr, is_full: tl.constexpr) -> tl.tensor:
    if is_full:
        return is_channel[None, :]
    else:  # noqa: RET505
        return (pixel < pixels)[:, None] & is_channel[None, :]


@jit
def _read(
    source: tl.tensor,
    stride: tl.tensor,
    pixel: tl.tensor,
    is_channel: tl.tensor,
    pixels: tl.constexpr,
    is_full: tl.constexpr,
    step_pixels: tl.constexpr,
    steps: tl.constexpr,
) -> tl.tensor:
    """A tile, in as many parts as there are steps: all reads are on their way before the first is waited for."""
    kept = ()
    for step in tl.static_range(steps):
        inside = _inside(pixel + step * step_pixels, is_channel, pixels, is_full)
        # a tuple, which Triton has where Python would have a list; it knows no starred item
        kept = kept + (tl.load(source, mask=inside, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
        source += stride
    return kept


@jit
def _lead(
    x: tl.tensor,
    beside: tl.tensor,
    shift: tl.tensor,
    row: tl.tensor,
    pixel: tl.tensor,
    channel: tl.tensor,
    is_wanted: tl.tensor,
    shift_row: tl.tensor,
    pixels: tl.constexpr,
    channels: tl.constexpr,
    border: tl.constexpr,
    shifted: tl.constexpr,
) -> tl.tensor:
    """Values of one pixel, with the shift."""
    if border:
        rest: tl.constexpr = channels - border
        left = x + (row * pixels + pixel) * border + channel
        right = beside + (row * pixels + pixel) * rest + (channel - border)
        place = tl.where(channel < border, left, right)
    else:
        place = x + (row * pixels + pixel) * channels + channel
    values = tl.load(place, mask=is_wanted, other=0.0).to(tl.float32)
    return values + _added(shift, row * shift_row + channel, is_wanted, shifted)


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
def _added(shift: tl.tensor, place: tl.tensor, is_wanted: tl.tensor, shifted: tl.constexpr) -> tl.tensor:
    if shifted:
        return tl.load(shift + place, mask=is_wanted, other=0.0).to(tl.float32)
    else:  # noqa: RET505
        return 0.0


@jit
def _summed(
    totals: tl.tensor,
    squares: tl.tensor,
    kept: tl.tensor,
    anchor: tl.tensor,
    pixel: tl.tensor,
    is_channel: tl.tensor,
    pixels: tl.constexpr,
    is_full: tl.constexpr,
    step_pixels: tl.constexpr,
    steps: tl.constexpr,
) -> tl.tensor:
    """Sums of a tile's deviations from the anchor [channels] and of their squares, with what was summed before.

    A lane of no channel has read zeros and has an anchor of zero: it adds nothing.
    """
    for step in tl.static_range(steps):
        deviation = kept[step].to(tl.float32) - anchor[None, :]
        if not is_full:
            inside = _inside(pixel + step * step_pixels, is_channel, pixels, is_full)
            deviation = tl.where(inside, deviation, 0.0)
        totals += deviation
        squares += deviation * deviation
    return totals, squares


@jit
def _by_group(
    totals: tl.tensor,
    squares: tl.tensor,
    a_group: tl.constexpr,
    padded_run: tl.constexpr,
    width: tl.constexpr,
    parts: tl.constexpr,
    step_pixels: tl.constexpr,
) -> tl.tensor:
    """Both sums [groups] of [pixels, channels].

    A piece of channels is of at most `parts` groups, the first of which is its head.
    """
    pieces: tl.constexpr = width // _PIECE
    start = tl.arange(0, pieces) * _PIECE
    head = start // a_group
    part_of = (start[:, None] + tl.arange(0, _PIECE)[None, :]) // a_group - head[:, None]
    totals = tl.reshape(totals, (step_pixels, pieces, _PIECE))
    squares = tl.reshape(squares, (step_pixels, pieces, _PIECE))
    group = tl.arange(0, padded_run)
    both = tl.zeros((padded_run, pieces, 2), tl.float32)
    for part in tl.static_range(parts):
        if parts > 1:
            is_own = (part_of == part)[None, :, :]
            total = tl.sum(tl.where(is_own, totals, 0.0), axis=2)
            square = tl.sum(tl.where(is_own, squares, 0.0), axis=2)
        else:
            total = tl.sum(totals, axis=2)
            square = tl.sum(squares, axis=2)
        pair = tl.sum(tl.join(total, square), axis=0)  # [pieces, 2], one exchange between warps for both
        is_member = (head + part)[None, :] == group[:, None]
        both += tl.where(is_member[:, :, None], pair[None, :, :], 0.0)
    return tl.split(tl.sum(both, axis=1))


# How the programs of a picture wait for each other. Each adds to a counter that they share, in memory that was zero at
# first and that outlives launches. The first program adds so much more that all together add 2**31: the sign flips when
# the last of them has come and at no other time. As the rest is 0 again, the next launch, be it of as many programs or
# not, finds what it needs. What a program wrote before it came is there for all that saw the sign flip: adding
# releases, looking acquires. Launches that may run at the same time need counters of their own.
#
# Nobody waits forever. The GPU starts programs in the order of their numbers, and those that wait for each other follow
# each other. So at any time a launch has at most one run of a picture of which some programs wait for others that have
# not begun: 31 programs or fewer (`group_norm_plans.MAX_WAITING`). Everything else on the GPU ends. On a GPU of 100
# multiprocessors or more (`group_norm_plans.can_wait`) some are then free of such programs, even with three launches
# at once, and there the next program begins, however much of a multiprocessor it takes.


@jit
def _wait_for_all(counter: tl.tensor) -> None:
    """Returns when all programs along the first axis of the grid have called this."""
    tl.debug_barrier()  # the other threads have written
    rest = 2147483647 - (tl.num_programs(0) - 2)  # 2**31 less one for each other program
    step = tl.where(tl.program_id(0) == 0, rest, 1)
    before = tl.atomic_add(counter, step, sem="acq_rel", scope="gpu")
    now = before + step
    while (before ^ now) >= 0:
        now = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")


@jit
def _joined(
    moments: tl.tensor,
    is_group: tl.tensor,
    pixels: tl.constexpr,
    a_group: tl.constexpr,
    chunk_pixels: tl.constexpr,
    padded_run: tl.constexpr,
    padded_chunks: tl.constexpr,
) -> tl.tensor:
    """Mean and sum of squared deviations [groups] of all chunks of a picture, around the mean of the first chunk."""
    chunks: tl.constexpr = (pixels + chunk_pixels - 1) // chunk_pixels
    number = tl.arange(0, padded_chunks * 2)
    is_known = is_group[:, None] & (number < chunks * 2)[None, :]
    pairs = tl.load(moments[:, None] + number[None, :], mask=is_known, other=0.0)
    around = tl.load(moments, mask=is_group, other=0.0)
    means, m2s = tl.split(tl.reshape(pairs, (padded_run, padded_chunks, 2)))
    chunk = tl.arange(0, padded_chunks)
    count = tl.maximum(tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels), 0).to(tl.float32)[None, :]
    deviation = means - around[:, None]
    total = tl.sum(deviation * count, axis=1)
    square = tl.sum(m2s + deviation * deviation * (count * a_group), axis=1)
    average = total * (1.0 / pixels)
    return around + average, square - total * average * a_group


@jit
def _unpacked(values: tl.tensor) -> tl.tensor:
    """In float32. The compiler must not know that it has seen them so before: it would keep twice the registers."""
    if not INTERPRETED and values.dtype.primitive_bitwidth == 16:
        values = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [values], dtype=values.dtype, is_pure=False, pack=2
        )
    return values.to(tl.float32)
