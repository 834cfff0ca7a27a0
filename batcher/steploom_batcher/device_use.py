"""What a worker's device did, from its answers: busy time and rows of each stage, and pauses between denoise ticks."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from steploom_batcher.messages import TickReport
from steploom_batcher.types import Stage, Status, Tick

# Upper bounds of the histogram: 10 µs to 10 s, ten to a decade, so that a percentile read from it is within a quarter.
GAP_BOUNDS_S = tuple(10.0 ** (place / 10) for place in range(-50, 11))


@dataclass
class StageUse:
    """Ticks of one stage that ran."""

    ticks: int = 0
    busy_s: float = 0.0  # device time
    rows: int = 0  # of denoise ticks; jobs of the others
    padding: int = 0  # rows or jobs computed for nobody


class DeviceUse:
    """Counts since it was made. A tick that failed or was skipped is in none of it."""

    def __init__(self) -> None:
        self.stages = {stage: StageUse() for stage in Stage}
        self.idle_s = 0.0  # between ticks of whatever stage
        self._gaps: Counter[float] = Counter()
        self._denoised_until: float | None = None  # seconds since the epoch; None: no tick to count from

    def __repr__(self) -> str:
        return f"DeviceUse({self.stages}, {self._gaps.total()} gaps)"

    @property
    def gaps(self) -> Mapping[float, int]:
        """Pauses between the end of a denoise tick and the start of the next, by upper bound; only those that occurred.

        The pause of a device that had nothing to do is one too.
        """
        return dict(sorted(self._gaps.items()))

    def add(self, tick: Tick, report: TickReport) -> None:
        """Counts a tick that is back."""
        if report.outcome.status is not Status.OK:
            return
        use = self.stages[tick.stage]
        use.ticks += 1
        use.busy_s += report.outcome.seconds
        self.idle_s += report.outcome.idle_s
        use.rows += tick.rows
        use.padding += tick.bucket - tick.rows
        if tick.stage is Stage.DENOISE:
            self._add_gap(report)

    def reconnected(self) -> None:
        """Another process, or the same one after a loss: the pause before its first tick is nobody's."""
        self._denoised_until = None

    def _add_gap(self, report: TickReport) -> None:
        if self._denoised_until is not None:
            # answers come in the order of the ticks, so that one whose turn came late seems to have begun early
            gap_s = max(0.0, report.start_unix_s - self._denoised_until)
            place = bisect_left(GAP_BOUNDS_S, gap_s)
            self._gaps[GAP_BOUNDS_S[place] if place < len(GAP_BOUNDS_S) else math.inf] += 1
        self._denoised_until = report.start_unix_s + report.outcome.seconds
