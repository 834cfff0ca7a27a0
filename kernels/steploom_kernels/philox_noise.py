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

The words are the same on every device, bit for bit. The values are computed in float64 by the reference and in float32
on a GPU, so they differ by rounding: by less than 4e-6, since none is larger than 5.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steploom_kernels.checks import require_array
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def as_int64(values: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Unsigned 64-bit numbers as the int64 tensor of the same bits."""
    return torch.tensor([value - 2**64 if value >= 2**63 else value for value in values], device=device)


def philox_noise(seeds: Tensor, offsets: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """Standard normal values, each a function of its job's seed and offset and of its own index only.

    Args:
        seeds: int64 [jobs], the bits of a uint64.
        offsets: int64 [jobs], the bits of a uint64.
        count: values a job, below 2**30.
        out: where to put them, or None for a new tensor.

    Returns:
        float32 [jobs, count].

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(seeds):
        return philox_noise_triton(seeds, offsets, count, out)
    values = philox_noise_reference(seeds, offsets, count)
    return values if out is None else out.copy_(values)


def philox_noise_reference(seeds: Tensor, offsets: Tensor, count: int) -> Tensor:
    """`philox_noise` in plain torch, computed in float64."""
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


_BLOCK = 256  # Philox blocks a program: two a thread, each one store of 16 bytes


def philox_noise_triton(seeds: Tensor, offsets: Tensor, count: int, out: Tensor | None = None) -> Tensor:
    """`philox_noise` as one launch."""
    jobs = len(seeds)
    if not 0 < count < 2**30:
        raise ValueError(f"count is {count}, must be 1 to {2**30 - 1}")
    require_array("seeds", seeds, [torch.int64], None)
    require_array("offsets", offsets, [torch.int64], jobs)
    if out is None:
        out = torch.empty(jobs, count, device=seeds.device)
    require_array("out", out, [torch.float32], jobs, count)
    if jobs:
        _philox_noise_kernel[(cdiv(count, 4 * _BLOCK), jobs)](out, seeds, offsets, count, block=_BLOCK)
    return out


@jit
def _philox_noise_kernel(
    out: tl.tensor,
    seeds: tl.tensor,
    offsets: tl.tensor,
    count: tl.tensor,
    block: tl.constexpr,
) -> None:
    job = tl.program_id(1)
    first = tl.program_id(0) * block
    values = normal_values(tl.load(seeds + job), tl.load(offsets + job), first + tl.arange(0, block))
    index = 4 * first + tl.arange(0, 4 * block)
    tl.store(out + job.to(tl.int64) * count + index, values, mask=index < count)


@jit
def normal_values(seed: tl.tensor, offset: tl.tensor, blocks: tl.tensor) -> tl.tensor:
    """Inside of a kernel: the values [..., 4 n] of the Philox blocks [..., n], int32; seed and offset are int64."""
    r0, r1, r2, r3 = philox_words(seed, offset, blocks)
    v0, v1 = _normal_pair(r0, r1)
    v2, v3 = _normal_pair(r2, r3)
    return tl.interleave(tl.interleave(v0, v2), tl.interleave(v1, v3))


@jit
def philox_words(seed: tl.tensor, offset: tl.tensor, blocks: tl.tensor) -> tl.tensor:
    """Inside of a kernel: the four words, uint32, of each block; the high half of a block's number is zero."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1 = blocks.to(tl.uint32), tl.zeros_like(blocks).to(tl.uint32)
    c2, c3 = c1 + offset.to(tl.uint32), c1 + (offset >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@jit
def _normal_pair(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    """Box-Muller on two words."""
    u = ((first >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2**-24
    radius = tl.sqrt(-2.0 * tl.log(u))
    cosine, sine = _turn((second >> 8).to(tl.int32))
    return radius * cosine, radius * sine


@jit
def _turn(part: tl.tensor) -> tl.tensor:
    """Cosine and sine of the part of a turn that counts 2**24 to the whole.

    The nearest quarter turn is taken off in integers, so the rest, up to 1/8, is exact, and a short polynomial does. A
    library's sine must be ready for any angle: it brings a stack frame and a slow path that would never be taken.
    """
    quarter = (part + 2097152) >> 22
    angle = (part - (quarter << 22)).to(tl.float32) * 3.7450702829239286e-07  # 2 pi 2**-24: at most pi / 4
    square = angle * angle
    # least maximum error over the range: 4e-9 and 1e-10 before rounding
    odd = -0.16666655242443085 + square * (0.008332177996635437 + square * -0.0001951729936990887)
    even = 0.04166664555668831 + square * (-0.001388736767694354 + square * 2.4438451873720624e-05)
    sine = angle + angle * square * odd
    cosine = 1.0 - 0.5 * square + square * square * even
    is_odd = (quarter & 1) != 0
    x = tl.where(is_odd, sine, cosine)
    y = tl.where(is_odd, cosine, sine)
    return tl.where(((quarter + 1) & 2) != 0, -x, x), tl.where((quarter & 2) != 0, -y, y)


def variants() -> list[Variant]:
    """The compiled form."""
    return [
        Variant(
            name="philox_noise",
            kernel=_philox_noise_kernel,
            signature={
                "out": "*fp32",
                "seeds": "*i64",
                "offsets": "*i64",
                "count": "i32",
                "block": "constexpr",
            },
            constants={"block": _BLOCK},
            grid=("cdiv(count, 4 * block)", "jobs", "1"),
            aligned=("out", "seeds", "offsets", "count"),
        )
    ]
