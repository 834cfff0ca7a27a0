"""What was measured of each case, and the verdict on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from steploom_kernels.bench.roofline import Ceilings

# A memory-bound operation reaches this share of a plain copy's speed, where it moves enough for launches not to count.
MIN_SHARE_OF_COPY = 0.85
LARGE_BYTES = 32_000_000
# It is not slower than torch.compile, up to what two measurements differ by.
MAX_OVER_COMPILED = 1.03
OP, EAGER, COMPILED = "op", "eager", "compile"


class Verdict(Enum):
    """How a case ended."""

    HOLDS = "holds"
    BELOW = "below the bar"
    WRONG = "WRONG"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Timing:
    """Of one call, over repeats."""

    median_s: float
    low_s: float  # the tenth part is faster
    high_s: float  # the tenth part is slower

    @property
    def spread(self) -> float:
        """Between low and high, as a share of the median."""
        return (self.high_s - self.low_s) / self.median_s


@dataclass(frozen=True)
class Measured:
    """One case's result; without times where it was wrong or failed."""

    op: str
    shape: str
    num_bytes: int
    flops: int
    error: float | None = None  # relative, against the reference
    problem: str = ""  # what was wrong
    is_wrong: bool = False
    times: Mapping[str, Timing] = field(default_factory=dict)  # OP, EAGER, COMPILED and rivals by name
    absent: Mapping[str, str] = field(default_factory=dict)  # what could not be measured beside it, and why

    def ratio(self, other: str) -> float | None:
        """How many times as long the other takes; None where it was not measured."""
        if OP not in self.times or other not in self.times:
            return None
        return self.times[other].median_s / self.times[OP].median_s

    def bytes_per_s(self) -> float | None:
        """Of what must move."""
        return self.num_bytes / self.times[OP].median_s if OP in self.times else None

    def flops_per_s(self) -> float | None:
        """Of the tensor cores; None where the operation does not use them."""
        return self.flops / self.times[OP].median_s if OP in self.times and self.flops else None

    def share_of_roofline(self, ceilings: Ceilings) -> float | None:
        """1 is the speed that no program exceeds, but for what the cache holds."""
        return ceilings.floor_s(self.num_bytes, self.flops) / self.times[OP].median_s if OP in self.times else None

    def share_of_copy(self, ceilings: Ceilings) -> float | None:
        """Against a plain copy that moves as many bytes."""
        return ceilings.copy_s(self.num_bytes) / self.times[OP].median_s if OP in self.times else None

    def is_memory_bound(self, ceilings: Ceilings) -> bool:
        """Moving takes longer than computing."""
        return self.flops / ceilings.matmul_flops <= self.num_bytes / ceilings.bandwidth

    def verdict(self, ceilings: Ceilings) -> Verdict:
        """Right and fast, right, wrong, or not run to its end."""
        if self.problem:
            return Verdict.WRONG if self.is_wrong else Verdict.FAILED
        share, over = self.share_of_copy(ceilings), self.ratio(COMPILED)
        is_large = self.num_bytes >= LARGE_BYTES and self.is_memory_bound(ceilings)
        if is_large and share is not None and share < MIN_SHARE_OF_COPY:
            return Verdict.BELOW
        return Verdict.BELOW if over is not None and over * MAX_OVER_COMPILED < 1 else Verdict.HOLDS


@dataclass(frozen=True)
class Report:
    """A whole run."""

    when: str  # ISO 8601, UTC
    machine: Mapping[str, object]  # GPU, versions, clocks
    ceilings: Ceilings
    measured: Sequence[Measured]
    left_out: Sequence[str]  # cases that there was no time for

    @property
    def is_right(self) -> bool:
        """Nothing was wrong, and nothing failed."""
        return not any(each.problem for each in self.measured)
