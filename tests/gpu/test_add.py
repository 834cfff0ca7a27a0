"""The sum of two tensors and a bias as a kernel, against float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor

from steploom_kernels import add as module
from steploom_kernels.add import add, add_reference, add_triton

# Relative and absolute: one rounding of the result, and that of sums in float32 of values up to about ten.
TOLERANCES = {torch.float16: (2.0**-11, 2e-6), torch.bfloat16: (2.0**-8, 2e-6), torch.float32: (2e-7, 2e-6)}
SHAPES = [
    (2, 320, 3, 5),  # five tiles of 64 channels; fewer pixels than a program takes
    (1, 256, 3, 3),  # few rows, wide ones
    (3, 20, 7, 5),  # fewer channels than a tile has: lanes left over
    (37, 96),  # tokens of the embedded model; 96 is a tile and a half
    (2, 3, 100),  # three axes
    (5,),  # a row alone
]


class Sums:
    """Three inputs; four axes are channels last."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = (2.0 * torch.randn(shape, generator=generator).to(device) for _ in range(2))
        if len(shape) == 4:
            self.x, self.y = (each.contiguous(memory_format=torch.channels_last) for each in (self.x, self.y))
        self.x, self.y = self.x.to(dtype), self.y.to(dtype)
        channels = shape[1] if len(shape) == 4 else shape[-1]
        self.bias = torch.randn(channels, generator=generator).to(device, dtype)

    def exact(self, *, biased: bool = True) -> Tensor:
        return add_reference(self.x.double(), self.y, self.bias if biased else None)


def assert_close(result: Tensor, exact: Tensor) -> None:
    relative, absolute = TOLERANCES[result.dtype]
    relative = max(relative, cast_error(result.dtype, result.device))
    torch.testing.assert_close(result.double(), exact, rtol=relative, atol=absolute)


def test_the_reference_is_a_sum() -> None:
    sums = Sums((2, 6, 3, 4), torch.float64, torch.device("cpu"))
    torch.testing.assert_close(sums.exact(), sums.x + sums.y + sums.bias.view(1, 6, 1, 1))
    tokens = Sums((2, 3, 6), torch.float64, torch.device("cpu"))
    torch.testing.assert_close(tokens.exact(), tokens.x + tokens.y + tokens.bias)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_add(shape: tuple[int, ...], dtype: torch.dtype, biased: bool, device: torch.device) -> None:
    sums = Sums(shape, dtype, device)
    out = torch.full_like(sums.x, torch.nan)
    assert add_triton(sums.x, sums.y, sums.bias if biased else None, out=out) is out
    assert out.stride() == sums.x.stride()
    assert_close(out, sums.exact(biased=biased))


def test_many_values_take_larger_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = Sums(SHAPES[0], torch.float16, device)
    small = add_triton(sums.x, sums.y, sums.bias)
    monkeypatch.setattr(module, "flat_plan", lambda total: 4096)
    assert torch.equal(add_triton(sums.x, sums.y, sums.bias), small)
    assert torch.equal(add_triton(sums.x, sums.y), add_triton(sums.y, sums.x))


def test_the_sum_is_rounded_once(device: torch.device) -> None:
    """2048 + 1 is 2048 in half precision; with a bias of 1 more it is 2050."""
    one = torch.ones(8, dtype=torch.float16, device=device)
    assert add_triton(2048 * one, one, one).tolist() == [2050.0] * 8


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_in_place_of_either(shape: tuple[int, ...], device: torch.device) -> None:
    sums = Sums(shape, torch.float16, device)
    apart = add_triton(sums.x, sums.y, sums.bias)
    x, y = sums.x.clone(), sums.y.clone()
    assert add_triton(x, sums.y, sums.bias, out=x) is x
    assert add_triton(sums.x, y, sums.bias, out=y) is y
    assert torch.equal(x, apart)
    assert torch.equal(y, apart)


def test_no_rows(device: torch.device) -> None:
    assert add_triton(*torch.empty(2, 0, 8, device=device)).shape == (0, 8)


def test_what_add_refuses(device: torch.device) -> None:
    sums = Sums((2, 6, 3, 4), torch.float16, device)
    x, y, bias = sums.x, sums.y, sums.bias
    with pytest.raises(ValueError, match=r"^x must be channels last"):
        add_triton(x.contiguous(), y, bias)
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        add_triton(x[0], y[0], bias)
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        add_triton(x.double(), y.double(), bias)
    with pytest.raises(ValueError, match=r"^x must have an axis"):
        add_triton(bias[0], bias[0])
    with pytest.raises(ValueError, match=r"^y is \[1, 6, 3, 4\]"):
        add_triton(x, y[:1], bias)
    with pytest.raises(ValueError, match=r"^y is torch\.float32"):
        add_triton(x, y.float(), bias)
    with pytest.raises(ValueError, match=r"^y must be laid out as x"):
        add_triton(x, y.contiguous(), bias)
    with pytest.raises(ValueError, match=r"^bias is \[5\]"):
        add_triton(x, y, bias[1:])
    with pytest.raises(ValueError, match=r"^bias must be contiguous"):
        add_triton(x, y, bias.repeat(2)[::2])
    with pytest.raises(ValueError, match=r"^out must be laid out as x"):
        add_triton(x, y, bias, out=x.contiguous())


def test_add_of_cpu_tensors() -> None:
    sums = Sums((2, 6, 3, 4), torch.bfloat16, torch.device("cpu"))
    out = torch.full_like(sums.x, torch.nan)
    assert add(sums.x, sums.y, sums.bias, out=out) is out
    assert torch.equal(out, add_reference(sums.x, sums.y, sums.bias))
    assert torch.equal(add(sums.x, sums.y), sums.x + sums.y)
