"""Which rows of a network's result are finite throughout: a job whose values are not must end, and not spread.

A program reads one row from end to end, 16 bytes a thread at a time. There are few rows, so most of the chip is idle
meanwhile; but what it reads was just written and comes from the cache, and one launch is all there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_array
from steploom_kernels.jit import Variant, jit, runs_on_triton, tl


def are_finite(values: Tensor, out: Tensor | None = None) -> Tensor:
    """Whether all values of a row are finite.

    Args:
        values: [rows, count], contiguous.
        out: where to put it, or None for a new tensor.

    Returns:
        bool [rows].

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(values):
        return are_finite_triton(values, out)
    flags = are_finite_reference(values)
    return flags if out is None else out.copy_(flags)


def are_finite_reference(values: Tensor) -> Tensor:
    """`are_finite` in plain torch."""
    return torch.isfinite(values).all(dim=1)


_BLOCK = 4096  # values a program looks at in one turn: 16 a thread


def are_finite_triton(values: Tensor, out: Tensor | None = None) -> Tensor:
    """`are_finite` as one launch."""
    require_array("values", values, NETWORK_TYPES, None, None)
    rows, count = values.shape
    if out is None:
        out = torch.empty(rows, dtype=torch.bool, device=values.device)
    require_array("out", out, [torch.bool], rows)
    if rows:
        _are_finite_kernel[(rows,)](out.view(torch.uint8), values, count, block=_BLOCK, num_warps=8)
    return out


@jit
def _are_finite_kernel(out: tl.tensor, values: tl.tensor, count: tl.tensor, block: tl.constexpr) -> None:
    row = tl.program_id(0)
    first = values + row.to(tl.int64) * count
    largest = tl.zeros([block], tl.float32)
    for start in range(0, count, block):
        index = start + tl.arange(0, block)
        value = tl.load(first + index, mask=index < count, other=0.0).to(tl.float32)
        is_finite = tl.abs(value) < float("inf")  # false of not-a-numbers too
        largest = tl.where(is_finite, largest, 1.0)
    tl.store(out + row, (tl.max(largest, 0) == 0.0).to(tl.uint8))


def variants() -> list[Variant]:
    """The compiled forms: a flag is a byte."""
    return [
        Variant(
            name=f"are_finite_{name}",
            kernel=_are_finite_kernel,
            signature={"out": "*u8", "values": f"*{name}", "count": "i32", "block": "constexpr"},
            constants={"block": _BLOCK},
            grid=("rows", "1", "1"),
            aligned=("values", "count"),
            num_warps=8,
        )
        for name in ("fp16", "bf16", "fp32")
    ]
