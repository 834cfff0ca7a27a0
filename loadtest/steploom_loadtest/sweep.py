"""How much load a service bears: rates are tried until each tier's highest in time is known, and the knee.

A tier holds at a rate where 99 of 100 of its requests get their picture within the deadline, refused ones counted as
late, and where no more and more of them are open: a run is shorter than what a long deadline can hide. The rates double
until no tier holds, and the gap of each is halved, by ratio, until it is as narrow as asked for. The knee is where
power, pictures a second over their mean latency, is most (L. Kleinrock, "Power and deterministic rules of thumb for
probabilistic problems in computer communications", ICC 1979).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from steploom_loadtest.report import OK, Record
from steploom_loadtest.report_figures import HOLDS_SHARE, figures
from steploom_loadtest.report_model import Limit, Point, Report, Sweep, TierPoint
from steploom_loadtest.traces import RequestClass

MAX_GROWTH = 0.05  # share of the requests of the second half that may be open at the end beside those that always are
_LEAST_GROWTH = 5.0  # requests: fewer are chance
_MAX_POINTS = 40
_MAX_HALVINGS = 6  # below the first rate
_KNEE_GAP = 1.3  # between the rates on both sides of the knee and the knee
_MAX_KNEE_POINTS = 4

Measure = Callable[[float], Awaitable[Report]]


@dataclass(frozen=True)
class SweepPlan:
    """What is tried."""

    first: float  # requests a second
    highest: float  # requests a second; more is never tried
    precision: float  # the lowest rate that fails is at most this share above the highest that holds
    seconds: float  # of a rate at least
    max_seconds: float  # of a rate at most
    samples: int  # requests of each tier in a run, as long as `max_seconds` allows

    def length_s(self, rate: float, mix: Sequence[RequestClass]) -> float:
        """How long a rate is tried."""
        total = sum(kind.weight for kind in mix)
        tiers = {kind.tier for kind in mix}
        least = min(sum(kind.weight for kind in mix if kind.tier == tier) for tier in tiers) / total
        return min(self.max_seconds, max(self.seconds, self.samples / (rate * least)))


async def sweep(
    measure: Measure, plan: SweepPlan, on_point: Callable[[Point], None] | None = None
) -> tuple[Report | None, Sweep]:
    """Tries rates; returns the run at the highest that all tiers bear (else the lowest tried), and all that was found.

    Args:
        measure: runs the load at a rate; an interrupted run ends the sweep.
        plan: what is tried.
        on_point: hears of each rate.
    """
    search = _Search(measure, plan, on_point)
    await search.run()
    return search.best, search.found


def point_of(report: Report) -> Point:
    """A run as a point of a sweep."""
    found = figures(report)
    done = [record for record in report.requests if record.status == OK]
    tiers = []
    for tier in found.tiers:
        growth = growth_of([item for item in report.requests if item.arrival.tier == tier.tier], report.duration_s)
        tiers.append(
            TierPoint(
                tier=tier.tier,
                sent=tier.sent,
                in_time=tier.in_time_share,
                p50_s=tier.percentiles_s["p50"],
                p99_s=tier.percentiles_s["p99"],
                deadline_s=tier.deadline_s,
                growth=growth,
                holds=tier.in_time_share >= HOLDS_SHARE and growth <= MAX_GROWTH,
            )
        )
    return Point(
        rate=report.offered_rate,
        seconds=report.duration_s,
        achieved=found.achieved_rate,
        goodput=found.goodput,
        mean_latency_s=sum(record.latency_s for record in done) / max(1, len(done)),
        max_lag_s=found.max_lag_s,
        tiers=tuple(tiers),
    )


def growth_of(records: Iterable[Record], seconds: float) -> float:
    """How many more requests were open in the last quarter than in the second, as a share of a half's; 0 of few."""
    spans = [(record.arrival.at, record.ended_at) for record in records]
    early = _mean_open(spans, 0.25 * seconds, 0.5 * seconds)
    late = _mean_open(spans, 0.75 * seconds, seconds)
    came = sum(0.5 * seconds <= at for at, _ in spans)
    more = late - early
    return more / came if came and more > _LEAST_GROWTH else 0.0


def _mean_open(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    return sum(max(0.0, min(until, end) - max(at, begin)) for at, until in spans) / max(1e-9, end - begin)


class _Search:
    def __init__(self, measure: Measure, plan: SweepPlan, on_point: Callable[[Point], None] | None) -> None:
        self._measure = measure
        self._plan = plan
        self._on_point = on_point
        self._points: dict[float, Point] = {}
        self._is_over = False
        self.best: Report | None = None

    @property
    def found(self) -> Sweep:
        """What is known now."""
        points = tuple(self._points[rate] for rate in sorted(self._points))
        names = sorted({tier.tier for point in points for tier in point.tiers})
        knee, near = self._knee()
        return Sweep(points, tuple(self._limit(name) for name in names), self._plan.precision, knee, near)

    async def run(self) -> None:
        """To the end, or to an interruption."""
        await self._bracket()
        for tier in sorted({tier.tier for point in self._points.values() for tier in point.tiers}):
            await self._narrow(tier)
        await self._narrow_knee()

    async def _try(self, rate: float) -> Point | None:
        """None: the sweep is over."""
        if self._is_over or len(self._points) >= _MAX_POINTS:
            return None
        report = await self._measure(rate)
        if report.is_interrupted:
            self._is_over = True
            if self.best is None:
                self.best = report
            return None
        point = replace(point_of(report), rate=rate)
        self._points[rate] = point
        if self._is_best(point):
            self.best = report
        if self._on_point is not None:
            self._on_point(point)
        return point

    def _is_best(self, point: Point) -> bool:
        """The highest at which all tiers hold; while there is none, the lowest."""
        holding = [rate for rate, other in self._points.items() if _all_hold(other)]
        return point.rate == (max(holding) if holding else min(self._points))

    async def _bracket(self) -> None:
        rate = min(self._plan.first, self._plan.highest)
        point = await self._try(rate)
        below = rate
        for _ in range(_MAX_HALVINGS):
            if point is None or _all_hold(point):
                break
            below /= 2
            point = await self._try(below)
        latest = self._points.get(rate)
        while latest is not None and any(tier.holds for tier in latest.tiers) and rate < self._plan.highest:
            rate = min(2 * rate, self._plan.highest)
            latest = await self._try(rate)

    async def _narrow(self, tier: str) -> None:
        while not self._is_over:
            limit = self._limit(tier)
            if (
                not limit.holds_at
                or limit.fails_at is None
                or limit.fails_at <= limit.holds_at * (1 + self._plan.precision)
            ):
                return
            if await self._try(math.sqrt(limit.holds_at * limit.fails_at)) is None:
                return

    def _limit(self, tier: str) -> Limit:
        """The lowest rate that fails counts, though a higher one may have held by chance."""
        tried = {point.rate: item.holds for point in self._points.values() for item in point.tiers if item.tier == tier}
        fails_at = min((rate for rate, holds in tried.items() if not holds), default=None)
        held = [rate for rate, holds in tried.items() if holds and (fails_at is None or rate < fails_at)]
        return Limit(tier, max(held, default=0.0), fails_at)

    def _knee(self) -> tuple[float | None, tuple[float, ...]]:
        powers = {
            rate: point.achieved / point.mean_latency_s for rate, point in self._points.items() if point.mean_latency_s
        }
        if len(powers) < 3:
            return None, ()
        rates = sorted(powers)
        place = rates.index(max(rates, key=lambda rate: powers[rate]))
        if place in (0, len(rates) - 1):
            return None, ()  # it is beyond what was tried
        return rates[place], (rates[place - 1], rates[place + 1])

    async def _narrow_knee(self) -> None:
        for _ in range(_MAX_KNEE_POINTS):
            knee, near = self._knee()
            if knee is None:
                return
            gaps = [(max(rate, knee) / min(rate, knee), rate) for rate in near]
            widest, neighbour = max(gaps)
            if widest <= _KNEE_GAP or await self._try(math.sqrt(knee * neighbour)) is None:
                return


def _all_hold(point: Point) -> bool:
    return all(tier.holds for tier in point.tiers)
