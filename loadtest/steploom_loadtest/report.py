"""What a load run gave, whether live or simulated: latencies by class, throughput, goodput, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from steploom_loadtest.simulator import End, Simulation
from steploom_loadtest.traces import Arrival

OK = "OK"
CANCELLED = "CANCELLED"
INTERRUPTED = "INTERRUPTED"  # it was open when the run was ended


@dataclass(frozen=True, slots=True)
class Record:
    """One request and its end."""

    arrival: Arrival
    status: str  # of gRPC; for a simulated failure, its cause
    ended_at: float  # seconds from the start of the trace
    queue_s: float = 0.0  # the rest of a request that got its picture
    mean_rows_per_tick: float = 0.0
    ticks: int = 0
    lag_s: float = 0.0  # that the generator sent it late; part of the latency
    cause: str = ""  # why there is no picture, in a word or two; empty: the status says it
    message: str = ""  # what the service said with its refusal
    request_id: str = ""  # by which ticks name it; empty: not known

    @property
    def sent_at(self) -> float:
        """Seconds from the start of the trace: when it was sent in truth."""
        return self.arrival.at + self.lag_s

    @property
    def latency_s(self) -> float:
        """From the intended moment of sending: a stalled generator or service hides nothing."""
        return self.ended_at - self.arrival.at

    @property
    def is_good(self) -> bool:
        """A picture within the deadline."""
        return self.status == OK and self.latency_s <= self.arrival.deadline_s


@dataclass(frozen=True)
class ClassReport:
    """Requests of one class. Latencies in seconds, of those that got a picture; 0 where none did."""

    label: str
    sent: int
    ok: int
    good: int  # with a picture within the deadline
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    mean_queue_s: float
    mean_rows_per_tick: float


@dataclass(frozen=True)
class LoadReport:
    """A run."""

    classes: Sequence[ClassReport]
    statuses: Mapping[str, int]
    seconds: float  # from the start of the trace to the last end
    throughput: float  # pictures a second
    goodput: float  # pictures within their deadlines, a second
    max_lag_s: float  # of the generator; the run says little where this is not small

    def of(self, steps: int) -> ClassReport:
        """The class of so many steps."""
        return next(item for item in self.classes if item.label.endswith(f" {steps} steps"))


def summarize(records: Sequence[Record]) -> LoadReport:
    """The report of a run."""
    labels = sorted({record.arrival.label for record in records})
    seconds = max((record.ended_at for record in records), default=0.0)
    span = max(seconds, 1e-9)
    return LoadReport(
        classes=[_class_report(label, [item for item in records if item.arrival.label == label]) for label in labels],
        statuses=dict(Counter(record.status for record in records)),
        seconds=seconds,
        throughput=sum(record.status == OK for record in records) / span,
        goodput=sum(record.is_good for record in records) / span,
        max_lag_s=max((record.lag_s for record in records), default=0.0),
    )


def records_of(simulation: Simulation) -> list[Record]:
    """A simulated run in the form of a live one."""
    names = {End.FINISHED: OK, End.CANCELLED: CANCELLED}
    return [
        Record(
            job.arrival,
            names.get(job.end, job.cause) if job.end else "",
            job.ended_at,
            *((job.usage.queue_s, job.usage.mean_rows_per_tick, job.usage.ticks) if job.usage else ()),
        )
        for job in simulation.jobs
    ]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def table(report: LoadReport, title: str) -> Table:
    """For the terminal."""
    statuses = ", ".join(f"{name} {count}" for name, count in sorted(report.statuses.items()))
    caption = (
        f"{report.throughput:.2f} pictures/s, {report.goodput:.2f} within the deadline; {statuses}; "
        f"sent at most {report.max_lag_s * 1000:.0f} ms late"
    )
    result = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    result.add_column("class")
    for column in ("sent", "done", "in time", "p50 s", "p95 s", "p99 s", "max s", "queue s", "rows a tick"):
        result.add_column(column, justify="right")
    for item in report.classes:
        seconds = (item.p50_s, item.p95_s, item.p99_s, item.max_s, item.mean_queue_s)
        counts = (item.sent, item.ok, item.good)
        result.add_row(item.label, *map(str, counts), *(f"{s:.3f}" for s in seconds), f"{item.mean_rows_per_tick:.1f}")
    return result


def _class_report(label: str, records: Sequence[Record]) -> ClassReport:
    done = [record for record in records if record.status == OK]
    latencies = sorted(record.latency_s for record in done)
    return ClassReport(
        label=label,
        sent=len(records),
        ok=len(done),
        good=sum(record.is_good for record in records),
        p50_s=percentile(latencies, 0.50),
        p95_s=percentile(latencies, 0.95),
        p99_s=percentile(latencies, 0.99),
        max_s=latencies[-1] if latencies else 0.0,
        mean_queue_s=sum(record.queue_s for record in done) / max(1, len(done)),
        mean_rows_per_tick=sum(record.mean_rows_per_tick for record in done) / max(1, len(done)),
    )
