"""What the machine can do: the speed of plain copies by size, and of a large matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class CopyPoint:
    """A copy that was measured."""

    num_bytes: int  # read and written together
    seconds: float
    how: str  # which copy was the faster


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one machine."""

    copies: Sequence[CopyPoint]  # by rising size
    matmul_flops: float  # a second, half precision

    @property
    def bandwidth(self) -> float:
        """Bytes a second, read and written together, of the best copy."""
        return max(copy.num_bytes / copy.seconds for copy in self.copies)

    def copy_s(self, num_bytes: int) -> float:
        """How long a copy that moves as much takes: straight between the measured sizes, in proportion outside."""
        first, last = self.copies[0], self.copies[-1]
        if num_bytes <= first.num_bytes:
            return first.seconds  # smaller is not faster: what remains is the launch
        if num_bytes >= last.num_bytes:
            return last.seconds * num_bytes / last.num_bytes
        for low, high in pairwise(self.copies):
            if num_bytes <= high.num_bytes:
                part = (num_bytes - low.num_bytes) / (high.num_bytes - low.num_bytes)
                return low.seconds + part * (high.seconds - low.seconds)
        raise AssertionError("the copies are not by rising size")

    def floor_s(self, num_bytes: int, flops: int) -> float:
        """No program that moves and computes so much is faster than this (the roofline)."""
        return max(num_bytes / self.bandwidth, flops / self.matmul_flops)
