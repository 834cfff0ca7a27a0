"""Casts and changes of layout as kernels. A float32 rounds to nearest even, so all is equal bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor

from steploom_kernels.cast import cast, cast_reference, cast_triton

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [
    (3, 4, 8, 8),  # latents
    (2, 3, 5, 7),  # odd channels and pixels: no vector is full
    (1, 70, 9, 17),  # two tiles of channels, three of pixels, the last of each not full
    (2, 1, 4, 4),  # one channel: both layouts are the same memory
]


def random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def assert_cast(result: Tensor, x: Tensor) -> None:
    relative = 0.0 if x.dtype == result.dtype else cast_error(result.dtype, result.device)
    torch.testing.assert_close(result, x.to(result.dtype), rtol=relative, atol=0)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize(("before", "after"), list(itertools.product(FORMATS, FORMATS)))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_types_and_layouts(
    source: torch.dtype,
    target: torch.dtype,
    before: torch.memory_format,
    after: torch.memory_format,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    x = random(shape, source, device).contiguous(memory_format=before)
    out = torch.full(shape, torch.nan, dtype=target, device=device).contiguous(memory_format=after)
    assert cast_triton(x, target, after, out=out) is out
    assert_cast(out, x)
    assert out.is_contiguous(memory_format=after)


@pytest.mark.parametrize("shape", [(4096,), (5, 7, 41), ()], ids=str)
def test_any_shape_keeps_its_layout(shape: tuple[int, ...], device: torch.device) -> None:
    x = random(shape, torch.float32, device)
    result = cast_triton(x, torch.float16)
    assert result.dtype == torch.float16
    assert_cast(result, x)


def test_the_layout_is_kept_unless_another_is_named(device: torch.device) -> None:
    x = random((2, 3, 5, 7), torch.float32, device).contiguous(memory_format=torch.channels_last)
    assert cast_triton(x, torch.float16).stride() == x.stride()
    assert cast_triton(x, memory_format=torch.contiguous_format).is_contiguous()
    assert cast_triton(x).data_ptr() != x.data_ptr()


@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter
def test_rounding_and_range(device: torch.device) -> None:
    """To even between two neighbours, to infinity beyond the largest, and through the subnormal numbers."""
    values = [1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, 65519.0, 65520.0, -1e6, 2.0**-24, 2.0**-26, torch.inf, torch.nan]
    x = torch.tensor(values, device=device)
    torch.testing.assert_close(cast_triton(x, torch.float16), x.half(), rtol=0, atol=0, equal_nan=True)


def test_empty(device: torch.device) -> None:
    assert cast_triton(torch.empty(0, 4, 8, 8, device=device), torch.float16, torch.channels_last).numel() == 0


def test_what_is_refused(device: torch.device) -> None:
    x = random((2, 4, 6, 6), torch.float32, device)
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        cast_triton(x[..., ::2])
    with pytest.raises(ValueError, match=r"^x is torch\.int32"):
        cast_triton(x.int())
    with pytest.raises(ValueError, match=r"^dtype is torch\.float64"):
        cast_triton(x, torch.float64)
    with pytest.raises(ValueError, match=r"^x is \[2, 4, 36\], channels last"):
        cast_triton(x.flatten(2), memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"^out is \[2, 4, 36\]"):
        cast_triton(x, out=x.flatten(2))
    with pytest.raises(ValueError, match=r"^out is torch\.float32"):
        cast_triton(x, torch.float16, out=torch.empty_like(x))
    with pytest.raises(ValueError, match=r"^out must be of torch\.channels_last"):
        cast_triton(x, memory_format=torch.channels_last, out=torch.empty_like(x))


def test_a_cpu_tensor_takes_the_reference() -> None:
    x = random((2, 4, 6, 6), torch.float32, torch.device("cpu"))
    out = torch.full_like(x, torch.nan, dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert cast(x, torch.bfloat16, torch.channels_last, out=out) is out
    assert torch.equal(out, cast_reference(x, torch.bfloat16, torch.channels_last))
    assert cast(x, torch.bfloat16, torch.channels_last).stride() == out.stride()
    assert torch.equal(out, x.bfloat16())
