"""Noise drawn by the kernel against the reference: the same bits, and the same values but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steploom_kernels.jit import jit, tl
from steploom_kernels.philox_noise import (
    as_int64,
    philox4x32,
    philox_noise_reference,
    philox_noise_triton,
    philox_words,
)

SEEDS = [0, 1, 0xFFFFFFFF, 2**32, 2**63, 2**64 - 1, 0x299F31D0A4093822]
OFFSETS = [0, 1, 2**32 - 1, 5, 2**40 + 3, 2**64 - 1, 1]


@jit
def _words_kernel(out: tl.tensor, seeds: tl.tensor, offsets: tl.tensor, first: tl.tensor, block: tl.constexpr) -> None:
    job = tl.program_id(0)
    place = tl.arange(0, block)
    words = philox_words(tl.load(seeds + job), tl.load(offsets + job), first + place)
    for number in tl.static_range(4):
        tl.store(out + (job * 4 + number) * block + place, words[number].to(tl.int64))


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits, each [jobs, 1]."""
    return values[:, None] & 0xFFFFFFFF, (values[:, None] >> 32) & 0xFFFFFFFF


def drawn(seeds: list[int], offsets: list[int], count: int, device: torch.device) -> Tensor:
    out = torch.full((len(seeds), count), torch.nan, device=device)
    result = philox_noise_triton(as_int64(seeds, device), as_int64(offsets, device), count, out)
    assert result is out
    return out


@pytest.mark.parametrize("first", [0, 1000, 2**28], ids=["the first", "some", "of the longest job"])
def test_words_are_the_references_bit_for_bit(first: int, device: torch.device) -> None:
    words = torch.full((len(SEEDS), 4, 32), -1, dtype=torch.int64, device=device)
    seeds, offsets = as_int64(SEEDS, device), as_int64(OFFSETS, device)
    _words_kernel[(len(SEEDS),)](words, seeds, offsets, first, block=32)
    blocks = (first + torch.arange(32, device=device)).expand(len(SEEDS), 32)
    c2, c3 = (half.expand(len(SEEDS), 32) for half in halves(offsets))
    expected = torch.stack(philox4x32((blocks, torch.zeros_like(blocks), c2, c3), halves(seeds)), dim=1)
    torch.testing.assert_close(words, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "count",
    [
        1,  # less than a block
        4 * 256,  # a program, and nothing left over
        4 * 256 + 6,  # the last program is nearly empty, and ends within a block
    ],
)
def test_values_are_the_references_but_for_rounding(count: int, device: torch.device) -> None:
    expected = philox_noise_reference(as_int64(SEEDS), as_int64(OFFSETS), count)
    torch.testing.assert_close(drawn(SEEDS, OFFSETS, count, device).cpu(), expected, rtol=0, atol=4e-6)


def test_the_largest_value_and_the_smallest_radius_are_right(device: torch.device) -> None:
    """In many values there are words near both ends, where a logarithm is easily wrong."""
    values = drawn([7], [0], 40_000, device).cpu()
    assert 4.0 < values.abs().max() < 5.8
    assert values.isfinite().all()
    torch.testing.assert_close(values, philox_noise_reference(as_int64([7]), as_int64([0]), 40_000), rtol=0, atol=4e-6)


def test_a_job_draws_the_same_noise_in_any_batch(device: torch.device) -> None:
    together = drawn(SEEDS, OFFSETS, 1030, device)
    assert torch.equal(drawn(SEEDS[2:3], OFFSETS[2:3], 1030, device)[0], together[2])


def test_no_job_is_no_launch(device: torch.device) -> None:
    none = torch.empty(0, dtype=torch.int64, device=device)
    assert philox_noise_triton(none, none, 10).shape == (0, 10)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    seeds = as_int64([1, 2, 3, 4], device)
    with pytest.raises(ValueError, match=r"offsets is \[3\], must be \[4\]"):
        philox_noise_triton(seeds, seeds[:3], 8)
    with pytest.raises(ValueError, match="seeds must be contiguous"):
        philox_noise_triton(seeds[::2], seeds[:2], 8)
    with pytest.raises(ValueError, match=r"seeds is torch.int32"):
        philox_noise_triton(seeds.int(), seeds, 8)
    with pytest.raises(ValueError, match=r"out is \[4, 9\]"):
        philox_noise_triton(seeds, seeds, 8, torch.empty(4, 9, device=device))
    with pytest.raises(ValueError, match="count is 0"):
        philox_noise_triton(seeds, seeds, 0)
