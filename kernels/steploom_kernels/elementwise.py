"""What elementwise kernels share: the tensors that they take, and how a flat run of values is cut into programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_dtype, require_shape
from steploom_kernels.jit import Variant

NUM_WARPS = 4
# Values that a program of 128 threads takes; with the larger, four loads of 16 bytes a thread in half precision.
BLOCKS = (1024, 4096)
_BUSY = 1024  # programs that keep a large GPU (132 multiprocessors) busy


def flat_plan(total: int) -> int:
    """Values a program takes: few are spread over all of the chip, many take more a thread."""
    return BLOCKS[total >= BLOCKS[1] * _BUSY]


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the memory of [n, c, h, w] is [n, h, w, c]."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def require_dense(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the memory has no gaps: in the order of the axes, or channels last."""
    if not (tensor.is_contiguous() or is_channels_last(tensor)):
        raise ValueError(f"{name} must be contiguous or channels last, its strides are {tensor.stride()}")


def in_one_order(x: Tensor, out: Tensor) -> bool:
    """Whether two dense tensors of one shape have their values in the same order in memory."""
    return (x.is_contiguous() and out.is_contiguous()) or (is_channels_last(x) and is_channels_last(out))


def output_like(x: Tensor, out: Tensor | None, name: str = "out") -> Tensor:
    """`out`, or a new tensor like x, which is dense.

    Raises:
        ValueError: out has another shape, type or order in memory than x.
    """
    if out is None:
        return torch.empty_like(x)
    require_shape(name, out, *x.shape)
    require_dtype(name, out, x.dtype)
    if not in_one_order(x, out):
        raise ValueError(f"{name} must be laid out as x, its strides are {out.stride()} and not {x.stride()}")
    return out


def elementwise_output(x: Tensor, out: Tensor | None) -> Tensor:
    """`output_like`, for an x of any shape.

    Raises:
        ValueError: x has gaps in memory or is no type of a network, or out is not like x.
    """
    require_dtype("x", x, *NETWORK_TYPES)
    require_dense("x", x)
    return output_like(x, out)


def flat_variants(name: str, kernel: Any, **constants: bool) -> list[Variant]:
    """The compiled forms of a kernel of (x, out, total, constants..., block)."""
    return [
        Variant(
            name=f"{name}_{dtype}_{block}",
            kernel=kernel,
            signature={
                "x": f"*{dtype}",
                "out": f"*{dtype}",
                "total": "i32",
                **dict.fromkeys([*constants, "block"], "constexpr"),
            },
            constants={**constants, "block": block},
            grid=("cdiv(total, block)", "1", "1"),
            aligned=("x", "out", "total"),
            num_warps=NUM_WARPS,
        )
        for dtype in ("fp16", "bf16", "fp32")
        for block in BLOCKS
    ]
