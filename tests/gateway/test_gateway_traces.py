"""Traces of requests through gateway and batcher, as an exporter gets them, and the context that is handed on."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_house import House, opened, request, status_of
from live_metrics import live
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as collector_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from steploom_common.settings import ConfigError
from steploom_common.tracing import NO_TRACER, finish, provider, tracer_of
from steploom_common.tracing_settings import TracingConfig

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["queue", "encode", "denoise", "decode"]


class Recorder:
    """A tracer, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self._provider.get_tracer("test")

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """The only span of that name."""
        (span,) = (span for span in self.spans() if span.name == name)
        return span

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.close()


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)


def traceparent(flags: str = "01") -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{TRACE}-{PARENT}-{flags}"),)


async def test_a_request_is_one_span_with_its_stages_and_ticks_below(tmp_path: Path, recorder: Recorder) -> None:
    async with live(tmp_path, recorder.tracer) as here:
        asked = request(tier="free", steps=4, request_id="r-1")
        await here.stub.Edit(asked, metadata=traceparent())
    whole = recorder.named("Edit")
    assert whole.kind is SpanKind.SERVER
    assert whole.parent is not None
    assert f"{whole.parent.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert attribute(whole, "steploom.request_id") == "r-1"
    assert attribute(whole, "steploom.tier") == "free"
    assert attribute(whole, "rpc.grpc.status_code") == 0
    assert whole.status.status_code is StatusCode.UNSET
    parts = [recorder.named(name) for name in STAGES]
    assert len(recorder.spans()) == 1 + len(parts)
    for part in parts:
        assert part.parent is not None
        assert part.context is not None
        assert f"{part.context.trace_id:032x}" == TRACE
        assert whole.context is not None
        assert part.parent.span_id == whole.context.span_id
        assert part.start_time is not None
        assert part.end_time is not None
        assert part.start_time <= part.end_time
        assert str(attribute(part, "steploom.job_id")).startswith("r-1/")
    starts = [part.start_time for part in parts]
    assert starts == sorted(starts, key=lambda start: start or 0)
    assert [len(part.events) for part in parts] == [0, 1, 4, 1]
    ticks = [dict(event.attributes or {}) for event in parts[2].events]
    assert [tick["step"] for tick in ticks] == [1, 2, 3, 4]
    assert {(tick["rows"], tick["jobs"], tick["status"]) for tick in ticks} == {(1, 1, "ok")}
    assert {tick["worker"] for tick in ticks} == {f"unix:{tmp_path}/w.sock"}


async def test_a_request_without_a_context_begins_a_trace_and_one_that_is_not_sampled_leaves_none(
    tmp_path: Path, recorder: Recorder
) -> None:
    async with live(tmp_path, recorder.tracer) as here:
        await here.stub.Edit(request(tier="free", steps=1), metadata=traceparent("00"))
        assert recorder.spans() == []
        await here.stub.Edit(request(tier="free", steps=1))
    assert sorted(span.name for span in recorder.spans()) == sorted(["Edit", *STAGES])
    assert recorder.named("Edit").parent is None
    assert len({span.context.trace_id for span in recorder.spans() if span.context}) == 1


@pytest.mark.parametrize("word", ["", "00-xyz", f"00-{'0' * 32}-{PARENT}-01", "ff" * 500])
async def test_a_damaged_context_is_as_none(tmp_path: Path, recorder: Recorder, word: str) -> None:
    async with live(tmp_path, recorder.tracer) as here:
        await here.stub.Edit(request(tier="free", steps=1), metadata=(("traceparent", word),))
    assert recorder.named("Edit").parent is None


async def test_errors_of_ours_are_errors_of_the_span_and_callers_are_not(tmp_path: Path, recorder: Recorder) -> None:
    async with live(tmp_path, recorder.tracer) as here:
        await status_of(here.stub.Edit(request(tier="gold")))
        here.gateway.service.drain()
        await status_of(here.stub.EditStream(request()).read())
    refused, drained = recorder.named("Edit"), recorder.named("EditStream")
    assert (attribute(refused, "rpc.grpc.status_code"), refused.status.status_code) == (5, StatusCode.UNSET)
    assert (attribute(drained, "rpc.grpc.status_code"), drained.status.status_code) == (14, StatusCode.ERROR)
    assert attribute(refused, "steploom.tier") is None  # a name that does not exist
    assert len(recorder.spans()) == 2


async def test_nothing_is_left_of_jobs_that_have_ended(tmp_path: Path, recorder: Recorder) -> None:
    async with live(tmp_path, recorder.tracer) as here:
        await here.stub.Edit(request(tier="free", steps=1))
        call = here.stub.EditStream(request(steps=100))
        await call.read()
        call.cancel()
        await here.batcher.driver.idle()
        await here.gateway.service.wait_idle()
        assert repr(here.batcher._traces) == "JobTraces(0 jobs)"
    cut = recorder.named("EditStream")
    assert attribute(cut, "rpc.grpc.status_code") == 1
    queues = [span for span in recorder.spans() if span.name == "queue"]
    assert len(queues) == 2


async def test_without_a_collector_the_context_goes_on_to_the_batcher(house: House) -> None:
    await house.stub.Edit(request(), metadata=(*traceparent(), ("tracestate", "vendor=1")))
    await house.stub.Edit(request())
    came, none = house.batcher.metadata
    assert came["traceparent"] == f"00-{TRACE}-{PARENT}-01"
    assert came["tracestate"] == "vendor=1"
    assert "traceparent" not in none


async def test_a_gateway_that_traces_puts_its_own_span_between(tmp_path: Path, recorder: Recorder) -> None:
    async with opened(tmp_path, tracer=recorder.tracer) as house:
        await house.stub.Edit(request(), metadata=traceparent())
        whole = recorder.named("Edit").context
        assert whole is not None
        assert house.batcher.metadata[0]["traceparent"] == f"00-{TRACE}-{whole.span_id:016x}-01"


def test_a_collector_is_named_by_its_address_and_none_is_asked_for_by_default() -> None:
    assert provider(TracingConfig(), "gateway") is None
    with pytest.raises(ConfigError, match="http"):
        TracingConfig(endpoint="localhost:4317")


class Collector(collector_grpc.TraceServiceServicer):
    """Takes what an exporter sends."""

    def __init__(self) -> None:
        self.sent: queue.Queue[collector_pb.ExportTraceServiceRequest] = queue.Queue()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - named as in its .proto
        self.sent.put(request)
        return collector_pb.ExportTraceServiceResponse()


def test_spans_reach_a_collector_before_the_process_ends() -> None:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    collector_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    made = provider(TracingConfig(f"http://127.0.0.1:{port}"), "gateway")
    assert made is not None
    tracer_of(made).start_span("Edit").end()
    finish(made, 60.0)
    (sent,) = collector.sent.get(timeout=60).resource_spans
    server.stop(None).wait()
    assert [span.name for scope in sent.scope_spans for span in scope.spans] == ["Edit"]
    names = {item.key: item.value.string_value for item in sent.resource.attributes}
    assert names["service.name"] == "steploom-gateway"


def test_a_collector_that_is_away_does_not_hold_up_the_end() -> None:
    asked, answered = threading.Event(), threading.Event()

    class Away:
        def get_tracer(self, instrumenting_module_name: str) -> Tracer:
            return NO_TRACER

        def shutdown(self) -> None:
            asked.set()
            answered.wait()

    finish(Away(), 0.01)  # else this waits for ever
    assert asked.wait(60)
    answered.set()
    finish(None)


def test_an_endpoint_without_the_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"steploom\[tracing\]"):
        provider(TracingConfig("http://127.0.0.1:4317"), "gateway")
