"""A convolution by phases gives what the convolution of the enlarged picture gives, with and without adapters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steploom_engine_worker.fused.maps import Convolution, UpConvolution
from steploom_kernels.gather_rows import NO_ADAPTER, RowScalars

ADAPTERS, RANK, CHANNELS, OUT = 2, 3, 6, 5
SIZES = [(4, 4), (5, 3), (1, 1), (1, 4)]


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Both:
    """The same weights in both forms."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.weight, self.bias = random(OUT, CHANNELS, 3, 3), random(OUT)
        self.change = random(ADAPTERS * RANK, CHANNELS, 3, 3), random(ADAPTERS, OUT, RANK)
        self.phases = UpConvolution(self.weight, self.change)
        self.plain = Convolution(self.weight, 1, 1, self.change)

    def expected(self, x: Tensor, rows: RowScalars | None, bias: Tensor | None = None) -> Tensor:
        large = channels_last(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        result: Tensor = self.plain(large, rows, bias)
        return result


def picture(rows: int, height: int, width: int) -> Tensor:
    return channels_last(torch.randn(rows, CHANNELS, height, width, generator=torch.Generator().manual_seed(1)))


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_without_adapters(height: int, width: int) -> None:
    both, x = Both(), picture(2, height, width)
    got = both.phases(x, None)
    torch.testing.assert_close(got, both.expected(x, None), rtol=0, atol=2e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(both.phases(x, None, both.bias), both.expected(x, None, both.bias), rtol=0, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_rows_of_two_adapters_and_of_none(height: int, width: int) -> None:
    both, x = Both(), picture(4, height, width)
    numbers = torch.tensor([1, NO_ADAPTER, 0, 0], dtype=torch.int32)
    rows = RowScalars(torch.zeros(4), numbers, torch.tensor([1.0, 0.0, 0.5, 1.0]), torch.ones(4, 2))
    got, plain = both.phases(x, rows), both.phases(x, None)
    torch.testing.assert_close(got, both.expected(x, rows), rtol=0, atol=5e-5)
    assert torch.equal(got[1], plain[1])
    assert ((got - plain).abs().amax((1, 2, 3)) > 1.0).tolist() == [True, False, True, True]
