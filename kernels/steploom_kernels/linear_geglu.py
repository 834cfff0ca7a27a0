"""A linear layer with GEGLU after it as one launch: what the layer makes is never written.

A program computes a tile of the result. Its product is twice as wide: the hidden columns and then the gates that belong
to them, so one instruction of the tensor cores takes both, and each thread holds both of what it multiplies. Sums begin
with the bias. A narrow layer is short work for the tensor cores, so what comes after the product counts.

There are two kernels for one arithmetic. By pointers, on any GPU, a program takes one tile. On Hopper a program stays
on its multiprocessor and walks over tiles; pieces of x and W come by tensor descriptors, for which one thread asks, and
while one tile is finished those of the next are on their way.

The sum of an element goes over x's width in one order, sixteen values at a time, whatever the tile: so the plan may
depend on the number of rows, and a row's result does not, bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels.checks import NETWORK_TYPES, require_array
from steploom_kernels.geglu import geglu, geglu_reference
from steploom_kernels.gelu import gelu_values, gelu_values_for_half
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # no Triton, or one before 3.4: programs take their tiles by pointers
    TensorDescriptor = None


def linear_geglu(x: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`geglu` of x W^T + bias (arXiv 2002.05202, equation 6, in the order of diffusers).

    On a GPU the product is not rounded between. Where torch's product and `geglu` are likely faster, it is those two.

    Args:
        x: [rows, in], contiguous; sums are float32.
        weight: [2 * width, in], contiguous, of x's type: the hidden columns first, then their gates.
        bias: [2 * width], likewise.
        out: [rows, width], likewise; None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if not runs_on_triton(x):
        values = linear_geglu_reference(x, weight, bias)
        return values if out is None else out.copy_(values)
    if _pays(x.shape[-1], x.dtype):
        return linear_geglu_triton(x, weight, bias, out=out)
    return geglu(functional.linear(x, weight, bias), out=out)


def linear_geglu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear_geglu` in plain torch; float64 is computed in float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return geglu_reference(functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))).to(x.dtype)


class Plan(NamedTuple):
    """How the work is cut."""

    block_m: int  # rows of a tile; Hopper's tensor cores take 64 for each four warps
    block_n: int  # columns of the result; of the product twice as many, of which those tensor cores take 256 at once
    block_k: int  # of x's width a step: 64 are a line of memory in half precision
    num_warps: int
    num_stages: int  # steps that are on their way or in use
    # programs of a multiprocessor, which walk over tiles by descriptors; 0: by pointers, a program for each tile
    residents: int = 0


def linear_geglu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, *, out: Tensor | None = None, plan: Plan | None = None
) -> Tensor:
    """`linear_geglu` as one launch; another plan than the usual one is for measurements."""
    require_array("x", x, NETWORK_TYPES, None, None)
    rows, inner = x.shape
    require_array("weight", weight, [x.dtype], None, inner)
    width = len(weight) // 2
    if len(weight) % 2:
        raise ValueError(f"weight has {len(weight)} rows, must be two halves")
    require_array("bias", bias, [x.dtype], 2 * width)
    if out is None:
        out = x.new_empty(rows, width)
    require_array("out", out, [x.dtype], rows, width)
    if out.numel():
        plan = plan or _plan(rows, width, x.dtype.itemsize, _takes_descriptors(out, x, weight))
        (_launch_walk if plan.residents else _launch_tiles)(out, x, weight, bias, plan)
    return out


def _launch_tiles(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, plan: Plan) -> None:
    rows, inner, width = len(x), x.shape[1], out.shape[1]
    _linear_geglu_kernel[(_tiles(plan, rows, width),)](
        out, x, weight, bias, rows, width, inner,
        **_constants(plan, inner), num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip


def _launch_walk(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, plan: Plan) -> None:
    rows, inner, width = len(x), x.shape[1], out.shape[1]
    halves = weight.view(2, width, inner)  # one copy brings a tile of both
    programs = min(_tiles(plan, rows, width), plan.residents * _multiprocessors(x))
    _linear_geglu_walk_kernel[(programs,)](
        TensorDescriptor.from_tensor(out, [plan.block_m, plan.block_n]),
        TensorDescriptor.from_tensor(x, [plan.block_m, plan.block_k]),
        TensorDescriptor.from_tensor(halves, [2, plan.block_n, plan.block_k]),
        bias, rows, width, inner, block_m=plan.block_m, block_n=plan.block_n, block_k=plan.block_k, group=_GROUP,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip


def _tiles(plan: Plan, rows: int, width: int) -> int:
    return cdiv(rows, plan.block_m) * cdiv(width, plan.block_n)


def _multiprocessors(x: Tensor) -> int:
    """In the interpreter few, so that programs walk there too."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2


def _takes_descriptors(*tensors: Tensor) -> bool:
    """On Hopper, for which the plans are made, if all rows begin at multiples of 16 bytes."""
    if TensorDescriptor is None or not tensors[0].is_cuda:
        return False
    if torch.cuda.get_device_capability(tensors[0].device)[0] != 9:
        return False
    return all(each.data_ptr() % _PIECE == 0 and _row_bytes(each) % _PIECE == 0 < _row_bytes(each) for each in tensors)


def _row_bytes(tensor: Tensor) -> int:
    return tensor.shape[1] * tensor.dtype.itemsize


_PIECE = 16  # bytes
_GROUP = (
    8  # blocks of rows whose tiles run side by side: they share W's tiles, and a block's tiles share x, in the cache
)
_FULL_GPU = 128  # multiprocessors
_SINGLE = Plan(32, 32, 32, 4, 1)  # float32 has no use for tensor cores that round it
_MAX_INNER = 1280  # beyond, the product takes so long that what GEGLU adds is less than what a library is better by


def _pays(inner: int, dtype: torch.dtype) -> bool:
    """Whether one launch is likely faster than torch's product and `geglu`: by x's width and type alone."""
    return dtype.itemsize == 2 and inner <= _MAX_INNER


def _plan(rows: int, width: int, item_bytes: int, takes_descriptors: bool) -> Plan:
    """The largest tile of which there are enough for all multiprocessors: what must be read for each grows slower."""
    if item_bytes == 4:
        return _SINGLE
    if not takes_descriptors:
        return Plan(128, 64, 64, 8, 3) if rows > 64 else Plan(64, 64, 64, 4, 3)
    if rows <= 64:
        return Plan(64, 64, 64, 4, 4, residents=2)
    large = Plan(128, 128, 64, 8, 4, residents=1)
    return large if 2 * _tiles(large, rows, width) >= 3 * _FULL_GPU else Plan(128, 64, 64, 8, 3, residents=2)


def candidate_plans() -> list[Plan]:
    """Plans to measure in half precision on Hopper, the usual ones among them: none that would spill."""
    walks = [
        Plan(128, 128, 64, 8, 4, 1), Plan(128, 128, 64, 8, 3, 1), Plan(256, 64, 64, 8, 4, 1),
        Plan(128, 64, 64, 8, 3, 2), Plan(128, 64, 64, 4, 3, 2), Plan(64, 128, 64, 4, 2, 2), Plan(64, 64, 64, 4, 4, 2),
    ]  # fmt: skip
    return [*walks, Plan(128, 128, 64, 8, 4), Plan(128, 64, 64, 8, 3), Plan(128, 64, 64, 4, 3), Plan(64, 64, 64, 4, 3)]


def _constants(plan: Plan, inner: int) -> dict[str, int]:
    return {
        "block_m": plan.block_m,
        "block_n": plan.block_n,
        "block_k": plan.block_k,
        "group": _GROUP,
        "ragged": inner % plan.block_k != 0,
    }


@jit
def _linear_geglu_kernel(
    out: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    inner: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
    ragged: tl.constexpr,
) -> None:
    first_row, first_column = _place(tl.program_id(0), rows, width, block_m, block_n, group)
    row = first_row + tl.arange(0, block_m)
    column = first_column + tl.arange(0, block_n)
    half = tl.arange(0, 2 * block_n) // block_n
    line = first_column + tl.arange(0, 2 * block_n) % block_n
    # what is beyond an edge is read at the edge, and not stored
    line = tl.minimum(line, width - 1) + half * width
    k = tl.arange(0, block_k)
    x_block = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inner + k[None, :]
    weight_block = weight + line.to(tl.int64)[:, None] * inner + k[None, :]
    sums = tl.broadcast_to(_biases(bias, first_column, width, block_n)[None, :], (block_m, 2 * block_n))
    for start in range(0, inner, block_k):
        if ragged:
            inside = (k < inner - start)[None, :]
            taken = tl.load(x_block + start, mask=inside, other=0.0)
            weights = tl.load(weight_block + start, mask=inside, other=0.0)
        else:
            taken = tl.load(x_block + start)
            weights = tl.load(weight_block + start)
        sums = tl.dot(taken, tl.trans(weights), sums, input_precision="ieee")
    result = _gated(sums, block_m, block_n, bias.dtype.element_ty)
    place = out + row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(place, result, mask=(row < rows)[:, None] & (column < width)[None, :])


@jit
def _linear_geglu_walk_kernel(
    out: tl.tensor_descriptor,
    x: tl.tensor_descriptor,
    weight: tl.tensor_descriptor,
    bias: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    inner: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
) -> None:
    """One loop over the steps of all tiles of a program: so the first of a tile are read while the last is finished.

    `reading` runs ahead of `writing`: the compiler moves what only reading needs some steps forward.
    """
    tiles = tl.cdiv(rows, block_m) * tl.cdiv(width, block_n)
    programs = tl.num_programs(0)
    steps = tl.cdiv(inner, block_k)
    writing = tl.program_id(0)
    reading = writing - programs
    count = tl.cdiv(tiles - writing, programs) * steps
    row, column = _place(writing, rows, width, block_m, block_n, group)
    sums = tl.broadcast_to(_biases(bias, column, width, block_n)[None, :], (block_m, 2 * block_n))
    step = steps - 1
    for _ in range(count):
        step = tl.where(step == steps - 1, 0, step + 1)
        if step == 0:
            reading += programs
            row, column = _place(reading, rows, width, block_m, block_n, group)
        taken = x.load([row, step * block_k])
        weights = tl.reshape(weight.load([0, column, step * block_k]), (2 * block_n, block_k))
        sums = tl.dot(taken, tl.trans(weights), sums, input_precision="ieee")
        if step == steps - 1:
            done_row, done_column = _place(writing, rows, width, block_m, block_n, group)
            writing += programs
            _, next_column = _place(writing, rows, width, block_m, block_n, group)
            biases = _biases(bias, next_column, width, block_n)
            out.store([done_row, done_column], _gated(sums, block_m, block_n, bias.dtype.element_ty))
            sums = tl.broadcast_to(biases[None, :], (block_m, 2 * block_n))


@jit
def _place(
    tile: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    group: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A tile's first row and column: tiles go down a group of blocks of rows, then right, then to the next group."""
    across = tl.cdiv(width, block_n)
    above = tile // (group * across) * group
    high = tl.maximum(tl.minimum(tl.cdiv(rows, block_m) - above, group), 1)  # behind the last tile, one
    inside = tile % (group * across)
    return (above + inside % high) * block_m, inside // high * block_n


@jit
def _biases(bias: tl.tensor, first: tl.tensor, width: tl.tensor, block_n: tl.constexpr) -> tl.tensor:
    """Of a tile's hidden columns and then of their gates; zeros where there is no column."""
    half = tl.arange(0, 2 * block_n) // block_n
    column = first + tl.arange(0, 2 * block_n) % block_n
    return tl.load(bias + half * width + column, mask=column < width, other=0.0).to(tl.float32)


@jit
def _gated(sums: tl.tensor, block_m: tl.constexpr, block_n: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """Of sums whose columns are hidden ones and then their gates: a thread holds both, and nothing moves."""
    hidden, gate = tl.split(tl.permute(tl.reshape(sums, (block_m, 2, block_n)), (0, 2, 1)))
    result = hidden * (gelu_values(gate, False) if dtype == tl.float32 else gelu_values_for_half(gate))
    return result.to(dtype)


def variants() -> list[Variant]:
    """The compiled forms for widths of x that are multiples of a step: those of pointers, which run on every GPU."""
    halves = (_plan(rows, 1, 2, takes_descriptors=False) for rows in (1024, 64))
    return [*(_variant(dtype, plan) for plan in halves for dtype in ("fp16", "bf16")), _variant("fp32", _SINGLE)]


def _variant(dtype: str, plan: Plan) -> Variant:
    constants = _constants(plan, 0)
    return Variant(
        name=f"linear_geglu_{dtype}_{plan.block_m}x{plan.block_n}",
        kernel=_linear_geglu_kernel,
        signature={
            **dict.fromkeys(("out", "x", "weight", "bias"), f"*{dtype}"),
            **dict.fromkeys(("rows", "width", "inner"), "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        grid=("cdiv(rows, block_m) * cdiv(width, block_n)", "1", "1"),
        aligned=("out", "x", "weight", "bias", "width", "inner"),
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
