"""What is known of one call when it has ended: a line in the log and a count in the metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType

import grpc
import grpc.aio

from steploom_common.errors import SteploomError
from steploom_gateway.metrics import Metrics
from steploom_protos.v1 import image_pb2

log = logging.getLogger("steploom_gateway.access")

_UNKNOWN = "-"


class Observation:
    """Watches a call within a `with` block."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self.request_id = _UNKNOWN  # once it is known to be well-formed
        self.tier = _UNKNOWN  # once it is known to exist
        self.timings: image_pb2.Timings | None = None  # once the picture is drawn
        self._metrics = metrics
        self._method = method
        self._start = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call came."""
        return time.perf_counter() - self._start

    def __enter__(self) -> Observation:
        self._metrics.in_flight.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = _status(error)
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(self._method, self.tier, status).inc()
        if self.timings is not None:
            self._metrics.observe_timings(self.tier, self.timings)
        log.info(
            "%s request_id=%s tier=%s status=%s ms=%.1f",
            self._method, self.request_id, self.tier, status, 1000 * self.elapsed_s,
        )  # fmt: skip


def _status(error: BaseException | None) -> str:
    match error:
        case None:
            return "OK"
        case SteploomError():
            return error.status.name
        case asyncio.CancelledError() | GeneratorExit():
            return grpc.StatusCode.CANCELLED.name
    return grpc.StatusCode.INTERNAL.name
