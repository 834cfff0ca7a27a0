"""How many of locust's users there are when: a spike, a day, and a ramp that ends at the knee; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spike:
    """As many users as ever, for a while many more, and then as many as before."""

    base: int  # users
    peak: int  # users
    at_s: float  # from the start to the spike
    peak_s: float  # how long it lasts
    total_s: float  # of the whole

    def users(self, now_s: float) -> int | None:
        """Users at a moment; None: it is over."""
        if now_s >= self.total_s:
            return None
        return self.peak if self.at_s <= now_s < self.at_s + self.peak_s else self.base


@dataclass(frozen=True)
class Day:
    """From the fewest users in the night to the most at noon and back, as a cosine."""

    low: int  # users at midnight
    high: int  # users at noon
    day_s: float  # seconds of a day
    days: float  # how many

    def users(self, now_s: float) -> int | None:
        """Users at a moment; None: it is over."""
        if now_s >= self.day_s * self.days:
            return None
        return round(self.low + (self.high - self.low) * (1 - math.cos(2 * math.pi * now_s / self.day_s)) / 2)


@dataclass
class Ramp:
    """More users step by step, until answers to a kind of request take so many times as long as they first did."""

    step: int  # users that come at a step
    step_s: float  # how long it lasts
    most: int  # users; there it ends too
    factor: float  # of the 95th percentile that a kind began with
    first_ms: dict[str, float] = field(default_factory=dict)  # that percentile, of kinds that were seen after a step
    knee: int | None = None  # users of the last step before answers took too long; None: not reached

    def users(self, now_s: float, p95_ms: Mapping[str, float | None]) -> int | None:
        """Users at a moment; None: it is over. To be asked at least once a step.

        Args:
            now_s: from the start.
            p95_ms: of the answers of the last seconds, by kind of request; None: of none yet.
        """
        steps = int(now_s // self.step_s)  # that are over
        for name, value in p95_ms.items():
            if steps and value is not None and value > self.factor * self.first_ms.setdefault(name, value):
                self.knee = steps * self.step
        count = (steps + 1) * self.step
        return None if self.knee is not None or count > self.most else count
