"""Metrics and traces of real processes: one page of all services, one trace of a request."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as collector_grpc

from steploom.aio import Client
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables

STEPS = 4


class Collector(collector_grpc.TraceServiceServicer):
    """Keeps what comes: the service's name, and the span."""

    def __init__(self) -> None:
        self.spans: queue.Queue[tuple[str, Any]] = queue.Queue()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - named as in its .proto
        for sent in request.resource_spans:
            names = {item.key: item.value.string_value for item in sent.resource.attributes}
            for scope in sent.scope_spans:
                for span in scope.spans:
                    self.spans.put((names["service.name"], span))
        return collector_pb.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector, and its address."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    collector_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def test_a_request_is_in_the_page_of_metrics_and_one_trace(start_stack: Callable[[Tables], Stack]) -> None:
    with collecting() as (collector, endpoint):
        stack = start_stack({"worker": {"engine": "fake"}, "tracing": {"endpoint": endpoint}})
        async with Client(stack.gateway) as client:
            await client.edit(portrait(), "smile", steps=STEPS, seed=1, timeout=120.0)
        status = stack.status()
        assert stack.metric("steploom_worker_ticks_total") == status.ticks == STEPS + 2
        assert stack.metric("steploom_worker_busy_seconds_total") > 0
        assert stack.metric("steploom_batcher_tick_rows_count") == status.ticks
        assert stack.metric("steploom_gateway_requests_total") == 1
        spans = [await asyncio.to_thread(collector.spans.get, True, 60.0) for _ in range(5)]
    (whole,) = (span for service, span in spans if service == "steploom-gateway")
    parts = {span.name: span for service, span in spans if service == "steploom-batcher"}
    assert {name: len(span.events) for name, span in parts.items()} == {
        "queue": 0,
        "encode": 1,
        "denoise": STEPS,
        "decode": 1,
    }
    assert {(span.trace_id, span.parent_span_id) for span in parts.values()} == {(whole.trace_id, whole.span_id)}
