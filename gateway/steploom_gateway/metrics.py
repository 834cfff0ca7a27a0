"""Prometheus metrics of the gateway, and the HTTP server that shows them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.registry import Collector

from steploom_common.rpc import BindError
from steploom_gateway.config import host_and_port
from steploom_gateway.tally import Tally
from steploom_protos.v1 import image_pb2

# Seconds: from a codec's milliseconds to a long queue.
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """All of the gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "steploom_gateway_requests",
            "Edits that have ended, by method, tier and gRPC status",
            ["method", "tier", "status"],
            registry=self.registry,
        )
        self.refused = Counter(
            "steploom_gateway_refused",
            "Calls that were refused at the gate, before any service saw them, by cause "
            "(unauthenticated, permission_denied, rate, concurrency)",
            ["cause"],
            registry=self.registry,
        )
        self.repeats = Counter(
            "steploom_gateway_repeats",
            "Edits that did not run, because the same request ran already (joined) or had its picture (stored)",
            ["how"],
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "steploom_gateway_stage_seconds",
            "Time of finished edits in each stage (queue, encode, denoise, decode, total), by tier",
            ["tier", "stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.codec_seconds = Histogram(
            "steploom_gateway_codec_seconds",
            "Thread time of one picture in the image codec, by operation (decode, encode)",
            ["operation"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("steploom_gateway_in_flight", "Edits that are open now", registry=self.registry)
        self._arena_blocks = Gauge(
            "steploom_gateway_arena_blocks_used", "Shared-memory blocks lent to jobs now", registry=self.registry
        )
        self._batcher_up = Gauge(
            "steploom_gateway_batcher_up", "1 while the batcher can take jobs, else 0", registry=self.registry
        )

    def count_refused(self, cause: str) -> None:
        """Counts a call that did not come in."""
        self.refused.labels(cause).inc()

    def count_repeat(self, how: str) -> None:
        """Counts an edit that did not run for itself."""
        self.repeats.labels(how).inc()

    def observe_codec(self, operation: str, seconds: float) -> None:
        """Counts one picture's time in the codec."""
        self.codec_seconds.labels(operation).observe(seconds)

    def observe_timings(self, tier: str, timings: image_pb2.Timings) -> None:
        """Counts a finished edit's `steploom.v1.Timings`."""
        for stage in ("queue", "encode", "denoise", "decode", "total"):
            self.stage_seconds.labels(tier, stage).observe(getattr(timings, f"{stage}_s"))

    def watch_arena(self, num_used: Callable[[], float]) -> None:
        """Where the number of lent blocks is read at each scrape."""
        self._arena_blocks.set_function(num_used)

    def show_also(self, collector: Collector) -> None:
        """What else is shown at each scrape."""
        self.registry.register(collector)

    def set_batcher_up(self, is_up: bool) -> None:
        """Whether the batcher can take jobs."""
        self._batcher_up.set(is_up)


class MetricsServer:
    """Shows a registry over HTTP, on a thread of its own.

    Raises:
        BindError: the address cannot be had.
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, port = host_and_port(address)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise BindError(f"cannot listen on {address} for metrics: {error.strerror}") from error

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Ends the thread and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
