"""What a report says in figures: rates, latencies by tier, refusals by cause, what devices did, what pictures cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steploom_loadtest.report import CANCELLED, INTERRUPTED, OK, Record, percentile
from steploom_loadtest.report_model import RanTick, Report, Work

SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
HOLDS_SHARE = 0.99  # of a tier's requests must be in time


@dataclass(frozen=True)
class TierFigures:
    """Requests of one tier. Latencies in seconds from the intended moment, of those that got a picture; 0 of none."""

    tier: str
    sent: int
    done: int  # with a picture
    in_time: int  # with a picture within the deadline
    cancelled: int  # by the plan of the trace, or open when the run was ended
    goodput: float  # pictures within the deadline, a second
    deadline_s: float  # the longest
    percentiles_s: Mapping[str, float]  # by the names of SHARES
    max_s: float
    mean_queue_s: float
    rows_per_tick: float  # of all requests in the ticks that it rode in

    @property
    def in_time_share(self) -> float:
        """Of those that could have been."""
        waited = self.sent - self.cancelled
        return self.in_time / waited if waited else 1.0


@dataclass(frozen=True)
class DeviceFigures:
    """What all devices did while the run lasted, for whatever caller."""

    rows_per_tick: float  # of denoise ticks, without padding
    padding: float  # share of the rows of all stages that were computed for nobody
    busy: float | None  # share of the time in which a device had a tick; None: not known
    busy_is_exact: bool  # from the ticks themselves; else stages that overlap count twice
    ticks: Mapping[str, int]  # by stage


@dataclass(frozen=True)
class Figures:
    """All figures of a run."""

    offered_rate: float  # requests a second that were asked for
    sent_rate: float  # that went out
    achieved_rate: float  # pictures a second, until the last answer
    goodput: float  # pictures within the deadline, a second
    seconds: float  # until the last answer
    sent: int
    done: int
    lag_p50_s: float  # how late the generator itself was
    lag_p99_s: float
    max_lag_s: float
    tiers: Sequence[TierFigures]  # by name
    statuses: Mapping[str, int]
    refused: Mapping[str, int]  # by cause: requests that got no picture, and were not to be cancelled
    devices: DeviceFigures | None
    cost_per_1000: float | None  # in the currency of the price; None: no price, or no picture


def figures(report: Report) -> Figures:
    """The figures of a run."""
    records = report.requests
    seconds = max([report.duration_s, *(record.ended_at for record in records)])
    if report.is_interrupted:
        seconds = max((record.ended_at for record in records), default=0.0)
    span = max(seconds, 1e-9)
    lags = sorted(record.lag_s for record in records)
    done = sum(record.status == OK for record in records)
    sending_s = max(1e-9, min(report.duration_s, seconds))
    return Figures(
        offered_rate=report.offered_rate,
        sent_rate=len(records) / sending_s,
        achieved_rate=done / span,
        goodput=sum(record.is_good for record in records) / span,
        seconds=seconds,
        sent=len(records),
        done=done,
        lag_p50_s=percentile(lags, 0.50),
        lag_p99_s=percentile(lags, 0.99),
        max_lag_s=lags[-1] if lags else 0.0,
        tiers=tier_figures(records, span),
        statuses=dict(sorted(Counter(record.status for record in records).items())),
        refused=refusals(records),
        devices=_devices(report, span) if report.work else None,
        cost_per_1000=_cost(report, span, done),
    )


def summary(report: Report) -> dict[str, Any]:
    """The figures as plain data, for scripts."""
    return asdict(figures(report))


def tier_figures(records: Sequence[Record], seconds: float) -> list[TierFigures]:
    """A tier each, by name."""
    tiers = sorted({record.arrival.tier for record in records})
    return [_tier(tier, [item for item in records if item.arrival.tier == tier], seconds) for tier in tiers]


def refusals(records: Iterable[Record]) -> dict[str, int]:
    """Requests without a picture, by cause, the most frequent first; not those that the trace or Ctrl-C ended."""
    lost = (item for item in records if item.status != OK and not _is_as_planned(item))
    return dict(Counter(item.cause or item.status.lower() for item in lost).most_common())


def busy_share(ticks: Sequence[RanTick], workers: int, seconds: float) -> float:
    """Share of the time in which a device had a tick: overlapping ones of a worker count once."""
    total = 0.0
    for worker in {tick.worker for tick in ticks}:
        until = 0.0
        for tick in sorted((item for item in ticks if item.worker == worker), key=lambda item: item.start_s):
            start, end = max(tick.start_s, until), min(tick.end_s, seconds)
            total += max(0.0, end - start)
            until = max(until, end)
    return total / max(1e-9, max(1, workers) * seconds)


def _is_as_planned(record: Record) -> bool:
    is_planned = record.status == CANCELLED and record.arrival.cancel_after_s is not None
    return is_planned or record.status == INTERRUPTED


def _tier(tier: str, records: Sequence[Record], seconds: float) -> TierFigures:
    done = [record for record in records if record.status == OK]
    latencies = sorted(record.latency_s for record in done)
    in_time = sum(record.is_good for record in records)
    return TierFigures(
        tier=tier,
        sent=len(records),
        done=len(done),
        in_time=in_time,
        cancelled=sum(map(_is_as_planned, records)),
        goodput=in_time / seconds,
        deadline_s=max(record.arrival.deadline_s for record in records),
        percentiles_s={name: percentile(latencies, share) for name, share in SHARES.items()},
        max_s=latencies[-1] if latencies else 0.0,
        mean_queue_s=sum(record.queue_s for record in done) / max(1, len(done)),
        rows_per_tick=sum(record.mean_rows_per_tick for record in done) / max(1, len(done)),
    )


def _devices(report: Report, seconds: float) -> DeviceFigures:
    work = report.work
    assert work
    denoise = work.stages.get("denoise")
    computed = sum(stage.rows + stage.padding for stage in work.stages.values())
    is_exact = bool(report.ticks) and report.lost_ticks == 0
    return DeviceFigures(
        rows_per_tick=denoise.rows / max(1, denoise.ticks) if denoise else 0.0,
        padding=sum(stage.padding for stage in work.stages.values()) / max(1, computed),
        busy=busy_share(report.ticks, work.workers, seconds) if is_exact else _counted_busy(work, seconds),
        busy_is_exact=is_exact,
        ticks={name: stage.ticks for name, stage in work.stages.items()},
    )


def _counted_busy(work: Work, seconds: float) -> float | None:
    if work.workers == 0:
        return None
    return min(1.0, sum(stage.busy_s for stage in work.stages.values()) / (work.workers * seconds))


def _cost(report: Report, seconds: float, done: int) -> float | None:
    if report.price is None or report.devices == 0 or done == 0:
        return None
    return 1000.0 * report.price * report.devices * seconds / 3600.0 / done
