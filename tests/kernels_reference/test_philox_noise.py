"""Philox against published vectors and an independent implementation in Python's integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steploom_kernels.philox_noise import as_int64, philox4x32, philox_noise

# "philox4x32 10" of Random123's tests/kat_vectors: counter, key, result
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
MASK = 2**32 - 1


def philox_of_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & MASK, (first >> 32) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def noise_of_integers(seed: int, offset: int, index: int) -> float:
    """One value by the layout that the module's docstring promises."""
    block, place = divmod(index, 4)
    counter = (block & MASK, block >> 32, offset & MASK, offset >> 32)
    words = philox_of_integers(counter, (seed & MASK, seed >> 32))
    first, second = words[:2] if place < 2 else words[2:]
    radius = math.sqrt(-2.0 * math.log(((first >> 8) + 1) * 2.0**-24))
    angle = 2.0 * math.pi * (second >> 8) * 2.0**-24
    return radius * (math.cos(angle) if place % 2 == 0 else math.sin(angle))


def draw(seeds: list[int], offsets: list[int], count: int) -> np.ndarray:
    return philox_noise(as_int64(seeds), as_int64(offsets), count).numpy()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_rounds_give_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert tuple(int(word) for word in philox4x32((c0, c1, c2, c3), (k0, k1))) == expected


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**64 - 1),
    count=st.integers(1, 70),
)
def test_noise_follows_the_documented_layout(seed: int, offset: int, count: int) -> None:
    expected = [noise_of_integers(seed, offset, index) for index in range(count)]
    np.testing.assert_allclose(draw([seed], [offset], count)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_job_draws_the_same_noise_in_any_batch() -> None:
    seeds, offsets = [0, 1, 2**63, 2**64 - 1, 7], [0, 0, 1, 5, 2**40]
    together = draw(seeds, offsets, 4096)
    for job, (seed, offset) in enumerate(zip(seeds, offsets, strict=True)):
        np.testing.assert_array_equal(draw([seed], [offset], 4096)[0], together[job])
        np.testing.assert_array_equal(draw([seed], [offset], 10)[0], together[job, :10])


def test_noise_is_standard_normal_and_differs_by_seed_and_offset() -> None:
    values = draw([3, 4, 3], [0, 0, 1], 100_000).astype(np.float64)
    assert np.abs(values.mean(axis=1)).max() < 0.015
    assert np.abs(values.std(axis=1) - 1.0).max() < 0.01
    assert np.abs((values**4).mean(axis=1) - 3.0).max() < 0.12  # kurtosis
    assert np.abs(np.corrcoef(values) - np.eye(3)).max() < 0.02
    assert np.abs(np.corrcoef(values[0, :-1], values[0, 1:])[0, 1]) < 0.02
