"""Weighted deficit sharing between flows, and the backlog that admission looks at.

A flow is the jobs of one tier with one key. Every tick's seconds are owed to the active flows by weight and charged to
those whose rows ran. What a flow is owed is its *credit*, in seconds, and the scheduler subtracts a multiple of it from
the slack of the flow's jobs: deadlines decide while shares are even, and a flow that gets too little gains urgency
until it gets its share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from steploom_batcher.types import Key

Flow = tuple[str, Key]  # tier, key

# Bounds what a starved flow can claim at once; with the default gain it outweighs five minutes of slack.
_MAX_CREDIT_S = 30.0


class Shares:
    """The credit of each active flow.

    Args:
        weights: of each tier.
        gain: seconds of slack that a second of credit outweighs.
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
        """Seconds to take off the slack of the flow's jobs."""
        return self._gain * self.credit(flow)

    def charge(self, rows: Mapping[Flow, int], seconds: float, active: Iterable[Flow]) -> None:
        """Books a tick of `seconds` whose rows belong to the flows in `rows`; forgets flows that are not active."""
        flows = {*active, *rows}
        total_weight = sum(self._weights[tier] for tier, _ in flows)
        total_rows = sum(rows.values())
        self._credit = {
            flow: _clamp(
                self.credit(flow) + seconds * (self._weights[flow[0]] / total_weight - rows.get(flow, 0) / total_rows)
            )
            for flow in flows
        }


def _clamp(seconds: float) -> float:
    return max(-_MAX_CREDIT_S, min(_MAX_CREDIT_S, seconds))


class Backlog:
    """Seconds of admitted work that is not done, by when it is due."""

    _GRAIN_S = 0.25  # due times are rounded up to it: a sum over some hundred sums, not over every job

    def __init__(self) -> None:
        self._work: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"Backlog({self.total_s:.3f} s)"

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self._work.values())

    def add(self, due: float, seconds: float) -> None:
        """Books work, or with negative seconds takes it off."""
        grain = self._grain(due)
        left = self._work.get(grain, 0.0) + seconds
        if left > 1e-9:
            self._work[grain] = left
        else:
            self._work.pop(grain, None)

    def due_before(self, due: float) -> float:
        """Seconds of the work that is due no later than `due`: what an earliest-deadline order runs first."""
        limit = self._grain(due)
        return sum(seconds for grain, seconds in self._work.items() if grain <= limit)

    def _grain(self, due: float) -> int:
        return int(due / self._GRAIN_S) + 1
