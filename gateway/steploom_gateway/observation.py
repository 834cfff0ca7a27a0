"""What is known of one call when it has ended: a line in the log and a count in the metrics."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from types import TracebackType

import grpc
import grpc.aio
from opentelemetry.trace import INVALID_SPAN, Span, StatusCode

from steploom_common.errors import SteploomError
from steploom_common.logs import about, concerns
from steploom_gateway.caller import current_caller
from steploom_gateway.metrics import Metrics
from steploom_protos.v1 import image_pb2

log = logging.getLogger("steploom_gateway.access")

_UNKNOWN = "-"

# What counts as an error of a server, as OpenTelemetry has it: the others are the caller's.
_OUR_FAULTS = ("DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNIMPLEMENTED", "UNKNOWN")

_EARLY_S = 0.01  # the call's way to us
_EARLY_SHARE = 0.01  # of the time that the call has: gRPC sends that in three digits, rounded up


class Observation:
    """Watches a call within a `with` block.

    Args:
        metrics: where it is counted.
        method: Edit or EditStream.
        deadline_unix_s: of the call; 0: none.
        span: of the call, in its trace; ended with it.
    """

    def __init__(self, metrics: Metrics, method: str, deadline_unix_s: float, span: Span = INVALID_SPAN) -> None:
        self.request_id = _UNKNOWN  # once it is known to be well-formed
        self.tier = _UNKNOWN  # once it is known to exist
        self.timings: image_pb2.Timings | None = None  # once the picture is drawn
        self.prepare_s = 0.0  # from the picture that was sent to the model's
        self.write_s = 0.0  # from the model's picture to the answer
        self.span = span
        self._metrics = metrics
        self._method = method
        self._late_unix_s = late_from(deadline_unix_s, time.time())
        self._start = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call came."""
        return time.perf_counter() - self._start

    def __enter__(self) -> Observation:
        self._metrics.in_flight.inc()
        span = self.span.get_span_context()
        if span.is_valid:
            concerns(trace_id=f"{span.trace_id:032x}", span_id=f"{span.span_id:016x}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = self._status(error).name
        elapsed_s = self.elapsed_s
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(self._method, self.tier, status).inc()
        if self.timings is not None:
            self._metrics.observe_timings(self.tier, self.timings)
        if error is None and self.timings is not None:
            self._metrics.tally.add_done(elapsed_s, self.prepare_s, self.timings, self.write_s)
        elif error is not None:  # else it has joined another, which counts
            self._metrics.tally.add_failed(elapsed_s, status)
        self._end_span(status)
        token, ms = current_caller().name, round(1000 * elapsed_s, 1)
        known = {"request_id": self.request_id, "tier": self.tier}
        log.info(
            "%s request_id=%s tier=%s status=%s ms=%.1f token=%s",
            self._method, self.request_id, self.tier, status, ms, token or _UNKNOWN,
            extra=about(
                method=self._method, status=status, ms=ms, token=token,
                **{name: value for name, value in known.items() if value != _UNKNOWN},
            ),
        )  # fmt: skip

    def _end_span(self, status: str) -> None:
        if self.span.is_recording():
            known = {"steploom.request_id": self.request_id, "steploom.tier": self.tier}
            self.span.set_attributes({name: value for name, value in known.items() if value != _UNKNOWN})
            self.span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[status].value[0])
            if status in _OUR_FAULTS:
                self.span.set_status(StatusCode.ERROR, status)
        self.span.end()

    def _status(self, error: BaseException | None) -> grpc.StatusCode:
        match error:
            case None:
                return grpc.StatusCode.OK
            case SteploomError():
                return error.status
            case asyncio.CancelledError() | GeneratorExit():  # gRPC ends a call at its deadline in this way too
                is_late = self._late_unix_s <= time.time()
                return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
        return grpc.StatusCode.INTERNAL


def late_from(deadline_unix_s: float, now_unix_s: float) -> float:
    """From when on the end of a call that came now is its deadline's doing: its caller's clock is somewhat ahead."""
    if not deadline_unix_s:
        return math.inf
    return deadline_unix_s - _EARLY_S - _EARLY_SHARE * max(0.0, deadline_unix_s - now_unix_s)
