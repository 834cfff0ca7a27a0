"""Bytes to numbers and back by kernels, against the references."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor

from steploom_kernels.pixels_in import pixels_in_reference, pixels_in_triton
from steploom_kernels.pixels_out import pixels_out_reference, pixels_out_triton

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SIZES = [
    (16, 16),  # all within one program
    (5, 7),  # 105 bytes: nothing lines up
    (40, 36),  # more than a program, and the last one not full
]
POISON = 0xA5


def pictures(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Every byte is there, where a picture has room for it."""
    values = torch.arange(count * height * width * 3) * 101 % 256
    return values.to(torch.uint8).view(count, height, width, 3).to(device)


def poisoned(batch: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    numbers = torch.full((batch, height, width, 3), torch.nan, dtype=dtype, device=device)
    return numbers.permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bytes_become_the_references_numbers(height: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    pixels = pictures(2, height, width, device)
    out = poisoned(2, height, width, dtype, device)
    assert pixels_in_triton(pixels, dtype, out=out) is out
    # on the CPU: CUDA's torch multiplies by the reciprocal of a number that it is to divide by
    expected = pixels_in_reference(pixels.cpu(), dtype).to(device)
    torch.testing.assert_close(out, expected, rtol=cast_error(dtype, device), atol=0)
    torch.testing.assert_close(pixels_in_triton(pixels, dtype), out, rtol=0, atol=0)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_pictures_are_gathered_by_slot(index: torch.dtype, device: torch.device) -> None:
    pixels = pictures(4, 9, 6, device)
    slots = torch.tensor([3, -1, 0, 3], dtype=index, device=device)
    out = pixels_in_triton(pixels, torch.float16, slots, poisoned(4, 9, 6, torch.float16, device))
    torch.testing.assert_close(out, pixels_in_reference(pixels, torch.float16, slots), rtol=0, atol=0)
    torch.testing.assert_close(out[0], pixels_in_reference(pixels, torch.float16)[3], rtol=0, atol=0)
    assert (out[1] == 0.0).all(), "padding"


def numbers_around_all_bytes(dtype: torch.dtype, height: int, width: int) -> Tensor:
    """[2, 3, h, w]: each byte's own number, numbers halfway between two, beyond both ends, and just beside."""
    bytes_of = torch.arange(-6, 262, dtype=torch.float64)
    values = torch.cat([bytes_of, bytes_of + 0.5, bytes_of + 0.499, torch.tensor([-1e4, 1e4])]) / 127.5 - 1.0
    count = 2 * 3 * height * width
    return values.repeat(-(-count // len(values)))[:count].to(dtype).view(2, 3, height, width)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_numbers_become_the_references_bytes(
    height: int, width: int, dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> None:
    image = numbers_around_all_bytes(dtype, height, width).to(device).contiguous(memory_format=layout)
    out = torch.full((2, height, width, 3), POISON, dtype=torch.uint8, device=device)
    assert pixels_out_triton(image, out) is out
    # from float32 a half may be rounded to either side where product and sum are one instruction, as on a GPU
    slack = 1 if dtype == torch.float32 and device.type == "cuda" else 0
    torch.testing.assert_close(out.int(), pixels_out_reference(image).int(), rtol=0, atol=slack)
    assert torch.equal(pixels_out_triton(image), out)


def test_every_byte_survives_both_ways(device: torch.device) -> None:
    pixels = pictures(1, 16, 16, device)
    assert set(pixels.flatten().tolist()) == set(range(256))
    assert torch.equal(pixels_out_triton(pixels_in_triton(pixels, torch.float16)), pixels)


def test_nothing_is_no_launch(device: torch.device) -> None:
    assert pixels_in_triton(pictures(0, 4, 4, device)).shape == (0, 3, 4, 4)
    assert pixels_out_triton(torch.empty(0, 3, 4, 4, device=device)).shape == (0, 4, 4, 3)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    pixels = pictures(2, 4, 6, device)
    with pytest.raises(ValueError, match="pixels must be contiguous"):
        pixels_in_triton(pixels[:, :, ::2])
    with pytest.raises(ValueError, match=r"pixels is \[4, 6, 3\]"):
        pixels_in_triton(pixels[0])
    with pytest.raises(ValueError, match="out must be channels last"):
        pixels_in_triton(pixels, out=torch.empty(2, 3, 4, 6, device=device))
    with pytest.raises(ValueError, match=r"out is torch.float32, must be torch.float16"):
        pixels_in_triton(pixels, torch.float16, out=poisoned(2, 4, 6, torch.float32, device))
    with pytest.raises(ValueError, match=r"out is torch.float64"):
        pixels_in_triton(pixels, torch.float64)
    with pytest.raises(ValueError, match=r"slots is torch.float32"):
        pixels_in_triton(pixels, slots=torch.zeros(1, device=device))
    image = torch.zeros(2, 3, 4, 6, device=device)
    with pytest.raises(ValueError, match="image must be channels last or contiguous"):
        pixels_out_triton(image[..., ::2])
    with pytest.raises(ValueError, match=r"image is \[2, 2, 4, 6\]"):
        pixels_out_triton(image[:, :2])
    with pytest.raises(ValueError, match=r"out is \[2, 6, 4, 3\]"):
        pixels_out_triton(image, torch.empty(2, 6, 4, 3, dtype=torch.uint8, device=device))
