"""One run of a trace against a live gateway: the load, what the services say meanwhile, and the report of both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from steploom_loadtest.open_loop import Payload, run_open_loop
from steploom_loadtest.report import OK, Record
from steploom_loadtest.report_model import LIVE, Origin, Report
from steploom_loadtest.services import Watch, watched
from steploom_loadtest.target import Target
from steploom_loadtest.traces import Arrival

# Of a request that no service of this kind will ever take: the load itself is wrong.
_WRONG = {"INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
_LATE_S = 0.02  # of the generator, at the 99th percentile: more of it and the figures are its own


class WrongRequest(Exception):
    """The service does not take what is asked for, as long as it is asked for like this."""

    def __init__(self, record: Record) -> None:
        super().__init__(f"{record.arrival.label}: {record.message or record.cause}")
        self.status = record.status  # of gRPC


@dataclass(frozen=True)
class Load:
    """What is sent, and how it is told of."""

    trace: Sequence[Arrival]
    rate: float  # requests a second that the trace asks for
    seconds: float  # of the trace
    title: str = "load"
    settings: dict[str, str] = field(default_factory=dict)  # as shown
    payload: Payload = field(default_factory=Payload)
    channels: int = 2
    price: float | None = None  # of a device for an hour
    devices: int = 0  # that are paid for; 0: the workers that are up


async def run_live(
    target: Target,
    load: Load,
    watch: Watch | None = None,
    *,
    on_begin: Callable[[], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Report:
    """Sends the load and tells what became of it.

    Args:
        target: the gateway.
        load: what is sent.
        watch: where the services tell what they do.
        on_begin: called when the first request is about to be due.
        on_record: hears of each end.
        stop: once set, the run ends as it is.

    Raises:
        Unreachable: nobody answers.
        WrongRequest: a kind of request is refused for what it is, and none of the kind had a picture before.
    """
    guard = _Guard(stop or asyncio.Event(), on_record)
    begun = [time.time()]

    def begin() -> None:
        begun[0] = time.time()
        if on_begin is not None:
            on_begin()

    async with watched(watch or Watch(), lambda: begun[0]) as seen:
        records = await run_open_loop(
            target,
            load.trace,
            load.payload,
            channels=load.channels,
            on_begin=begin,
            on_record=guard.hear,
            stop=guard.stop,
        )
    if guard.wrong is not None:
        raise WrongRequest(guard.wrong)
    report = Report(
        origin=Origin(LIVE, load.title, datetime.now(UTC).isoformat(timespec="seconds"), load.settings),
        offered_rate=load.rate,
        duration_s=load.seconds,
        requests=records,
        ticks=seen.ticks,
        lost_ticks=seen.lost_ticks,
        work=seen.work,
        price=load.price,
        devices=load.devices or (seen.work.workers if seen.work else 0),
        is_interrupted=guard.stop.is_set(),
        notes=tuple(seen.notes),
    )
    return replace(report, notes=(*report.notes, *_warnings(report)))


def _warnings(report: Report) -> list[str]:
    """What makes the figures worth less."""
    lags = sorted(record.lag_s for record in report.requests)
    late_s = lags[int(0.99 * (len(lags) - 1))] if lags else 0.0
    found = []
    if late_s > _LATE_S:
        problem = f"the generator itself was up to {1000 * late_s:.0f} ms late for 99 of 100 requests"
        found.append(f"{problem}: its machine is too busy, or the rate too high for one process")
    if report.price is not None and report.devices == 0:
        found.append("no cost: how many devices there are is not known; say --devices")
    return found


class _Guard:
    """Ends a run whose requests are wrong in themselves."""

    def __init__(self, stop: asyncio.Event, on_record: Callable[[Record], None] | None) -> None:
        self.stop = stop
        self.wrong: Record | None = None
        self._on_record = on_record
        self._good: set[str] = set()  # labels of which there was a picture

    def hear(self, record: Record) -> None:
        """Of each end."""
        if record.status == OK:
            self._good.add(record.arrival.label)
        elif record.status in _WRONG and record.arrival.label not in self._good and self.wrong is None:
            self.wrong = record
            self.stop.set()
        if self._on_record is not None:
            self._on_record(record)
