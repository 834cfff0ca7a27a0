"""Bytes to numbers and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steploom_kernels.pixels_in import pixels_in
from steploom_kernels.pixels_out import pixels_out


def test_every_byte_comes_back() -> None:
    bytes_in = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    numbers = pixels_in(bytes_in)
    assert numbers.shape == (1, 3, 16, 16)
    assert (float(numbers.min()), float(numbers.max())) == (-1.0, 1.0)
    torch.testing.assert_close(pixels_out(numbers), bytes_in, rtol=0, atol=0)


def test_channels_and_rows_stay_in_place() -> None:
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8))
    numbers = pixels_in(picture)
    assert numbers.is_contiguous(memory_format=torch.channels_last)
    assert numbers[1, 2, 0, 4] == pytest.approx(float(picture[1, 0, 4, 2]) / 127.5 - 1.0)
    torch.testing.assert_close(pixels_out(numbers), picture, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("value", "expected"), [(-7.0, 0), (7.0, 255), (0.0, 128), (0.1 / 127.5, 128), (-0.6 / 127.5, 127)]
)
def test_clamps_and_rounds(value: float, expected: int) -> None:
    assert pixels_out(torch.full((1, 3, 1, 1), value)).flatten().tolist() == [expected] * 3


def test_takes_half_precision() -> None:
    numbers = pixels_in(torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8), torch.bfloat16)
    assert numbers.dtype == torch.bfloat16
    assert pixels_out(numbers).flatten().tolist() == [0, 128, 255]
