"""What a device did between two looks at the batcher's status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from steploom_batcher.types import Stage
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse

_COUNTERS = ("ticks", "busy_s", "rows", "padding")


@dataclass(frozen=True)
class DeviceShare:
    """Of all workers together; the shares of time are of one device where there is one worker."""

    # share of the time in which a tick of any stage was under way; a pause counts when the tick after it is answered
    busy: float
    denoise_busy: float  # the same for denoise ticks
    others_busy: float  # the same for encode and decode; the two may overlap
    rows_per_tick: float  # of denoise ticks, without padding
    padding_share: float  # of the rows that were computed
    tick_ms: float  # mean device time of a denoise tick
    row_ms: float  # device time of a row that was computed, padding included
    gap_p50_ms: float  # pause between denoise ticks: upper bound, at most a quarter above the true value
    gap_p99_ms: float


def device_share(before: StatusResponse, after: StatusResponse, seconds: float) -> DeviceShare:
    """What happened in the `seconds` between two statuses of one batcher."""
    use = {
        stage: {name: _total(after, stage, name) - _total(before, stage, name) for name in _COUNTERS} for stage in Stage
    }
    denoise = use[Stage.DENOISE]
    computed = denoise["rows"] + denoise["padding"]
    gaps = Counter(_gaps(after))
    gaps.subtract(_gaps(before))
    idle_s = _idle_s(after) - _idle_s(before)
    return DeviceShare(
        busy=max(0.0, 1.0 - idle_s / seconds) if any(found["ticks"] for found in use.values()) else 0.0,
        denoise_busy=denoise["busy_s"] / seconds,
        others_busy=sum(use[stage]["busy_s"] for stage in (Stage.ENCODE, Stage.DECODE)) / seconds,
        rows_per_tick=denoise["rows"] / max(1, denoise["ticks"]),
        padding_share=denoise["padding"] / max(1, computed),
        tick_ms=1000 * denoise["busy_s"] / max(1, denoise["ticks"]),
        row_ms=1000 * denoise["busy_s"] / max(1, computed),
        gap_p50_ms=1000 * bucket_at(gaps, 0.50),
        gap_p99_ms=1000 * bucket_at(gaps, 0.99),
    )


def bucket_at(counts: Mapping[float, int], share: float) -> float:
    """Upper bound of the bucket that holds this percentile; 0 of nothing."""
    left = share * sum(counts.values())
    for bound, count in sorted(counts.items()):
        left -= count
        if count and left <= 0:
            return bound
    return 0.0


def _total(status: StatusResponse, stage: Stage, name: str) -> float:
    """One counter of a stage, over all workers."""
    uses = (use for worker in status.workers for use in worker.stages if int(use.stage) == stage)
    return sum(float(getattr(use, name)) for use in uses)


def _idle_s(status: StatusResponse) -> float:
    return sum(worker.idle_s for worker in status.workers)


def _gaps(status: StatusResponse) -> Counter[float]:
    total: Counter[float] = Counter()
    for worker in status.workers:
        total.update({bucket.at_most_s: bucket.count for bucket in worker.denoise_gaps})
    return total
