"""A job's way as spans of its request's trace: queue, encode, denoise and decode, with each tick as an event."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Tracer, set_span_in_context

from steploom_batcher.messages import TickReport
from steploom_batcher.types import Entry, JobSpec, Stage, Status, Tick
from steploom_common.tracing import NO_TRACER, parent_in


@dataclass(frozen=True)
class _Ran:
    """A job's part in a tick that is back."""

    tick: Tick
    entry: Entry
    worker: str
    status: Status
    start_unix_s: float
    end_unix_s: float


@dataclass
class _Job:
    spec: JobSpec
    parent: SpanContext
    admitted_unix_s: float
    ticks: list[_Ran] = field(default_factory=list)


class JobTraces:
    """Remembers the ticks of jobs that are traced; spans are made when a job ends, from the times that workers tell.

    Args:
        tracer: makes the spans.
        unix_time: seconds since the epoch.
    """

    def __init__(self, tracer: Tracer = NO_TRACER, unix_time: Callable[[], float] = time.time) -> None:
        self._tracer = tracer
        self._unix_time = unix_time
        self._jobs: dict[str, _Job] = {}

    def __repr__(self) -> str:
        return f"JobTraces({len(self._jobs)} jobs)"

    def begin(self, spec: JobSpec, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """A job is admitted. Nothing where its call belongs to no trace, or to one that nobody records."""
        if self._tracer is NO_TRACER:
            return
        parent = parent_in(metadata)
        if parent.is_valid and parent.trace_flags.sampled:
            self._jobs[spec.job_id] = _Job(spec, parent, self._unix_time())

    def tick_done(self, worker: str, tick: Tick, report: TickReport) -> None:
        """A tick is back."""
        if not self._jobs:
            return
        outcome = report.outcome
        start_unix_s = report.start_unix_s or self._unix_time()  # of one that did not run there is no time
        for entry in tick.entries:
            job = self._jobs.get(entry.job_id)
            if job is not None:
                end_unix_s = start_unix_s + outcome.seconds
                job.ticks.append(_Ran(tick, entry, worker, outcome.status, start_unix_s, end_unix_s))

    def end(self, job_id: str) -> None:
        """A job has ended, however. Nothing where it is not traced, or has ended before."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        parent = set_span_in_context(NonRecordingSpan(job.parent), Context())
        began = min((ran.start_unix_s for ran in job.ticks), default=self._unix_time())
        self._span("queue", parent, job.admitted_unix_s, max(began, job.admitted_unix_s), job)
        for stage in Stage:
            ticks = [ran for ran in job.ticks if ran.tick.stage is stage]
            if not ticks:
                continue
            start_unix_s = min(ran.start_unix_s for ran in ticks)
            end_unix_s = max(ran.end_unix_s for ran in ticks)
            self._span(stage.name.lower(), parent, start_unix_s, end_unix_s, job, ticks)

    def _span(
        self, name: str, parent: Context, start_unix_s: float, end_unix_s: float, job: _Job, ticks: Iterable[_Ran] = ()
    ) -> None:
        attributes = {"steploom.job_id": job.spec.job_id, "steploom.tier": job.spec.tier}
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=_ns(start_unix_s))
        for ran in ticks:
            _add_tick(span, ran)
        span.end(_ns(end_unix_s))


def _add_tick(span: Span, ran: _Ran) -> None:
    tick = ran.tick
    attributes: dict[str, str | int | float] = {
        "tick_id": tick.tick_id,
        "status": ran.status.name.lower(),
        "rows": tick.rows,
        "bucket": tick.bucket,
        "jobs": len(tick.entries),
        "seconds": ran.end_unix_s - ran.start_unix_s,
        "predicted_s": tick.predicted_s,
        "worker": ran.worker,
        "slot": ran.entry.slot,
    }
    if tick.stage is Stage.DENOISE:
        attributes["step"] = ran.entry.step + 1
    span.add_event("tick", attributes, _ns(ran.start_unix_s))


def _ns(unix_s: float) -> int:
    return round(1e9 * unix_s)
