"""Attention on Hopper, where keys and values arrive, scores and sums are multiplied and powers are taken all at once.

Of the same arithmetic as `attention`, for narrow heads and many keys, where powers cost as much as products and neither
may wait for the other (arXiv 2407.08608, section 3). A program stays on its multiprocessor and walks over blocks of
queries. One of its warps does nothing but fetch keys and values, ahead by some blocks, through the engine for bulk
copies. The others are in groups, most often of four, with 16 queries a warp. No group waits for another: while one has
the tensor cores multiply, another takes powers.

Beyond that a plan may let a group's own products go on beside its powers, have the tensor cores sum the shares up,
since these have columns to spare in a narrow head, and give some powers to the multipliers as `attention` does.

Written in Gluon, which lays out memory and waits by the word of the program, where Triton's compiler decides both. It
has no interpreter, and what is exported ahead of time has no bulk copies: elsewhere `attention`'s other kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steploom_kernels.jit import cdiv, tl

try:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    HAS_GLUON = True
    _jit: Callable[..., Any] = gluon.jit
    # Triton 3.6 has the second name alone
    _copy = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
except (ImportError, AttributeError):  # no Triton, or one before 3.6
    HAS_GLUON = False
    gl: Any = None  # type: ignore[no-redef]

    def _jit(function: Any = None, **_: Any) -> Any:
        """Leaves the function as it is."""
        return function or _jit


_LOG2_E = 1.4426950408889634
_QUERIES = 16  # of a warp: the tensor cores take 64 from four
_PIECE = 8  # values of half precision in 16 bytes, by which bulk copies go
_FEWEST_TOKENS = 512  # below, a program has too little to do for all that it sets up


class HopperPlan(NamedTuple):
    """How the work is cut."""

    groups: int  # that compute, in a program: each has code of its own, and waits for no other
    block_n: int  # keys at a time
    stages: int  # blocks of keys and values that are on their way or in use
    # 0: a group's products and powers take turns; 1: the last block's sums go on beside powers; 2: the next block's
    # scores do
    beside: int
    # columns of a head are cut into one or two powers of two; beyond the head they are zeros
    k_parts: tuple[int, ...]  # of queries and keys, from 16 up
    # of values, from 8 up; where one is 8 at most 64 keys go: longer blocks of it are described wrongly by Triton 3.6
    v_parts: tuple[int, ...]
    q_shared: bool = False  # queries stay in shared memory: fewer registers
    polynomial: int = 0  # of eight groups of eight neighbouring keys, how many take their powers from the polynomial
    ones: bool = False  # the tensor cores sum the shares up, as products with 8 columns of ones
    stays: bool = True  # programs go on to further queries; else each has one block
    warps: int = 4  # of a group, which wait for each other at each block; 16 queries each
    programs: int = 1  # of a multiprocessor


_GAPS = 2  # what a turn of a program takes beyond its groups, in groups: estimated
_REGISTERS = 65536  # of a multiprocessor
_PLANS = {
    40: HopperPlan(4, 64, 4, 0, (32, 16), (32, 8), ones=True),
    64: HopperPlan(3, 128, 3, 0, (64,), (64,)),
    80: HopperPlan(2, 128, 3, 0, (64, 16), (64, 16)),
}
HOPPER_WIDTHS = tuple(_PLANS)  # of heads


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attention_hopper` takes these, of what `attention` takes, and is made for them."""
    _, tokens_q, heads, width = q.shape
    tokens_k = k.shape[1]
    return (
        HAS_GLUON
        and q.dtype.itemsize == 2
        and width in _PLANS
        and min(tokens_q, tokens_k) >= _FEWEST_TOKENS
        and tokens_k % _PLANS[width].block_n == 0
        and q.numel() > 0
        and tokens_q * heads * width < 2**31  # places within a picture are counted in 32 bits
        and all(map(_can_be_copied, (q, k, v)))
        and _is_hopper(q.device)
    )


def _can_be_copied(tensor: Tensor) -> bool:
    """By the engine for bulk copies."""
    steps = (tensor.data_ptr() // tensor.dtype.itemsize, *tensor.stride()[:3])
    return all(step % _PIECE == 0 for step in steps) and min(tensor.stride()) > 0


@cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def attention_hopper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    out: Tensor | None = None,
    plan: HopperPlan | None = None,
) -> Tensor:
    """`attention` as one launch, for arguments that `attention` would take and that `fits` is true of.

    Another plan than the usual one is for measurements; keys must be whole blocks of it.
    """
    rows, tokens_q, heads, width = q.shape
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    places = _multiprocessors(q.device)
    plan = plan or usual_plan(width, tokens_q, heads * rows, places)
    tiles = cdiv(tokens_q, _QUERIES * plan.warps * plan.groups) * heads * rows
    programs = min(tiles, places * plan.programs) if plan.stays else tiles
    descriptors = [
        *_descriptors(q, _QUERIES * plan.warps, plan.k_parts),
        *_descriptors(k, plan.block_n, plan.k_parts),
        *_descriptors(v, plan.block_n, plan.v_parts),
    ]
    scale = width**-0.5 if scale is None else scale
    _hopper_kernel[(programs,)](
        out, *descriptors, rows, tokens_q, k.shape[1], heads, scale * _LOG2_E,
        **constants(plan, width), **options(plan),
    )  # fmt: skip
    return out


def usual_plan(width: int, tokens_q: int, heads: int, places: int) -> HopperPlan:
    """The plan for heads of a width, so many in all pictures together, on so many multiprocessors.

    The number of pictures decides over groups in a program alone, and groups know nothing of each other: a picture's
    result is the same in any batch, bit for bit. More groups leave fewer gaps, fewer waste less when work runs out.
    """
    plan = _PLANS[width]

    def cost(groups: int) -> int:
        turns = cdiv(cdiv(tokens_q, _QUERIES * plan.warps * groups) * heads, places)
        return turns * (groups + _GAPS)

    return plan._replace(groups=min(range(plan.groups, 1, -1), key=cost))


def candidate_plans(width: int) -> list[HopperPlan]:
    """Plans to measure for heads of a width, the usual one among them."""
    k_parts = v_parts = _PLANS[width].k_parts
    found = [
        _PLANS[width],
        HopperPlan(4, 64, 3, 0, k_parts, v_parts, q_shared=width > 64),
        HopperPlan(1, 64, 4, 0, k_parts, v_parts, q_shared=width > 64, warps=8, programs=2),
        HopperPlan(3, 128, 3, 0, k_parts, v_parts),
        HopperPlan(3, 128, 3, 0, k_parts, v_parts, stays=False),
        HopperPlan(2, 128, 3, 0, k_parts, v_parts),
        HopperPlan(2, 128, 3, 1, k_parts, v_parts),
        HopperPlan(2, 128, 3, 2, k_parts, v_parts),
        HopperPlan(1, 128, 3, 1, k_parts, v_parts, warps=8),
    ]
    if width == 40:
        wide, narrow = (64,), (32, 8)
        found += [
            HopperPlan(4, 64, 4, 0, k_parts, v_parts),
            HopperPlan(4, 64, 4, 0, k_parts, narrow),
            HopperPlan(4, 64, 4, 0, wide, wide),
            HopperPlan(4, 64, 4, 0, wide, narrow, ones=True),
            HopperPlan(4, 64, 4, 1, k_parts, narrow, ones=True),
            HopperPlan(4, 64, 4, 0, k_parts, narrow, polynomial=1, ones=True),
            HopperPlan(2, 64, 4, 0, k_parts, narrow, ones=True, warps=8),
            HopperPlan(1, 64, 4, 0, k_parts, narrow, ones=True, warps=16),
            HopperPlan(1, 64, 4, 0, k_parts, narrow, ones=True, warps=8, programs=2),
            HopperPlan(1, 64, 3, 0, k_parts, narrow, ones=True, programs=4),
            HopperPlan(3, 128, 4, 1, k_parts, v_parts, q_shared=True),
        ]
    return list(dict.fromkeys(found))


def _descriptors(tensor: Tensor, tokens: int, parts: tuple[int, ...]) -> list[Any]:
    """What the engine for bulk copies must know of a tensor, for each part of its columns."""
    tensor = tensor.transpose(1, 2)
    shape, strides = list(tensor.shape), list(tensor.stride())
    found = [TensorDescriptor(tensor, shape, strides, [1, 1, tokens, part], layout_of(part)) for part in parts]
    return found if len(found) == 2 else [*found, None]


def layout_of(columns: int) -> Any:
    """Of a block in shared memory: rows of up to 128 bytes, in an order that keeps the tensor cores' reads apart."""
    return gl.NVMMASharedLayout(0 if columns == 8 else min(2 * columns, 128), 16, 4)


def constants(plan: HopperPlan, width: int) -> dict[str, Any]:
    """The kernel's."""
    _, of_groups, of_fetching = registers(plan)
    return {"width": width, "plan": plan, "of_groups": of_groups, "of_fetching": of_fetching}


def options(plan: HopperPlan) -> dict[str, int]:
    """The compiler's."""
    return {"num_warps": plan.warps, "maxnreg": registers(plan)[0]}


def registers(plan: HopperPlan) -> tuple[int, int, int]:
    """Of a thread when a program starts, of one that computes, and of one that fetches.

    They are given out in eights, to four warps at a time: the one that fetches has three idle ones beside it.
    """
    computing = plan.groups * plan.warps // 4
    at_first = _REGISTERS // (plan.programs * 128 * (computing + 1)) // 8 * 8
    all_together = at_first * (computing + 1)
    of_groups = min(240, (all_together - 24) // computing // 8 * 8)
    # what is left over is of use to the first group, or where it is too little for that, to the one that fetches
    return at_first, of_groups, min(32, all_together - of_groups * computing) if computing > 3 or plan.warps > 4 else 24


@_jit(do_not_specialize=("rows", "tokens_q", "tokens_k", "heads"))  # one compiled form for any number of pictures
def _hopper_kernel(
    out: gl.tensor,
    q1: gl.tensor,
    q2: gl.tensor,
    k1: gl.tensor,
    k2: gl.tensor,
    v1: gl.tensor,
    v2: gl.tensor,
    rows: gl.tensor,
    tokens_q: gl.tensor,
    tokens_k: gl.tensor,
    heads: gl.tensor,
    scale: gl.tensor,
    width: gl.constexpr,
    plan: gl.constexpr,
    of_groups: gl.constexpr,
    of_fetching: gl.constexpr,
) -> None:
    """Descriptors are of each part of queries, keys and values; None where there is no second part."""
    queries = (_ring(q1, plan.groups),)
    keys = (_ring(k1, plan.stages),)
    values = (_ring(v1, plan.stages),)
    if k2 is not None:
        queries = _with(queries, _ring(q2, plan.groups))
        keys = _with(keys, _ring(k2, plan.stages))
    if v2 is not None:
        values = _with(values, _ring(v2, plan.stages))
    ones = q1
    if plan.ones:
        element: gl.constexpr = out.dtype.element_ty
        in_registers: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [plan.warps, 1], [1, 0])
        block: gl.constexpr = [plan.block_n, 8]
        filled = gl.full(block, 1.0, element, in_registers)
        ones = gl.allocate_shared_memory(element, block, gl.NVMMASharedLayout(0, 16, 2), filled)
        fence_async_shared()
    q_full = _barriers(1, 1)
    q_empty = _barriers(1, plan.groups)
    full = _barriers(plan.stages, 1)
    empty = _barriers(plan.stages, plan.groups)
    rings = (queries, keys, values, ones)
    barriers = (q_full, q_empty, full, empty)
    sizes = (rows, tokens_q, tokens_k, heads)
    descriptors = (q1, q2, k1, k2, v1, v2)
    # written out: in a tuple that has a name constants would become tensors
    if plan.groups == 1:
        gl.warp_specialize(
            [
                (_compute, (out, rings, barriers, sizes, scale, 0, width, plan)),
                (_fetch, (descriptors, rings, barriers, sizes, plan)),
            ],
            [1],
            [of_fetching],
        )
    elif plan.groups == 2:
        gl.warp_specialize(
            [
                (_compute, (out, rings, barriers, sizes, scale, 0, width, plan)),
                (_compute, (out, rings, barriers, sizes, scale, 1, width, plan)),
                (_fetch, (descriptors, rings, barriers, sizes, plan)),
            ],
            [plan.warps, 1],
            [of_groups, of_fetching],
        )
    elif plan.groups == 3:
        gl.warp_specialize(
            [
                (_compute, (out, rings, barriers, sizes, scale, 0, width, plan)),
                (_compute, (out, rings, barriers, sizes, scale, 1, width, plan)),
                (_compute, (out, rings, barriers, sizes, scale, 2, width, plan)),
                (_fetch, (descriptors, rings, barriers, sizes, plan)),
            ],
            [plan.warps, plan.warps, 1],
            [of_groups, of_groups, of_fetching],
        )
    else:
        gl.warp_specialize(
            [
                (_compute, (out, rings, barriers, sizes, scale, 0, width, plan)),
                (_compute, (out, rings, barriers, sizes, scale, 1, width, plan)),
                (_compute, (out, rings, barriers, sizes, scale, 2, width, plan)),
                (_compute, (out, rings, barriers, sizes, scale, 3, width, plan)),
                (_fetch, (descriptors, rings, barriers, sizes, plan)),
            ],
            [plan.warps, plan.warps, plan.warps, 1],
            [of_groups, of_groups, of_groups, of_fetching],
        )


@_jit
def _ring(descriptor: gl.tensor, count: gl.constexpr) -> gl.tensor:
    shape: gl.constexpr = [count] + descriptor.block_type.shape  # noqa: RUF005 - Gluon knows no stars
    return gl.allocate_shared_memory(descriptor.dtype, shape, descriptor.layout)


@_jit
def _with(found: gl.tensor, further: gl.tensor) -> gl.tensor:
    """A tuple and one thing more."""
    return found + (further,)  # noqa: RUF005


@_jit
def _barriers(count: gl.constexpr, arrivals: gl.constexpr) -> gl.tensor:
    made = gl.allocate_shared_memory(gl.int64, [count, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(count):
        mbarrier.init(made.index(index), count=arrivals)
    return made


@_jit
def _slot(at: gl.tensor, stages: gl.constexpr) -> gl.tensor:
    """Where in a ring the block of a number is, and the phase of its barriers."""
    return at % stages, (at // stages) & 1


@_jit
def _tiles(sizes: gl.tensor, plan: gl.constexpr) -> gl.tensor:
    rows, tokens_q, _, heads = sizes
    return gl.cdiv(tokens_q, 16 * plan.warps * plan.groups) * heads * rows


@_jit
def _place(tile: gl.tensor, sizes: gl.tensor, plan: gl.constexpr) -> gl.tensor:
    """A tile's first query, head and row: neighbouring programs read the same keys."""
    _, tokens_q, _, heads = sizes
    queries: gl.constexpr = 16 * plan.warps * plan.groups
    blocks = gl.cdiv(tokens_q, queries)
    rest = tile // blocks
    return (tile - rest * blocks) * queries, rest % heads, rest // heads


@_jit
def _fetch(descriptors: gl.tensor, rings: gl.tensor, barriers: gl.tensor, sizes: gl.tensor, plan: gl.constexpr) -> None:
    """The one warp that copies: queries of a tile, then blocks of keys and values into the places that are empty."""
    q1, q2, k1, k2, v1, v2 = descriptors
    queries, keys, values, _ = rings
    q_full, q_empty, full, empty = barriers
    _, _, tokens_k, _ = sizes
    k_columns: gl.constexpr = plan.k_parts[0] + (plan.k_parts[1] if len(plan.k_parts) == 2 else 0)
    v_columns: gl.constexpr = plan.v_parts[0] + (plan.v_parts[1] if len(plan.v_parts) == 2 else 0)
    groups: gl.constexpr = plan.groups
    of_group: gl.constexpr = 16 * plan.warps
    blocks = tokens_k // plan.block_n
    turn = 0
    for tile in range(gl.program_id(0), _tiles(sizes, plan), gl.num_programs(0)):
        start, head, row = _place(tile, sizes, plan)
        arrived = q_full.index(0)
        mbarrier.wait(q_empty.index(0), (turn & 1) ^ 1)
        mbarrier.expect(arrived, groups * of_group * k_columns * 2)
        for group in gl.static_range(groups):
            _copy(q1, [row, head, start + group * of_group, 0], arrived, queries[0].index(group))
            if len(plan.k_parts) == 2:
                _copy(q2, [row, head, start + group * of_group, plan.k_parts[0]], arrived, queries[1].index(group))
        for block in range(blocks):
            index, phase = _slot(turn * blocks + block, plan.stages)
            done = block * plan.block_n
            arrived = full.index(index)
            mbarrier.wait(empty.index(index), phase ^ 1)
            mbarrier.expect(arrived, plan.block_n * (k_columns + v_columns) * 2)
            _copy(k1, [row, head, done, 0], arrived, keys[0].index(index))
            if len(plan.k_parts) == 2:
                _copy(k2, [row, head, done, plan.k_parts[0]], arrived, keys[1].index(index))
            _copy(v1, [row, head, done, 0], arrived, values[0].index(index))
            if len(plan.v_parts) == 2:
                _copy(v2, [row, head, done, plan.v_parts[0]], arrived, values[1].index(index))
        turn += 1  # noqa: SIM113 - nor `enumerate`


@_jit
def _compute(
    out: gl.tensor,
    rings: gl.tensor,
    barriers: gl.tensor,
    sizes: gl.tensor,
    scale: gl.tensor,
    group: gl.constexpr,
    width: gl.constexpr,
    plan: gl.constexpr,
) -> None:
    """A group of four warps."""
    queries, keys, values, ones = rings
    q_full, q_empty, full, empty = barriers
    _, tokens_q, tokens_k, heads = sizes
    blocks = tokens_k // plan.block_n
    turn = 0
    for tile in range(gl.program_id(0), _tiles(sizes, plan), gl.num_programs(0)):
        mbarrier.wait(q_full.index(0), turn & 1)
        q = _queries(queries, group, plan)
        if not plan.q_shared:
            fence_async_shared()
            mbarrier.arrive(q_empty.index(0), count=1)
        # Blocks are counted on from turn to turn, but not in a variable of this loop that bounds the loop over them:
        # Triton 3.6 takes such a variable for the constant that it begins with.
        at = turn * blocks
        if plan.beside == 0:
            sums, total = _in_turns(q, keys, values, ones, full, empty, at, blocks, scale, plan)
        elif plan.beside == 1:
            sums, total = _sums_beside_powers(q, keys, values, ones, full, empty, at, blocks, scale, plan)
        else:
            sums, total = _scores_beside_powers(q, keys, values, ones, full, empty, at, blocks, scale, plan)
        if plan.q_shared:
            mbarrier.arrive(q_empty.index(0), count=1)
        turn += 1  # noqa: SIM113
        if plan.ones:
            last: gl.constexpr = len(values)
            total = gl.convert_layout(gl.max(sums[last], 1), total.type.layout)  # its columns are the same
        factor = 1.0 / total
        start, head, row = _place(tile, sizes, plan)
        start += group * (16 * plan.warps)
        base = out + row.to(gl.int64) * tokens_q * heads * width
        _store(base, sums[0], factor, start, tokens_q, head, heads, 0, width)
        if len(plan.v_parts) == 2:
            _store(base, sums[1], factor, start, tokens_q, head, heads, plan.v_parts[0], width)


@_jit
def _in_turns(
    q: gl.tensor,
    keys: gl.tensor,
    values: gl.tensor,
    ones: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    at: gl.tensor,
    blocks: gl.tensor,
    scale: gl.tensor,
    plan: gl.constexpr,
) -> gl.tensor:
    largest, total, sums = _nothing_yet(plan)
    parts: gl.constexpr = len(sums)
    for block in range(blocks):
        index, phase = _slot(at + block, plan.stages)
        mbarrier.wait(full.index(index), phase)
        scores = _arrived(0, _scores(q, keys, index, plan))
        powers, shrink, largest, total = _shares(scores, largest, total, scale, plan)
        shares = _factors(powers, sums, values)
        coming = _add(shares, values, ones, index, _shrunk(sums, shrink), plan)
        sums = warpgroup_mma_wait(0, coming + shares)[:parts]
        mbarrier.arrive(empty.index(index), count=1)
    return sums, total


@_jit
def _sums_beside_powers(
    q: gl.tensor,
    keys: gl.tensor,
    values: gl.tensor,
    ones: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    at: gl.tensor,
    blocks: gl.tensor,
    scale: gl.tensor,
    plan: gl.constexpr,
) -> gl.tensor:
    largest, total, sums = _nothing_yet(plan)
    parts: gl.constexpr = len(sums)
    index, phase = _slot(at, plan.stages)
    mbarrier.wait(full.index(index), phase)
    scores = _arrived(0, _scores(q, keys, index, plan))
    powers, shrink, largest, total = _shares(scores, largest, total, scale, plan)
    shares = _factors(powers, sums, values)
    index, phase = _slot(at + 1, plan.stages)
    mbarrier.wait(full.index(index), phase, pred=blocks > 1)
    for block in range(1, blocks):
        last, _ = _slot(at + block - 1, plan.stages)
        index, _ = _slot(at + block, plan.stages)
        after, phase = _slot(at + block + 1, plan.stages)
        scores = _scores(q, keys, index, plan)
        coming = _add(shares, values, ones, last, sums, plan)
        scores = _arrived(parts, scores)
        powers, shrink, largest, total = _shares(scores, largest, total, scale, plan)
        # This is a loop. Without one before it, ptxas would have the wait for sums before the powers.
        mbarrier.wait(full.index(after), phase, pred=block + 1 < blocks)
        sums = warpgroup_mma_wait(0, coming + shares)[:parts]
        mbarrier.arrive(empty.index(last), count=1)
        sums = _shrunk(sums, shrink)
        shares = _factors(powers, sums, values)
    last, _ = _slot(at + blocks - 1, plan.stages)
    coming = _add(shares, values, ones, last, sums, plan)
    sums = warpgroup_mma_wait(0, coming + shares)[:parts]
    mbarrier.arrive(empty.index(last), count=1)
    return sums, total


@_jit
def _scores_beside_powers(
    q: gl.tensor,
    keys: gl.tensor,
    values: gl.tensor,
    ones: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    at: gl.tensor,
    blocks: gl.tensor,
    scale: gl.tensor,
    plan: gl.constexpr,
) -> gl.tensor:
    largest, total, sums = _nothing_yet(plan)
    parts: gl.constexpr = len(sums)
    index, phase = _slot(at, plan.stages)
    mbarrier.wait(full.index(index), phase)
    scores = _arrived(0, _scores(q, keys, index, plan))
    for block in range(1, blocks):
        last, _ = _slot(at + block - 1, plan.stages)
        index, phase = _slot(at + block, plan.stages)
        mbarrier.wait(full.index(index), phase)
        next_scores = _scores(q, keys, index, plan)
        powers, shrink, largest, total = _shares(scores, largest, total, scale, plan)
        shares = _factors(powers, sums, values)
        coming = _add(shares, values, ones, last, _shrunk(sums, shrink), plan)
        come = warpgroup_mma_wait(0, _with((), next_scores) + coming + shares)
        scores = come[0]
        sums = come[1 : parts + 1]
        mbarrier.arrive(empty.index(last), count=1)
    last, _ = _slot(at + blocks - 1, plan.stages)
    powers, shrink, largest, total = _shares(scores, largest, total, scale, plan)
    shares = _factors(powers, sums, values)
    coming = _add(shares, values, ones, last, _shrunk(sums, shrink), plan)
    sums = warpgroup_mma_wait(0, coming + shares)[:parts]
    mbarrier.arrive(empty.index(last), count=1)
    return sums, total


@_jit
def _zeros(columns: gl.constexpr, plan: gl.constexpr) -> gl.tensor:
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [plan.warps, 1], [16, columns, 16])
    return gl.zeros([16 * plan.warps, columns], gl.float32, layout)


@_jit
def _nothing_yet(plan: gl.constexpr) -> gl.tensor:
    """Largest score, sum of shares, and sums of values, before the first key."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [plan.warps, 1], [16, plan.block_n, 16])
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    sums = (_zeros(plan.v_parts[0], plan),)
    if len(plan.v_parts) == 2:
        sums = _with(sums, _zeros(plan.v_parts[1], plan))
    if plan.ones:
        sums = _with(sums, _zeros(8, plan))
    queries: gl.constexpr = [16 * plan.warps]
    return gl.full(queries, -float("inf"), gl.float32, rows), gl.full(queries, 0.0, gl.float32, rows), sums


@_jit
def _matrix(ring: gl.tensor, index: gl.tensor) -> gl.tensor:
    return ring.index(index).reshape([ring.shape[3], ring.shape[4]])


@_jit
def _query(ring: gl.tensor, group: gl.constexpr, plan: gl.constexpr) -> gl.tensor:
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [plan.warps, 1], [16, plan.block_n, 16])
    query = _matrix(ring, group)
    if not plan.q_shared:
        query = query.load(gl.DotOperandLayout(0, layout, 2))
    return query


@_jit
def _queries(rings: gl.tensor, group: gl.constexpr, plan: gl.constexpr) -> gl.tensor:
    found = ()
    for part in gl.static_range(len(rings)):
        found = _with(found, _query(rings[part], group, plan))
    return found


@_jit
def _scores(q: gl.tensor, keys: gl.tensor, index: gl.tensor, plan: gl.constexpr) -> gl.tensor:
    """Products of queries and keys, on their way."""
    scores = _zeros(plan.block_n, plan)
    scores = warpgroup_mma(q[0], _matrix(keys[0], index).permute([1, 0]), scores, use_acc=False, is_async=True)
    if len(plan.k_parts) == 2:
        scores = warpgroup_mma(q[1], _matrix(keys[1], index).permute([1, 0]), scores, is_async=True)
    return scores


@_jit
def _arrived(pending: gl.constexpr, product: gl.tensor) -> gl.tensor:
    """A product, once no more than so many later ones are on their way."""
    return warpgroup_mma_wait(pending, [product])


@_jit
def _shares(scores: gl.tensor, largest: gl.tensor, total: gl.tensor, scale: gl.tensor, plan: gl.constexpr) -> gl.tensor:
    """Powers of scores, what earlier ones shrink by, the largest score, and the sum of powers."""
    larger = gl.maximum(largest, gl.max(scores, 1) * scale)
    exponents = scores * scale - larger[:, None]
    powers = gl.exp2(exponents)
    if plan.polynomial > 0:
        layout: gl.constexpr = scores.type.layout
        key = gl.arange(0, plan.block_n, gl.SliceLayout(0, layout))
        # which columns is known when this is compiled: of both powers only one is computed
        powers = gl.where(((key // 8) % 8 < plan.polynomial)[None, :], _power_of_two(exponents), powers)
    shrink = gl.exp2(largest - larger)
    if not plan.ones:
        total = total * shrink + gl.sum(powers, 1)
    return powers, shrink, larger, total


@_jit
def _power_of_two(x: gl.tensor) -> gl.tensor:
    """As in `attention`."""
    x = gl.maximum(x, -125.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = x + 12582912.0
    rest = x - (shifted - 12582912.0)
    value = 0.0551716685295105 * rest + 0.2426111251115799
    value = value * rest + 0.6932609677314758
    value = value * rest + 0.9999280571937561
    bits = value.to(gl.int32, bitcast=True) + (shifted.to(gl.int32, bitcast=True) << 23)
    return bits.to(gl.float32, bitcast=True)


@_jit
def _factor(shares: gl.tensor, product: gl.tensor) -> gl.tensor:
    layout: gl.constexpr = gl.DotOperandLayout(0, product.type.layout, 2)
    return gl.convert_layout(shares, layout)


@_jit
def _factors(powers: gl.tensor, sums: gl.tensor, values: gl.tensor) -> gl.tensor:
    """Powers in half precision, as the first factor of each product: the same registers."""
    shares = powers.to(values[0].dtype)
    found = ()
    for part in gl.static_range(len(sums)):
        found = _with(found, _factor(shares, sums[part]))
    return found


@_jit
def _add(
    shares: gl.tensor, values: gl.tensor, ones: gl.tensor, index: gl.tensor, sums: gl.tensor, plan: gl.constexpr
) -> gl.tensor:
    """Sums and the products of shares and values, on their way."""
    coming = (warpgroup_mma(shares[0], _matrix(values[0], index), sums[0], is_async=True),)
    if len(plan.v_parts) == 2:
        coming = _with(coming, warpgroup_mma(shares[1], _matrix(values[1], index), sums[1], is_async=True))
    if plan.ones:
        last: gl.constexpr = len(plan.v_parts)
        coming = _with(coming, warpgroup_mma(shares[last], ones, sums[last], is_async=True))
    return coming


@_jit
def _times(sums: gl.tensor, factor: gl.tensor) -> gl.tensor:
    layout: gl.constexpr = sums.type.layout
    return sums * gl.convert_layout(factor, gl.SliceLayout(1, layout))[:, None]


@_jit
def _shrunk(sums: gl.tensor, shrink: gl.tensor) -> gl.tensor:
    found = ()
    for part in gl.static_range(len(sums)):
        found = _with(found, _times(sums[part], shrink))
    return found


@_jit
def _store(
    base: gl.tensor,
    values: gl.tensor,
    factor: gl.tensor,
    start: gl.tensor,
    tokens: gl.tensor,
    head: gl.tensor,
    heads: gl.tensor,
    first: gl.constexpr,
    width: gl.constexpr,
) -> None:
    layout: gl.constexpr = values.type.layout
    query = start + gl.arange(0, values.shape[0], gl.SliceLayout(1, layout))
    column = first + gl.arange(0, values.shape[1], gl.SliceLayout(0, layout))
    inside = (query < tokens)[:, None] & (column < width)[None, :]
    place = base + (((query * heads + head) * width)[:, None] + column[None, :])
    gl.store(place, _times(values, factor).to(base.dtype.element_ty), mask=inside)
