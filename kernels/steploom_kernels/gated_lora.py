"""The change that a low-rank adapter makes to a layer's result, added in place to the rows that it is for.

With the layer's result y of a row's tokens x, and the row's gate g (arXiv 2106.09685, equation 3):

    y <- y + g * (x A^T) B^T

Which adapter a row is of, and its gate, are data on the device, so one captured graph serves any mix of rows. The
programs of a row without adapter, or with a gate of zero, end before they read anything else: such a row is, bit for
bit, what the layer made of it.

Both products are one launch. A program takes a block of tokens, keeps their x A^T (a few numbers a token) on the chip,
and then walks over columns of y, which it reads and writes once. x is read once too, unless a small batch would leave
most of the GPU idle: then several programs share a block's columns, and each computes x A^T for itself. How columns are
shared does not change a result, so a row's does not depend on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_array, require_dtype, require_shape
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

MAX_RANK = 64


def gated_lora(y: Tensor, x: Tensor, down: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> None:
    """Adds the change of each row's adapter to a linear layer's result.

    Args:
        y: [rows, tokens, out], changed: what the layer gave. Values of a token lie side by side.
        x: [rows, tokens, in], what the layer was given, likewise; of y's type.
        down: [adapters, rank, in], contiguous, of y's type: A of each adapter.
        up: [adapters, out, rank], likewise: B.
        gates: float32 [rows], how far a row's adapter counts; with 0 the row is not touched.
        adapters: int32 [rows], the row's adapter, or -1 for none: the row is not touched.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout, or the rank is above 64.
    """
    (gated_lora_triton if runs_on_triton(y) else gated_lora_reference)(y, x, down, up, gates, adapters)


def gated_up(y: Tensor, hidden: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> None:
    """The second half of `gated_lora`, for a convolution: y <- y + g * hidden B^T.

    The first half is a convolution with the adapters' A as its output channels, one adapter after the other; pictures
    that are channels last go in as [rows, pixels, channels].

    Args:
        y: [rows, pixels, out], changed.
        hidden: [rows, pixels, adapters * rank], of y's type: what A of each adapter gave.
        up: [adapters, out, rank].
        gates: float32 [rows].
        adapters: int32 [rows].

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout, or the rank is above 64.
    """
    (gated_up_triton if runs_on_triton(y) else gated_up_reference)(y, hidden, up, gates, adapters)


def gated_lora_reference(
    y: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    gates: Tensor,
    adapters: Tensor,
    compute: torch.dtype = torch.float32,
) -> None:
    """`gated_lora` in plain torch, computed in the type `compute`."""
    for row, adapter in _touched(gates, adapters):
        hidden = x[row].to(compute) @ down[adapter].to(compute).T
        y[row] = y[row].to(compute) + gates[row].to(compute) * (hidden @ up[adapter].to(compute).T)


def gated_up_reference(
    y: Tensor, hidden: Tensor, up: Tensor, gates: Tensor, adapters: Tensor, compute: torch.dtype = torch.float32
) -> None:
    """`gated_up` in plain torch, computed in the type `compute`."""
    rank = up.shape[2]
    for row, adapter in _touched(gates, adapters):
        own = hidden[row, :, adapter * rank : (adapter + 1) * rank].to(compute)
        y[row] = y[row].to(compute) + gates[row].to(compute) * (own @ up[adapter].to(compute).T)


def _touched(gates: Tensor, adapters: Tensor) -> list[tuple[int, int]]:
    """The rows that change, and their adapters."""
    pairs = zip(gates.tolist(), adapters.tolist(), strict=True)
    return [(row, adapter) for row, (gate, adapter) in enumerate(pairs) if gate != 0.0 and adapter >= 0]


_BLOCK_K = 64  # of x's width a step: a line of memory in half precision
_BLOCK_N = 64  # columns of y a step
_MIN_SPAN = 256  # columns of a program that shares a block of tokens, at least: x A^T is computed for each of them
_FULL_GPU = 128  # programs


def gated_lora_triton(y: Tensor, x: Tensor, down: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> None:
    """`gated_lora` as one launch."""
    _check(y, up, gates, adapters)
    rows, tokens, out = y.shape
    _require_tokens("x", x, rows, tokens, None)
    require_dtype("x", x, y.dtype)
    num_adapters, _, rank = up.shape
    require_array("down", down, [y.dtype], num_adapters, rank, x.shape[2])
    if not y.numel():
        return
    block_m, span = _plan(rows, tokens, out)
    _gated_lora_kernel[(cdiv(tokens, block_m) * cdiv(out, span), rows)](
        y, x, down, up, gates, adapters, tokens, x.shape[2], out, rank, span,
        y.stride(0), y.stride(1), x.stride(0), x.stride(1),
        padded=_padded(rank), block_m=block_m, block_n=_BLOCK_N, block_k=_BLOCK_K, num_warps=4, num_stages=3,
    )  # fmt: skip


def gated_up_triton(y: Tensor, hidden: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> None:
    """`gated_up` as one launch."""
    _check(y, up, gates, adapters)
    rows, tokens, out = y.shape
    num_adapters, _, rank = up.shape
    _require_tokens("hidden", hidden, rows, tokens, num_adapters * rank)
    require_dtype("hidden", hidden, y.dtype)
    if not y.numel():
        return
    block_m, span = _plan(rows, tokens, out)
    _gated_up_kernel[(cdiv(tokens, block_m) * cdiv(out, span), rows)](
        y, hidden, up, gates, adapters, tokens, out, rank, span,
        y.stride(0), y.stride(1), hidden.stride(0), hidden.stride(1),
        padded=_padded(rank), block_m=block_m, block_n=_BLOCK_N, num_warps=4, num_stages=3,
    )  # fmt: skip


def _plan(rows: int, tokens: int, out: int) -> tuple[int, int]:
    """Tokens and columns of a program."""
    block_m = 64 if tokens > 16 else 16
    shares = min(_FULL_GPU // (rows * cdiv(tokens, block_m)), out // _MIN_SPAN)
    return block_m, cdiv(cdiv(out, max(shares, 1)), _BLOCK_N) * _BLOCK_N


def _padded(rank: int) -> int:
    """The tensor cores take no less than 16, and powers of two."""
    return max(16, 1 << (rank - 1).bit_length())


def _check(y: Tensor, up: Tensor, gates: Tensor, adapters: Tensor) -> None:
    require_dtype("y", y, *NETWORK_TYPES)
    _require_tokens("y", y, None, None, None)
    rows, _, out = y.shape
    require_array("up", up, [y.dtype], None, out, None)
    if not 1 <= up.shape[2] <= MAX_RANK:
        raise ValueError(f"up has rank {up.shape[2]}, must be 1 to {MAX_RANK}")
    require_array("gates", gates, [torch.float32], rows)
    require_array("adapters", adapters, [torch.int32], rows)


def _require_tokens(name: str, tensor: Tensor, *shape: int | None) -> None:
    require_shape(name, tensor, *shape)
    if tensor.stride(2) != 1:
        raise ValueError(f"{name} must hold the values of a token side by side, its strides are {tensor.stride()}")


@jit
def _gated_lora_kernel(
    y: tl.tensor,
    x: tl.tensor,
    down: tl.tensor,
    up: tl.tensor,
    gates: tl.tensor,
    adapters: tl.tensor,
    tokens: tl.tensor,
    width: tl.tensor,
    out: tl.tensor,
    rank: tl.tensor,
    span: tl.tensor,
    y_row: tl.tensor,
    y_token: tl.tensor,
    x_row: tl.tensor,
    x_token: tl.tensor,
    padded: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    gate = tl.load(gates + row)
    adapter = tl.load(adapters + row).to(tl.int64)
    if (gate == 0.0) | (adapter < 0):
        return
    shares = tl.cdiv(out, span)
    token = tl.program_id(0) // shares * block_m + tl.arange(0, block_m)
    start = tl.program_id(0) % shares * span

    line = tl.arange(0, padded)
    k = tl.arange(0, block_k)
    x_block = x + row * x_row + token[:, None].to(tl.int64) * x_token + k[None, :]
    down_block = down + adapter * rank * width + line[:, None] * width + k[None, :]
    hidden = tl.zeros((block_m, padded), tl.float32)
    for first in range(0, width, block_k):
        left = width - first
        taken = tl.load(x_block + first, mask=(token[:, None] < tokens) & (k[None, :] < left), other=0.0)
        weight = tl.load(down_block + first, mask=(line[:, None] < rank) & (k[None, :] < left), other=0.0)
        hidden = tl.dot(taken, tl.trans(weight), hidden, input_precision="ieee")
    hidden = (hidden * gate).to(y.dtype.element_ty)
    y += row * y_row
    up += adapter * out * rank
    _add_columns(y, up, hidden, token, line, tokens, out, rank, start, span, y_token, block_n)


@jit
def _gated_up_kernel(
    y: tl.tensor,
    hidden: tl.tensor,
    up: tl.tensor,
    gates: tl.tensor,
    adapters: tl.tensor,
    tokens: tl.tensor,
    out: tl.tensor,
    rank: tl.tensor,
    span: tl.tensor,
    y_row: tl.tensor,
    y_token: tl.tensor,
    hidden_row: tl.tensor,
    hidden_token: tl.tensor,
    padded: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    gate = tl.load(gates + row)
    adapter = tl.load(adapters + row).to(tl.int64)
    if (gate == 0.0) | (adapter < 0):
        return
    shares = tl.cdiv(out, span)
    token = tl.program_id(0) // shares * block_m + tl.arange(0, block_m)
    start = tl.program_id(0) % shares * span

    line = tl.arange(0, padded)
    place = token[:, None].to(tl.int64) * hidden_token + adapter * rank + line[None, :]
    inside = (token[:, None] < tokens) & (line[None, :] < rank)
    own = tl.load(hidden + row * hidden_row + place, mask=inside, other=0.0)
    own = (own.to(tl.float32) * gate).to(y.dtype.element_ty)
    y += row * y_row
    up += adapter * out * rank
    _add_columns(y, up, own, token, line, tokens, out, rank, start, span, y_token, block_n)


@jit
def _add_columns(
    y: tl.tensor,
    up: tl.tensor,
    hidden: tl.tensor,
    token: tl.tensor,
    line: tl.tensor,
    tokens: tl.tensor,
    out: tl.tensor,
    rank: tl.tensor,
    start: tl.tensor,
    span: tl.tensor,
    y_token: tl.tensor,
    block_n: tl.constexpr,
) -> None:
    """y[tokens, start : start + span] += hidden up^T."""
    n = tl.arange(0, block_n)
    y_block = y + token[:, None].to(tl.int64) * y_token + n[None, :]
    up_block = up + n[:, None] * rank + line[None, :]
    stop = tl.minimum(start + span, out)
    for first in range(start, stop, block_n):
        left = stop - first
        inside = (token[:, None] < tokens) & (n[None, :] < left)
        old = tl.load(y_block + first, mask=inside, other=0.0)
        weight = tl.load(up_block + first * rank, mask=(n[:, None] < left) & (line[None, :] < rank), other=0.0)
        change = tl.dot(hidden, tl.trans(weight), input_precision="ieee")
        tl.store(y_block + first, (old.to(tl.float32) + change).to(old.dtype), mask=inside)


def variants() -> list[Variant]:
    """The compiled forms: each rank that the tensor cores know, for pictures and for single tokens."""
    return [
        make(name, rank, block_m)
        for name in ("fp16", "bf16")
        for rank in (16, 32, 64)
        for make, block_m in ((_lora_variant, 64), (_lora_variant, 16), (_up_variant, 64))
    ]


def _lora_variant(name: str, rank: int, block_m: int) -> Variant:
    integers = ("tokens", "width", "out", "rank", "span", "y_row", "y_token", "x_row", "x_token")
    blocks = {"padded": rank, "block_m": block_m, "block_n": _BLOCK_N, "block_k": _BLOCK_K}
    return Variant(
        name=f"gated_lora_{name}_rank{rank}_tokens{block_m}",
        kernel=_gated_lora_kernel,
        signature={
            **dict.fromkeys(("y", "x", "down", "up"), f"*{name}"),
            "gates": "*fp32",
            "adapters": "*i32",
            **dict.fromkeys(integers, "i32"),
            **dict.fromkeys(blocks, "constexpr"),
        },
        constants=blocks,
        grid=("cdiv(tokens, block_m) * cdiv(out, span)", "rows", "1"),
        aligned=("y", "x", "down", "up", "width", "out", "rank", "span", "y_row", "y_token", "x_row", "x_token"),
        num_warps=4,
        num_stages=3,
    )


def _up_variant(name: str, rank: int, block_m: int) -> Variant:
    integers = ("tokens", "out", "rank", "span", "y_row", "y_token", "hidden_row", "hidden_token")
    blocks = {"padded": rank, "block_m": block_m, "block_n": _BLOCK_N}
    return Variant(
        name=f"gated_up_{name}_rank{rank}_tokens{block_m}",
        kernel=_gated_up_kernel,
        signature={
            **dict.fromkeys(("y", "hidden", "up"), f"*{name}"),
            "gates": "*fp32",
            "adapters": "*i32",
            **dict.fromkeys(integers, "i32"),
            **dict.fromkeys(blocks, "constexpr"),
        },
        constants=blocks,
        grid=("cdiv(tokens, block_m) * cdiv(out, span)", "rows", "1"),
        aligned=("y", "hidden", "up", "out", "rank", "span", "y_row", "y_token", "hidden_row", "hidden_token"),
        num_warps=4,
        num_stages=3,
    )
