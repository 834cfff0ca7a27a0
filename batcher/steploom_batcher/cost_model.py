"""Seconds that a tick takes, by stage and bucket: measured at warm-up, corrected by what ticks really took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steploom_batcher.types import Stage, StageCosts

# Weight of a new measurement: a steady change of speed, to half at most, is followed within some twenty ticks of a
# bucket.
_SMOOTHING = 0.1

# A tick that took more times its estimate counts as if it took so many: a machine that stalls for a moment is no slower
# for that, and buckets that look dear are not tried again, so that ticks would not be shared any more.
_MOST_TIMES = 2.0

# What a tick costs beside the device, in messages and planning. It decides on engines that take next to no time: with
# ticks for nothing, sharing them would save nothing.
_FLOOR_S = 1e-4


class CostModel:
    """The cost table of one worker.

    Args:
        costs: seconds of each bucket of each stage.
        max_rows: buckets above it are not used.

    Attributes:
        derived: what others have made of the table and want to find again; emptied when an estimate changes.

    Raises:
        ValueError: a stage has no usable bucket.
    """

    def __init__(self, costs: StageCosts, max_rows: int) -> None:
        self._seconds: dict[Stage, dict[int, float]] = {}
        self._buckets: dict[Stage, list[int]] = {}
        self._bucket_of: dict[Stage, list[int]] = {}  # by rows
        # What follows from the estimates is asked for many times a tick, and changes once a tick at most.
        self._row_s: dict[Stage, float] = {}
        self._full: dict[tuple[Stage, float], int] = {}
        self._settled: set[Stage] = set()  # their estimates do not contradict each other
        self.derived: dict[Any, Any] = {}
        for stage in Stage:
            buckets = sorted(bucket for bucket in costs.get(stage, {}) if bucket <= max_rows)
            if not buckets:
                raise ValueError(f"the worker has no {stage.name.lower()} bucket of at most {max_rows} rows")
            self._buckets[stage] = buckets
            self._bucket_of[stage] = [next(item for item in buckets if item >= rows) for rows in range(buckets[-1] + 1)]
            self._seconds[stage] = {bucket: max(_FLOOR_S, costs[stage][bucket]) for bucket in buckets}

    def __repr__(self) -> str:
        return f"CostModel({self._seconds})"

    def as_table(self) -> StageCosts:
        """A copy of the estimates as they stand."""
        return {stage: dict(table) for stage, table in self._seconds.items()}

    def buckets(self, stage: Stage) -> Sequence[int]:
        """The row counts that the worker runs, ascending."""
        return self._buckets[stage]

    def bucket(self, stage: Stage, rows: int) -> int:
        """The smallest bucket that holds `rows`; the largest there is where none does."""
        buckets = self._bucket_of[stage]
        return buckets[rows] if rows < len(buckets) else buckets[-1]

    def seconds(self, stage: Stage, rows: int) -> float:
        """Predicted time of a tick of `rows`."""
        buckets = self._bucket_of[stage]
        return self._seconds[stage][buckets[rows] if rows < len(buckets) else buckets[-1]]

    def seconds_per_row(self, stage: Stage) -> float:
        """At the bucket where a row is cheapest: what a row adds to a busy device."""
        known = self._row_s.get(stage)
        if known is None:
            known = min(seconds / bucket for bucket, seconds in self._seconds[stage].items())
            self._row_s[stage] = known
        return known

    def full_bucket(self, stage: Stage, gain: float) -> int:
        """The smallest bucket whose cost per row is within `gain` of the least: more rows hardly pay."""
        known = self._full.get((stage, gain))
        if known is None:
            bound = (1.0 + gain) * self.seconds_per_row(stage)
            known = next(bucket for bucket, seconds in self._seconds[stage].items() if seconds / bucket <= bound)
            self._full[stage, gain] = known
        return known

    def best_bucket(self, stage: Stage, rows: int, gain: float) -> int:
        """The bucket to fill when `rows` are ready: where they cost least each, up to the full one."""
        table, full = self._seconds[stage], self.full_bucket(stage, gain)
        fitting = [bucket for bucket in self._buckets[stage] if bucket <= full]
        return min(fitting, key=lambda bucket: table[bucket] / min(bucket, rows))

    def observe(self, stage: Stage, bucket: int, seconds: float) -> None:
        """Corrects the estimate by a measured tick.

        More rows never cost less: estimates of other buckets that contradict the corrected one give way to it. Else one
        that a busy moment at warm-up made too large would never be tried, and so never be corrected.
        """
        table = self._seconds[stage]
        counted_s = min(max(_FLOOR_S, seconds), _MOST_TIMES * table[bucket])
        self._set(stage, bucket, table[bucket] + _SMOOTHING * (counted_s - table[bucket]))

    def replace(self, costs: StageCosts) -> None:
        """Takes over what the worker has measured anew; buckets that are not used are left out.

        A bucket that has become much faster at once would be followed too slowly by its ticks, and by none where its
        old estimate keeps the requests out that it is for.
        """
        for stage, table in costs.items():
            for bucket, seconds in table.items():
                if bucket in self._seconds[stage]:
                    self._set(stage, bucket, max(_FLOOR_S, seconds))

    def _set(self, stage: Stage, bucket: int, seconds: float) -> None:
        table = self._seconds[stage]
        if table[bucket] == seconds and stage in self._settled:
            return
        self._settled.add(stage)
        self._row_s.pop(stage, None)
        self._full.clear()
        self.derived.clear()
        table[bucket] = seconds
        for other, estimate in table.items():
            table[other] = min(estimate, table[bucket]) if other < bucket else max(estimate, table[bucket])
