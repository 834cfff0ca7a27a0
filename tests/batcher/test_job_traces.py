"""Spans of jobs, from ticks whose times are given."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from steploom_batcher.messages import TickReport
from steploom_batcher.traces import JobTraces
from steploom_batcher.types import Entry, JobSpec, Key, Outcome, Stage, Status, Tick

KEY = Key("m", ())
CALL = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]


def spec(job_id: str) -> JobSpec:
    return JobSpec(job_id, KEY, "pro", 2, 3, 60.0)


class Bench:
    """Traces on a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = JobTraces(provider.get_tracer("test"), lambda: self.now)
        self._tick_id = 0

    def tick(
        self,
        stage: Stage,
        jobs: list[str],
        start_s: float,
        status: Status = Status.OK,
        step: int = 0,
        worker: str = "w",
    ) -> None:
        self._tick_id += 1
        entries = tuple(Entry(job_id, slot, step) for slot, job_id in enumerate(jobs))
        tick = Tick(self._tick_id, worker, stage, KEY, entries, 3 * len(jobs), 12, 0.4)
        self.traces.tick_done(worker, tick, TickReport(self._tick_id, Outcome(status, 0.5), start_unix_s=start_s))

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def times(self) -> dict[str, tuple[float, float]]:
        return {span.name: ((span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9) for span in self.spans()}


def test_stages_last_from_their_first_tick_to_the_end_of_their_last() -> None:
    bench = Bench()
    for job_id in ("a", "b"):
        bench.traces.begin(spec(job_id), CALL)
    bench.tick(Stage.ENCODE, ["a", "b"], 1002.0)
    bench.tick(Stage.DENOISE, ["a", "b"], 1003.0, step=0)
    bench.tick(Stage.DENOISE, ["a"], 1004.0, step=1)
    bench.tick(Stage.DECODE, ["a"], 1005.0)
    bench.traces.end("a")
    assert bench.times() == {
        "queue": (1000.0, 1002.0),
        "encode": (1002.0, 1002.5),
        "denoise": (1003.0, 1004.5),
        "decode": (1005.0, 1005.5),
    }
    (denoise,) = (span for span in bench.spans() if span.name == "denoise")
    events = [(event.timestamp / 1e9, dict(event.attributes or {})) for event in denoise.events]
    assert [time_s for time_s, _ in events] == [1003.0, 1004.0]
    assert [(ticks["jobs"], ticks["rows"], ticks["bucket"], ticks["step"]) for _, ticks in events] == [
        (2, 6, 12, 1),
        (1, 3, 12, 2),
    ]


def test_a_job_that_never_ran_has_waited_to_its_end() -> None:
    bench = Bench()
    bench.traces.begin(spec("a"), CALL)
    bench.now = 1007.0
    bench.traces.end("a")
    bench.traces.end("a")
    assert bench.times() == {"queue": (1000.0, 1007.0)}
    assert len(bench.spans()) == 1


def test_a_second_worker_and_a_failed_tick_are_told_by_the_events() -> None:
    bench = Bench()
    bench.traces.begin(spec("a"), CALL)
    bench.tick(Stage.ENCODE, ["a"], 1001.0)
    bench.now = 1002.0
    bench.tick(Stage.DENOISE, ["a"], 0.0, Status.FAILED)  # its time is not told
    bench.tick(Stage.DENOISE, ["a"], 1003.0, worker="other")
    bench.traces.end("a")
    assert bench.times()["denoise"] == (1002.0, 1003.5)
    (denoise,) = (span for span in bench.spans() if span.name == "denoise")
    told = [dict(event.attributes or {}) for event in denoise.events]
    assert [(tick["status"], tick["worker"]) for tick in told] == [("failed", "w"), ("ok", "other")]


def test_a_job_outside_of_any_trace_leaves_nothing() -> None:
    bench = Bench()
    bench.traces.begin(spec("a"), [])
    bench.traces.begin(spec("b"), None)
    bench.tick(Stage.ENCODE, ["a", "b"], 1001.0)
    bench.traces.end("a")
    bench.traces.end("b")
    assert bench.spans() == []
