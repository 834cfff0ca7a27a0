"""Normal noise that depends on a seed alone: Philox4x32-10 and Box-Muller.

Layout, so that any other implementation draws the same values. For the job with the 64-bit `seed` and the 64-bit
`offset`, block number b of four values comes from one Philox4x32-10 call (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", 2011):

    key      k0 = low 32 bits of seed       k1 = high 32 bits of seed
    counter  c0 = low 32 bits of b          c1 = high 32 bits of b
             c2 = low 32 bits of offset     c3 = high 32 bits of offset

Its words r0 to r3 give values 4b to 4b + 3 of the job, in the order of a contiguous [channels, h, w] array:

    u = ((r0 >> 8) + 1) * 2**-24        in (0, 1], exact in float32
    v = (r1 >> 8) * 2**-24              in [0, 1), exact in float32
    value 4b     = sqrt(-2 ln u) * cos(2 pi v)
    value 4b + 1 = sqrt(-2 ln u) * sin(2 pi v)

and r2, r3 likewise values 4b + 2 and 4b + 3. Offset 0 is the initial noise; offset k + 1 the noise added in step k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def as_int64(values: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Unsigned 64-bit numbers as the int64 tensor of the same bits."""
    return torch.tensor([value - 2**64 if value >= 2**63 else value for value in values], device=device)


def philox_noise(seeds: Tensor, offsets: Tensor, count: int) -> Tensor:
    """Standard normal values, each a function of its job's seed and offset and of its own index only.

    Args:
        seeds: int64 [jobs], the bits of a uint64.
        offsets: int64 [jobs], the bits of a uint64.
        count: values a job.

    Returns:
        float32 [jobs, count]. Computed in float64: devices differ by rounding only.
    """
    blocks = torch.arange((count + 3) // 4, device=seeds.device)
    counter = (*_split(blocks[None]), *_split(offsets[:, None]))
    words = philox4x32(_broadcast(counter, (len(seeds), len(blocks))), _split(seeds[:, None]))
    values = torch.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-1)
    return values.flatten(1)[:, :count].float()


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds of Philox4x32 on 32-bit words held in int64 tensors."""
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], counter[0])
        high1, low1 = _multiply(_MULTIPLIERS[1], counter[2])
        counter = (high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0)
        key = ((key[0] + _WEYL[0]) & _MASK, (key[1] + _WEYL[1]) & _MASK)
    return counter


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low half of a 32 x 32 bit product, in halves of 16 bits so that no int64 overflows."""
    upper = multiplier * (word >> 16)
    lower = multiplier * (word & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _MASK


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    return values & _MASK, (values >> 32) & _MASK


def _broadcast(words: Words, shape: tuple[int, int]) -> Words:
    first, second, third, fourth = (word.expand(shape) for word in words)
    return first, second, third, fourth


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2.0 * torch.log(((first >> 8) + 1).double() * 2.0**-24))
    angle = 2.0 * math.pi * (second >> 8).double() * 2.0**-24
    return radius * torch.cos(angle), radius * torch.sin(angle)
