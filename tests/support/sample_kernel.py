"""A kernel with an argument of every kind that an export must know, small enough to compile in a test."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from steploom_kernels.jit import Variant, jit, tl


@jit
def _scaled_sum(
    x: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    factor: tl.tensor,
    half: tl.tensor,
    brain: tl.tensor,
    double: tl.tensor,
    flag: tl.tensor,
    offset: tl.tensor,
    block: tl.constexpr,
) -> None:
    index = tl.program_id(0) * block + tl.arange(0, block)
    mask = index < count
    value = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    value = value * factor + half.to(tl.float32) + brain.to(tl.float32) + double.to(tl.float32) + offset
    if flag:
        value += tl.sum(value, axis=0)
    tl.store(out + index, value, mask=mask)


def scaled_sum_reference(x: Tensor, factor: float, half: float, brain: float, double: float, offset: int) -> Tensor:
    """What the kernel writes where `flag` is 0: float32 [count] from float16 [count]."""
    return x.to(torch.float32) * factor + half + brain + double + offset


SAMPLE = Variant(
    name="scaled_sum_fp16",
    kernel=_scaled_sum,
    signature={
        "x": "*fp16",
        "out": "*fp32",
        "count": "i32",
        "factor": "fp32",
        "half": "fp16",
        "brain": "bf16",
        "double": "fp64",
        "flag": "i1",
        "offset": "i64",
        "block": "constexpr",
    },
    constants={"block": 1024},
    grid=("cdiv(count, block)", "1", "1"),
    aligned=("x", "out", "count"),
)
# Nothing aligned, and a size that the grid alone needs: each copy writes the same.
SMALL = replace(
    SAMPLE,
    name="scaled_sum_small",
    constants={"block": 128},
    grid=("cdiv(count, block)", "copies", "1"),
    aligned=(),
)
