"""Weighted deficit sharing between flows, and the backlog that admission looks at.

A flow is the jobs of one tier with one key. Every tick's seconds are owed to the active flows by weight and charged to
those whose rows ran. What a flow is owed is its *credit*, in seconds, and the scheduler subtracts a multiple of it from
the due time of the flow's jobs that have not begun: deadlines decide while shares are even, and a flow that gets too
little begins jobs earlier until it gets its share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steploom_batcher.types import Key


@dataclass(frozen=True, eq=False, slots=True)
class Flow:
    """Jobs of one tier with one key. There is one object for each (`Flows`): looking it up takes no hash of a key."""

    tier: str
    key: Key


class Flows:
    """The one object of each flow."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, Key], Flow] = {}

    def of(self, tier: str, key: Key) -> Flow:
        """That of a tier with a key."""
        flow = self._flows.get((tier, key))
        if flow is None:
            flow = self._flows[tier, key] = Flow(tier, key)
        return flow


# Bounds what a starved flow can claim at once.
_MAX_CREDIT_S = 30.0


class Shares:
    """The credit of each active flow.

    Args:
        weights: of each tier.
        gain: seconds of due time that a second of credit outweighs.
    """

    def __init__(self, weights: Mapping[str, float], gain: float) -> None:
        self._weights = weights
        self._gain = gain
        self._credit: dict[Flow, float] = {}

    def __repr__(self) -> str:
        return f"Shares({self._credit})"

    def credit(self, flow: Flow) -> float:
        """Seconds of device time that the flow is owed; negative where it had more than its share."""
        return self._credit.get(flow, 0.0)

    def urgency(self, flow: Flow) -> float:
        """Seconds to take off the due time of the flow's next jobs."""
        return self._gain * self.credit(flow)

    def charge(self, rows: Mapping[Flow, int], seconds: float, active: Iterable[Flow]) -> None:
        """Books a tick of `seconds` whose rows belong to the flows in `rows`; forgets flows that are not active."""
        flows = dict.fromkeys((*active, *rows))
        weights, before = self._weights, self._credit
        total_weight = sum([weights[flow.tier] for flow in flows])
        total_rows = sum(rows.values())
        self._credit = {
            flow: _clamp(
                before.get(flow, 0.0) + seconds * (weights[flow.tier] / total_weight - rows.get(flow, 0) / total_rows)
            )
            for flow in flows
        }


def _clamp(seconds: float) -> float:
    if -_MAX_CREDIT_S <= seconds <= _MAX_CREDIT_S:
        return seconds
    return math.copysign(_MAX_CREDIT_S, seconds)


class Backlog:
    """Seconds of admitted work that is not done, by tier and by when it is due."""

    _GRAIN_S = 0.25  # due times are rounded up to it: sums over grains, not over every job
    _BLOCK = (
        16  # grains whose sum is kept too: what is due before a moment is the sum of some blocks and of one's grains
    )

    _MEMORY_S = 30.0

    def __init__(self) -> None:
        self._work: dict[str, dict[int, dict[int, float]]] = {}  # by tier, block, grain
        self._sums: dict[str, dict[int, float]] = {}  # by tier, block
        self._recent: dict[str, tuple[float, float]] = {}  # rate of arriving work, and when that was so

    def __repr__(self) -> str:
        return f"Backlog({self.total_s:.3f} s)"

    @property
    def tiers(self) -> Iterable[str]:
        """Those that ever had work."""
        return self._work.keys()

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.of(tier) for tier in self._work)

    def of(self, tier: str) -> float:
        """Seconds of a tier's work."""
        return sum(self._sums.get(tier, {}).values())

    def add(self, tier: str, due: float, seconds: float) -> None:
        """Books work, or with negative seconds takes it off."""
        if tier not in self._work:
            self._work[tier], self._sums[tier] = {}, {}
        blocks, sums = self._work[tier], self._sums[tier]
        grain = self._grain(due)
        block = grain // self._BLOCK
        work = blocks.get(block)
        if work is None:
            work, sums[block] = blocks.setdefault(block, {}), 0.0
        before = work.get(grain, 0.0)
        left = before + seconds
        if left > 1e-9:
            work[grain] = left
            sums[block] += seconds
            return
        work.pop(grain, None)
        if work:
            sums[block] -= before
        else:
            del blocks[block], sums[block]

    def arrived(self, tier: str, seconds: float, now: float) -> None:
        """Notes that a job of so much work was admitted, for `rate`."""
        self._recent[tier] = (self.rate(tier, now) + seconds / self._MEMORY_S, now)

    def rate(self, tier: str, now: float) -> float:
        """Seconds of work that arrive in a second, of late: an exponential average over half a minute."""
        rate, since = self._recent.get(tier, (0.0, now))
        return rate * math.exp((since - now) / self._MEMORY_S)

    def due_before(self, tier: str, due: float) -> float:
        """Seconds of a tier's work that is due no later than `due`: what runs first in order of deadlines."""
        limit = self._grain(due)
        last = limit // self._BLOCK
        due_s = 0.0
        for block, seconds in self._sums.get(tier, {}).items():
            if block < last:
                due_s += seconds
        for grain, seconds in self._work.get(tier, {}).get(last, {}).items():
            if grain <= limit:
                due_s += seconds
        return due_s

    def _grain(self, due: float) -> int:
        return int(due / self._GRAIN_S) + 1
