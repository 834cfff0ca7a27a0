"""Upsampling by phases: weights against the convolution of the enlarged picture, the kernel bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels import interleave as module
from steploom_kernels.interleave import (
    candidate_plans,
    interleave,
    interleave_reference,
    interleave_triton,
    phase_weights,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [
    (2, 320, 3, 5),  # five tiles of 64 channels; lines shorter than a program takes
    (1, 64, 2, 19),  # lines of more than one program, the last not full
    (3, 20, 4, 3),  # channels that are no multiple of 16
    (1, 160, 1, 4),  # 160 is two tiles and a half; a line alone
    (2, 3, 1, 1),  # a pixel alone: all of its neighbours are padding
]
# Relative, of all values: each weight and each result is rounded once.
TOLERANCES = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def phases(n: int, channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As the convolution leaves them: [n, 4 * channels, h + 1, w + 1]."""
    return channels_last(random(n, 4 * channels, height + 1, width + 1).to(device, dtype))


def enlarged_and_convolved(x: Tensor, weight: Tensor) -> Tensor:
    """What the phases stand for."""
    return functional.conv2d(functional.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)


def by_phases(x: Tensor, weight: Tensor) -> Tensor:
    return interleave(channels_last(functional.conv2d(x, channels_last(phase_weights(weight)), padding=1)))


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 5), (1, 1), (1, 7), (2, 1)])
def test_phases_are_the_convolution_of_the_enlarged_picture(height: int, width: int) -> None:
    """To the borders, beyond which both see zeros."""
    x, weight = channels_last(random(2, 3, height, width)), random(5, 3, 3, 3)
    got = by_phases(x, weight)
    torch.testing.assert_close(got, enlarged_and_convolved(x, weight), rtol=0, atol=1e-13)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_no_less_exact_than_the_type(dtype: torch.dtype, device: torch.device) -> None:
    x, weight = random(2, 64, 5, 7, dtype=dtype), random(48, 64, 3, 3, dtype=dtype)
    exact = enlarged_and_convolved(x.double(), weight.double())
    got = by_phases(channels_last(x.to(device)), weight.to(device))
    assert got.dtype == dtype
    error = (got.cpu().double() - exact).norm() / exact.norm()
    assert error < TOLERANCES[dtype]


def test_weights_are_summed_before_they_are_rounded() -> None:
    """1 + 2 * 2**-11 is a half, and 1 + 2**-11 is not."""
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float16)
    weight[0, 0, 1, 1], weight[0, 0, 1, 2], weight[0, 0, 2, 1] = 1.0, 2.0**-11, 2.0**-11
    assert phase_weights(weight)[0, 0, 1, 1] == 1.0 + 2.0**-10


def test_weights_keep_no_graph() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 1, 3, 3))
    assert phase_weights(weight).shape == (8, 1, 2, 2)
    assert not phase_weights(weight).requires_grad
    with pytest.raises(ValueError, match=r"^weight is \[2, 1, 1, 1\]"):
        phase_weights(weight[:, :, :1, :1])


def test_the_reference_puts_phases_in_their_places() -> None:
    x = phases(2, 3, 4, 5, torch.float32, torch.device("cpu"))
    large = interleave_reference(x)
    assert large.shape == (2, 3, 8, 10)
    for a, b, y, x_ in ((0, 0, 0, 0), (1, 0, 3, 2), (0, 1, 2, 4), (1, 1, 3, 4)):
        channel = (2 * a + b) * 3
        assert torch.equal(large[:, :, 2 * y + a, 2 * x_ + b], x[:, channel : channel + 3, y + a, x_ + b])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interleave(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    n, channels, height, width = shape
    x = phases(*shape, dtype, device)
    out = channels_last(torch.full((n, channels, 2 * height, 2 * width), torch.nan, dtype=dtype, device=device))
    assert interleave_triton(x, out=out) is out
    assert torch.equal(out, interleave_reference(x))
    fresh = interleave_triton(x)
    assert torch.equal(fresh, out)
    assert fresh.is_contiguous(memory_format=torch.channels_last)


def test_many_values_take_larger_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x = phases(*SHAPES[1], torch.float16, device)
    monkeypatch.setattr(module, "flat_plan", lambda total: 4096)
    assert torch.equal(interleave_triton(x), interleave_reference(x))


@pytest.mark.parametrize("channels", [320, 20])
def test_every_plan_gives_the_same(channels: int, device: torch.device) -> None:
    x = phases(1, channels, 2, 3, torch.float16, device)
    plans = candidate_plans(channels)
    assert module._plan(1, channels) in plans
    assert module._plan(2**25, channels) in plans
    for plan in plans:
        assert torch.equal(interleave_triton(x, plan=plan), interleave_reference(x)), plan


def test_few_channels_leave_few_lanes_idle() -> None:
    """Such as those of an adapter's rank; the models' channels are whole lines of memory."""
    assert [module._plan(1, channels).channels for channels in (3, 16, 96, 160, 640, 1280)] == [4, 16, 64, 64, 128, 256]


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (1, 8, 1, 4), (1, 0, 3, 3)], ids=str)
def test_nothing_is_no_launch(shape: tuple[int, int, int, int], device: torch.device) -> None:
    n, channels, height, width = shape
    x = channels_last(torch.empty(shape, device=device))
    assert interleave_triton(x).shape == (n, channels // 4, 2 * (height - 1), 2 * (width - 1))


def test_what_is_refused(device: torch.device) -> None:
    x = phases(2, 4, 3, 5, torch.float16, device)
    out = channels_last(torch.empty(2, 4, 6, 10, dtype=torch.float16, device=device))
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        interleave_triton(x.double())
    with pytest.raises(ValueError, match=r"^x must be channels last"):
        interleave_triton(x.contiguous())
    with pytest.raises(ValueError, match=r"^x must be channels last"):
        interleave_triton(x[0])
    with pytest.raises(ValueError, match=r"^x is \[2, 6, 4, 6\], must be four phases"):
        interleave_triton(channels_last(x[:, :6]))
    with pytest.raises(ValueError, match=r"^x is \[2, 16, 0, 6\], must be four phases"):
        interleave_triton(channels_last(x[:, :, :0]))
    with pytest.raises(ValueError, match=r"^out is \[2, 4, 6, 9\]"):
        interleave_triton(x, out=out[..., :9])
    with pytest.raises(ValueError, match=r"^out is torch\.float32"):
        interleave_triton(x, out=out.float())
    with pytest.raises(ValueError, match=r"^out must be channels last"):
        interleave_triton(x, out=out.contiguous())


def test_a_cpu_tensor_takes_the_reference() -> None:
    x = phases(2, 4, 3, 5, torch.bfloat16, torch.device("cpu"))
    out = channels_last(torch.full((2, 4, 6, 10), torch.nan, dtype=torch.bfloat16))
    assert interleave(x, out=out) is out
    assert torch.equal(out, interleave_reference(x))
    assert torch.equal(interleave(x), out)
