"""Linear layers in e4m3, floats of 8 bits: inputs are quantised by a scale, and torch multiplies on the tensor cores.

A scale brings values into e4m3's range of 448: x is about scale * codes. e4m3 has four significant bits at any size
from 2**-6 to 448, so a scale must keep the largest value below the end; how far below matters little. Values beyond the
end are set to it, since e4m3 has no infinity; what is not finite becomes not a number, so that it is found.

A weight has a scale for each output channel. That of the input is one number, known before (a pass over the input would
be needed to find it): it is part of the channels' scales, and the product reads no others.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from steploom_kernels.checks import NETWORK_TYPES, require_dtype, require_shape
from steploom_kernels.elementwise import BLOCKS, NUM_WARPS, flat_plan, in_one_order, require_dense
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

E4M3 = torch.float8_e4m3fn  # 1 sign, 4 exponent, 3 fraction bits; no infinity (arXiv 2209.05433, section 3)
LARGEST = 448.0
LOWEST_CAPABILITY = (8, 9)  # of GPUs whose tensor cores and conversions know e4m3
MULTIPLE = 16  # of both sides of a weight: what the product takes


def quantise(x: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """x / scale in e4m3, rounded to nearest even; beyond 448 it is 448, and not a number where x is not finite.

    Args:
        x: any shape, contiguous or channels last.
        scale: above 0.
        out: e4m3, of the shape and layout of x; None for a new tensor.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(x):
        return quantise_triton(x, scale, out=out)
    codes = quantise_reference(x, scale)
    return codes if out is None else out.copy_(codes)


def quantise_reference(x: Tensor, scale: float) -> Tensor:
    """`quantise` in plain torch."""
    values = x.float() * (1.0 / scale)
    codes = torch.where(values.isfinite(), values.clamp(-LARGEST, LARGEST), math.nan)
    return codes.to(E4M3)


def quantise_triton(x: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """`quantise` as one launch."""
    require_dtype("x", x, *NETWORK_TYPES)
    require_dense("x", x)
    out = codes_like(x, out)
    if x.numel():
        block = flat_plan(x.numel())
        _quantise_kernel[(cdiv(x.numel(), block),)](
            x, as_bytes(out), x.numel(), 1.0 / scale, has_unit=has_unit(x), block=block, num_warps=NUM_WARPS
        )
    return out


def codes_like(x: Tensor, out: Tensor | None) -> Tensor:
    """`out`, or a new e4m3 tensor laid out as x, which is dense.

    Raises:
        ValueError: out has another shape, type or order in memory.
    """
    if out is None:
        return torch.empty_like(x, dtype=E4M3)
    require_shape("out", out, *x.shape)
    require_dtype("out", out, E4M3)
    if not in_one_order(x, out):
        raise ValueError(f"out must be laid out as x, its strides are {out.stride()} and not {x.stride()}")
    return out


def as_bytes(codes: Tensor) -> Tensor:
    """What a kernel gets: Triton knows e4m3 on newer GPUs alone, bytes everywhere."""
    return codes.view(torch.uint8)


def has_unit(x: Tensor) -> bool:
    """Whether the GPU of a tensor converts to e4m3 by itself."""
    return bool(x.is_cuda) and torch.cuda.get_device_capability(x.device) >= LOWEST_CAPABILITY


def quantise_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in e4m3, and the scale of each output channel: the largest value of each becomes 448.

    Args:
        weight: [out, in].

    Returns:
        e4m3 [out, in], contiguous, and float32 [out].
    """
    largest = weight.float().abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / LARGEST, 1.0)
    codes = (weight.float() / scales[:, None]).clamp(-LARGEST, LARGEST)  # the quotient may round to above the end
    return codes.to(E4M3).contiguous(), scales


def scaled_linear(codes: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """scales * (codes W^T) + bias, summed in float32.

    Args:
        codes: e4m3 [tokens, in], contiguous.
        weight: e4m3 [out, in], contiguous; both sides are multiples of 16.
        scales: float32 [out]: of the input times those of the weight's channels.
        bias: [out], of the type `dtype`, or None.
        dtype: of the result: float16 or bfloat16; on a CPU float32 too.

    Returns:
        [tokens, out].

    Raises:
        RuntimeError: torch has no such product on this device; see `cannot_multiply`.
    """
    if not codes.is_cuda:
        return scaled_linear_reference(codes, weight, scales, bias, dtype)
    return torch._scaled_mm(
        codes, weight.t(), _ones(len(codes), codes.device), scales[None], bias, out_dtype=dtype, use_fast_accum=True
    )


def scaled_linear_reference(
    codes: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """`scaled_linear` in plain torch, computed in the type `compute`."""
    result = (codes.to(compute) @ weight.to(compute).t()) * scales.to(compute)
    return (result if bias is None else result + bias.to(compute)).to(dtype)


@cache
def _ones(count: int, device: torch.device) -> Tensor:
    """The scales of rows, [count, 1]: torch takes them where it takes those of channels. Recorded graphs read them, so
    they stay; what a graph reads must have been run once before it is recorded."""
    return torch.ones(count, 1, device=device)


def cannot_multiply(device: torch.device, dtype: torch.dtype) -> str:
    """Why `scaled_linear` cannot run on a GPU, in words; empty where it can.

    Args:
        device: a CUDA device.
        dtype: of the results.
    """
    capability = torch.cuda.get_device_capability(device)
    if capability < LOWEST_CAPABILITY:
        return "needs a GPU of compute capability {}.{} or later, this one has {}.{}".format(
            *LOWEST_CAPABILITY, *capability
        )
    codes = torch.ones(MULTIPLE, MULTIPLE, device=device).to(E4M3)
    ones = torch.ones(MULTIPLE, device=device)
    try:
        result = scaled_linear(codes, codes, ones, ones.to(dtype), dtype)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"which this torch cannot multiply into {dtype}: {str(error).splitlines()[0]}"
    if not bool((result == MULTIPLE + 1).all()):
        return f"which this torch multiplies wrongly into {dtype}"
    return ""


@jit
def e4m3_codes(values: tl.tensor, has_unit: tl.constexpr) -> tl.tensor:
    """float32 values, divided by their scale, as bytes of e4m3."""
    inside = tl.minimum(tl.maximum(values, -448.0), 448.0)
    # no comparison holds for what is not a number
    inside = tl.where(tl.abs(values) < float("inf"), inside, float("nan"))
    if has_unit:
        codes = inside.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        bits = inside.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        # to nearest even at the third fraction bit; a carry goes on into the exponent, whose bias is 7 and not 127
        code = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        # below 2**-6 codes are multiples of 2**-9: no others have a place behind 2**14 in float32
        small = (tl.abs(inside) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0x3C800000, small, code)
        code = tl.where(size > 0x7F800000, 0x7F, code)
        codes = (((bits >> 24) & 0x80) | code).to(tl.uint8)
    return codes


@jit
def _quantise_kernel(
    x: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    inverse: tl.tensor,
    has_unit: tl.constexpr,
    block: tl.constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < total
    values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + index, e4m3_codes(values * inverse, has_unit), mask=inside)


def variants() -> list[Variant]:
    """The compiled forms, for GPUs that have e4m3: on others there is no product that reads it."""
    return [_variant(dtype, block) for dtype in ("fp16", "bf16") for block in BLOCKS]


def _variant(dtype: str, block: int) -> Variant:
    return Variant(
        name=f"quantise_{dtype}_{block}",
        kernel=_quantise_kernel,
        signature={
            "x": f"*{dtype}",
            "out": "*u8",
            "total": "i32",
            "inverse": "fp32",
            "has_unit": "constexpr",
            "block": "constexpr",
        },
        constants={"has_unit": True, "block": block},
        grid=("cdiv(total, block)", "1", "1"),
        aligned=("x", "out", "total"),
        num_warps=NUM_WARPS,
        lowest=89,
    )
