"""Attention without a mask, whose scores never leave the chip, for heads whose width need not be a power of two.

A program keeps a block of one head's queries and walks over the keys, a block at a time. The softmax of what it has
seen is kept up to a factor, which is corrected whenever a larger score appears (arXiv 2205.14135, algorithm 1;
2307.08691, algorithm 1: divided by its sum once, at the end). Powers are of two: the logarithm of e is in the scale.

Tensor cores take powers of two from 16 up. A head of 40 padded to 64 would waste three eighths of them, so a width is
cut in two: 40 is 32 + 16, of which eight lanes are padding, 80 is 64 + 16 and 160 is 128 + 32. A score is the sum of
two products; a result has two accumulators.

In a narrow head powers cost as much as products: a multiprocessor has 128 multipliers, but takes only 16 powers a
clock. Some columns of a block may therefore take theirs from a polynomial on the multipliers (`power_of_two`), while
the others wait for the unit that has powers built in. How many is a part of the plan, and decided by measurement.

Hopper's tensor cores compute while a program goes on. Where the plan says so, the scores of the next block are begun
before the powers of this one are taken (arXiv 2407.08608, section 3.2), so that both units have work.

The plan depends on a head's width and the number of tokens, never on the number of pictures: a picture's result is the
same in any batch, bit for bit.

On Hopper some shapes have a kernel of their own: `hopper_attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steploom_kernels import hopper_attention
from steploom_kernels.checks import NETWORK_TYPES, require_array, require_dtype, require_shape
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

MAX_WIDTH = 256
MAX_ROWS = 65535  # the third side of CUDA's grid; heads are the second
_LOG2_E = 1.4426950408889634


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, out: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scale) v for each picture and head (arXiv 1706.03762, equation 1).

    Args:
        q: [n, tokens_q, heads, d]; values of a head side by side, otherwise of any strides: a slice of one wide
            projection [n, tokens, 3 * heads * d] will do. d is a multiple of 8, at most 256. Products are of this type,
            their sums and the softmax float32.
        k: [n, tokens_k, heads, d], likewise, of q's type.
        v: like k.
        scale: what scores are multiplied by, positive; None for 1 / sqrt(d).
        out: [n, tokens_q, heads, d], contiguous, of q's type; None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(q):
        _check(q, k, v, scale)
        if hopper_attention.fits(q, k, v):
            _check_out(out, q)
            return hopper_attention.attention_hopper(q, k, v, scale=scale, out=out)
        return attention_triton(q, k, v, scale=scale, out=out)
    values = attention_reference(q, k, v, scale=scale)
    return values if out is None else out.copy_(values)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """`attention` in plain torch; float64 is computed in float64."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    query, key, value = (each.to(dtype).transpose(1, 2) for each in (q, k, v))  # [n, heads, tokens, d]
    scores = query @ key.mT * _scale(scale, q.shape[-1])
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).to(q.dtype).contiguous()


def _scale(scale: float | None, width: int) -> float:
    return width**-0.5 if scale is None else scale


class Plan(NamedTuple):
    """How the work is cut."""

    block_m: int  # queries of a program; Hopper's tensor cores take 64 for each four warps
    block_n: int  # keys at a time
    num_warps: int
    # blocks of keys and values that are on their way or in use; at least two: without any on their way Triton 3.6
    # multiplies a part of 16 columns wrongly on Hopper, if a block has more than 32 keys
    num_stages: int
    polynomial: int  # of eight groups of eight neighbouring keys, how many take their powers from the polynomial
    ahead: bool = False  # scores of the next block are begun before the powers of this one: more registers


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    out: Tensor | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """`attention` as one launch; another plan than the usual one is for measurements."""
    rows, tokens_q, heads, width = _check(q, k, v, scale)
    tokens_k = k.shape[1]
    _check_out(out, q)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    plan = plan or _plan(width, tokens_q, tokens_k, q.dtype.itemsize)
    strides = [stride for each in (q, k, v) for stride in each.stride()[:3]]
    piece = _PIECE if all(stride % _PIECE == 0 for stride in strides) else 1
    _attention_kernel[(cdiv(tokens_q, plan.block_m), heads, rows)](
        out, q, k, v, tokens_q, tokens_k, heads, _scale(scale, width) * _LOG2_E,
        *(stride // piece for stride in strides),
        **_constants(plan, width, tokens_k, piece), num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[int, int, int, int]:
    """Pictures, queries, heads and a head's width."""
    require_dtype("q", q, *NETWORK_TYPES)
    require_shape("q", q, None, None, None, None)
    rows, tokens_q, heads, width = q.shape
    if width % _PIECE or not 0 < width <= MAX_WIDTH:
        raise ValueError(f"q has heads of {width}, must be a multiple of {_PIECE}, at most {MAX_WIDTH}")
    if max(rows, heads) > MAX_ROWS:
        raise ValueError(f"q is {list(q.shape)}, must be of at most {MAX_ROWS} pictures and heads")
    require_shape("k", k, rows, None, heads, width)
    if not k.shape[1]:
        raise ValueError("k has no tokens: there is nothing to attend to")
    require_shape("v", v, *k.shape)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require_dtype(name, tensor, q.dtype)
        if tensor.stride(3) != 1:
            raise ValueError(f"{name} must hold the values of a head side by side, its strides are {tensor.stride()}")
    if scale is not None and not scale > 0.0:
        raise ValueError(f"scale is {scale}, must be positive")
    return rows, tokens_q, heads, width


def _check_out(out: Tensor | None, q: Tensor) -> None:
    if out is not None:
        require_array("out", out, [q.dtype], *q.shape)


# Values of half precision in 16 bytes. Strides are given in such pieces: that they are whole ones is then known.
_PIECE = 8
_SINGLE = Plan(32, 32, 4, 1, 0)  # float32 has no use for tensor cores that round it


def _plan(width: int, tokens_q: int, tokens_k: int, item_bytes: int = 2) -> Plan:
    """By the width of a head and the numbers of tokens alone."""
    if item_bytes == 4:
        return _SINGLE
    if tokens_k <= 128:  # a text
        # one block, or where accumulators leave no registers for its scores, blocks that 77 nearly fills
        return Plan(64, max(32, _power_of_two(tokens_k)) if width <= 64 else 32, 4, 2, 0)
    if width <= 64:
        return Plan(128, 64, 8, 3, 0) if tokens_q >= 1024 else Plan(64, 64, 4, 3, 0)
    if width <= 96:
        return Plan(128, 64, 8, 2, 0) if tokens_q >= 1024 else Plan(64, 64, 4, 2, 0)
    return Plan(64, 64, 4, 2, 0) if width <= 160 else Plan(64, 32, 4, 2, 0)


def candidate_plans(width: int, tokens_k: int) -> list[Plan]:
    """Plans to measure for heads of a width and so many keys, the usual one among them: none that would spill."""
    widest = 128 if width <= 96 else 64  # accumulators leave no registers for more
    if tokens_k <= 128:
        return [Plan(m, n, m // 16, 2, 0) for m in (64, 128) for n in (32, 64, 128) if n <= widest]
    shapes = [(m, n, m // 16) for m in (64, 128) for n in (32, 64, 128) if widest // 2 <= n <= widest]
    if width <= 64:
        shapes.append((128, 64, 4))
    plans = [Plan(*shape, stages, 0, ahead) for shape in shapes for stages in (2, 3) for ahead in (False, True)]
    mixed = [plan for plan in plans if plan.block_n >= 64 and plan.num_stages == 2]
    return plans + [plan._replace(polynomial=share) for plan in mixed for share in (1, 2)]


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _parts(width: int) -> tuple[int, int]:
    """Two powers of two that the tensor cores take and that hold a head, the second 0 where one is no larger."""
    whole = max(16, _power_of_two(width))
    first = whole // 2
    second = max(16, _power_of_two(width - first)) if width > first >= 16 else whole
    return (first, second) if first + second < whole else (whole, 0)


def _constants(plan: Plan, width: int, tokens_k: int, piece: int) -> dict[str, int]:
    first, second = _parts(width)
    return {
        "width": width,
        "first": first,
        "second": second,
        "block_m": plan.block_m,
        "block_n": plan.block_n,
        "ragged": tokens_k % plan.block_n != 0,
        "polynomial": plan.polynomial,
        "ahead": plan.ahead,
        "piece": piece,
    }


@jit
def _attention_kernel(
    out: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    tokens_q: tl.tensor,
    tokens_k: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_row: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    width: tl.constexpr,
    first: tl.constexpr,
    second: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    ragged: tl.constexpr,
    polynomial: tl.constexpr,
    ahead: tl.constexpr,
    piece: tl.constexpr,
) -> None:
    start = tl.program_id(0).to(tl.int64) * block_m
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    q += row * (q_row * piece) + head * (q_head * piece) + start * (q_token * piece)
    k += row * (k_row * piece) + head * (k_head * piece)
    v += row * (v_row * piece) + head * (v_head * piece)

    query = tl.arange(0, block_m)
    key = tl.arange(0, block_n)
    is_query = query < tokens_q - start
    q_first = _tokens(q, query, q_token * piece, is_query, True, 0, first, width)
    q_second = q_first
    sums_first = tl.zeros((block_m, first), tl.float32)
    if second:
        q_second = _tokens(q, query, q_token * piece, is_query, True, first, second, width)
        sums_second = tl.zeros((block_m, second), tl.float32)
    largest = tl.full((block_m,), -float("inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    if ahead:
        coming = _scores(q_first, q_second, k, key, k_token * piece, key < tokens_k, ragged, first, second, width)
    for done in range(0, tokens_k, block_n):
        is_key = key < tokens_k - done
        if ahead:
            scores = coming
            # after the last block comes nothing, or where nothing is masked that block once more
            k += (block_n if ragged else tl.where(done + block_n < tokens_k, block_n, 0)) * (k_token * piece)
            is_next = key < tokens_k - (done + block_n)
            coming = _scores(q_first, q_second, k, key, k_token * piece, is_next, ragged, first, second, width)
        else:
            scores = _scores(q_first, q_second, k, key, k_token * piece, is_key, ragged, first, second, width)
            k += block_n * (k_token * piece)
        if ragged:
            scores = tl.where(is_key[None, :], scores, -float("inf"))

        larger = tl.maximum(largest, tl.max(scores, axis=1) * scale)
        exponents = scores * scale - larger[:, None]
        powers = tl.exp2(exponents)
        if polynomial:
            # which columns is known when this is compiled: of both powers only one is computed
            powers = tl.where(((key // 8) % 8 < polynomial)[None, :], power_of_two(exponents), powers)
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(powers, axis=1)
        largest = larger

        shares = powers.to(v.dtype.element_ty)
        v_first = _tokens(v, key, v_token * piece, is_key, ragged, 0, first, width)
        sums_first = tl.dot(shares, v_first, sums_first * shrink[:, None], input_precision="ieee")
        if second:
            v_second = _tokens(v, key, v_token * piece, is_key, ragged, first, second, width)
            sums_second = tl.dot(shares, v_second, sums_second * shrink[:, None], input_precision="ieee")
        v += block_n * (v_token * piece)

    factor = (1.0 / total)[:, None]
    out += ((row * tokens_q + start) * heads + head) * width
    _store(out, sums_first * factor, query, heads * width, is_query, 0, first, width)
    if second:
        _store(out, sums_second * factor, query, heads * width, is_query, first, second, width)


@jit
def _scores(
    q_first: tl.tensor,
    q_second: tl.tensor,
    k: tl.tensor,
    key: tl.tensor,
    stride: tl.tensor,
    is_key: tl.tensor,
    ragged: tl.constexpr,
    first: tl.constexpr,
    second: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:
    """Products [queries, keys]. The narrow part comes first: only for that the compiler lets the program wait."""
    if second:
        k_second = _tokens(k, key, stride, is_key, ragged, first, second, width)
        scores = tl.dot(q_second, tl.trans(k_second), input_precision="ieee")
        k_first = _tokens(k, key, stride, is_key, ragged, 0, first, width)
        scores = tl.dot(q_first, tl.trans(k_first), scores, input_precision="ieee")
    else:
        k_first = _tokens(k, key, stride, is_key, ragged, 0, first, width)
        scores = tl.dot(q_first, tl.trans(k_first), input_precision="ieee")
    return scores


@jit
def _tokens(
    base: tl.tensor,
    token: tl.tensor,
    stride: tl.tensor,
    is_token: tl.tensor,
    ragged: tl.constexpr,
    start: tl.constexpr,
    columns: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:
    """Columns [tokens, columns] of a head from `start` on, with zeros where there is no token or no column."""
    column = start + tl.arange(0, columns)
    place = base + (token[:, None] * stride + column[None, :])
    if ragged and start + columns > width:
        values = tl.load(place, mask=is_token[:, None] & (column < width)[None, :], other=0.0)
    elif ragged:
        values = tl.load(place, mask=is_token[:, None], other=0.0)
    elif start + columns > width:
        values = tl.load(place, mask=(column < width)[None, :], other=0.0)
    else:
        values = tl.load(place)
    return values


@jit
def _store(
    base: tl.tensor,
    values: tl.tensor,
    token: tl.tensor,
    stride: tl.tensor,
    is_token: tl.tensor,
    start: tl.constexpr,
    columns: tl.constexpr,
    width: tl.constexpr,
) -> None:
    column = start + tl.arange(0, columns)
    inside = is_token[:, None] & (column < width)[None, :]
    tl.store(base + (token[:, None] * stride + column[None, :]), values, mask=inside)


@jit
def power_of_two(x: tl.tensor) -> tl.tensor:
    """Inside of a kernel: 2**x of float32 values of at most 0, to a relative 2**-13.7: half precision rounds by more.

    The whole number next to x goes into the exponent (Cody and Waite; for base two the rest is exact), and 2**rest,
    for a rest of -1/2 to 1/2, is the polynomial of degree 3 whose largest relative error is least. Below -125 it stays
    2**-125: beside the largest power, which is 1, that is nothing.
    """
    x = tl.maximum(x, -125.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = x + 12582912.0  # 1.5 * 2**23: what is after the point is rounded off, and the low bits are the number
    rest = x - (shifted - 12582912.0)
    value = 0.0551716685295105 * rest + 0.2426111251115799
    value = value * rest + 0.6932609677314758
    value = value * rest + 0.9999280571937561
    bits = value.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


# A head's width, queries and keys: Stable Diffusion's UNet for 512 x 512 pixels, and the embedded model.
_SHAPES = (
    (40, 4096, 4096), (40, 4096, 77), (80, 1024, 1024), (80, 1024, 77), (160, 256, 256), (160, 256, 77), (160, 64, 64),
    (160, 64, 77), (24, 256, 256), (24, 256, 32), (40, 64, 64), (40, 64, 32),
)  # fmt: skip


def variants() -> list[Variant]:
    """The compiled forms of the models' shapes, for strides that are multiples of 8 values."""
    found = (_variant(dtype, *shape) for dtype in ("fp16", "bf16") for shape in _SHAPES)
    return list({variant.name: variant for variant in found}.values())


def _variant(dtype: str, width: int, tokens_q: int, tokens_k: int) -> Variant:
    plan = _plan(width, tokens_q, tokens_k)
    constants = _constants(plan, width, tokens_k, _PIECE)
    pointers = dict.fromkeys(("out", "q", "k", "v"), f"*{dtype}")
    strides = [f"{name}_{axis}" for name in ("q", "k", "v") for axis in ("row", "token", "head")]
    ragged = "_ragged" if constants["ragged"] else ""
    return Variant(
        name=f"attention_{dtype}_{width}_{plan.block_m}x{plan.block_n}{ragged}",
        kernel=_attention_kernel,
        signature={
            **pointers,
            **dict.fromkeys(("tokens_q", "tokens_k", "heads"), "i32"),
            "scale": "fp32",
            **dict.fromkeys(strides, "i32"),
            **dict.fromkeys(constants, "constexpr"),
        },
        constants=constants,
        grid=("cdiv(tokens_q, block_m)", "heads", "rows"),
        aligned=tuple(pointers),
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
