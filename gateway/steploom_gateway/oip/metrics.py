"""Metrics by the names that dashboards and autoscalers made for Triton look for: `nv_inference_*`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from steploom_gateway.catalogue import Catalogue
from steploom_gateway.oip.names import STAGES, VERSION
from steploom_gateway.oip.statistics import statistics
from steploom_gateway.tally import Tally
from steploom_protos.inference import grpc_service_pb2 as pb

# Why requests have failed, in Triton's four words, by gRPC status; every other status is OTHER.
_REASONS = {
    "RESOURCE_EXHAUSTED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
    "ABORTED": "BACKEND",
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

_NUMBERS: dict[str, tuple[str, Callable[[pb.ModelStatistics], float]]] = {
    "nv_inference_request_success": ("Requests that got their picture", lambda of: of.inference_stats.success.count),
    "nv_inference_count": (
        "Inferences: pictures of the pipeline; of a step, rows in the ticks of all workers",
        lambda of: of.inference_count,
    ),
    "nv_inference_exec_count": (
        "Executions: pictures of the pipeline; of a step, ticks of all workers",
        lambda of: of.execution_count,
    ),
    "nv_inference_request_duration_us": (
        "Microseconds of requests that got their picture, from arrival to answer",
        lambda of: of.inference_stats.success.ns / 1000,
    ),
    "nv_inference_queue_duration_us": (
        "Of nv_inference_request_duration_us: waiting for the first tick",
        lambda of: of.inference_stats.queue.ns / 1000,
    ),
    "nv_inference_compute_input_duration_us": (
        "Of nv_inference_request_duration_us: from the picture that was sent to the model's",
        lambda of: of.inference_stats.compute_input.ns / 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Of nv_inference_request_duration_us: in the model's stages",
        lambda of: of.inference_stats.compute_infer.ns / 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Of nv_inference_request_duration_us: from the model's picture to the answer",
        lambda of: of.inference_stats.compute_output.ns / 1000,
    ),
}


class TritonMetrics(Collector):
    """Untyped, since the text format has counters end in `_total` and Triton's do not. They count from our start.

    Args:
        catalogue: the last that is known of the batcher; None: nothing is shown yet.
        tally: of what has been served.
    """

    def __init__(self, catalogue: Callable[[], Catalogue | None], tally: Tally) -> None:
        self._catalogue = catalogue
        self._tally = tally

    def __repr__(self) -> str:
        return f"TritonMetrics({self._tally!r})"

    def describe(self) -> list[Metric]:
        """No names: they are nobody else's."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Of the pipeline and its steps; failures are the pipeline's alone."""
        catalogue = self._catalogue()
        if catalogue is None:
            return
        models = [statistics(catalogue, self._tally, stage) for stage in ("", *STAGES)]
        for name, (meaning, number) in _NUMBERS.items():
            family = UnknownMetricFamily(name, meaning, labels=["model", "version"])
            for model in models:
                family.add_metric([model.name, VERSION], number(model))
            yield family
        failures = UnknownMetricFamily(
            "nv_inference_request_failure",
            f"Requests that got an error, by reason ({', '.join(REASONS)})",
            labels=["model", "version", "reason"],
        )
        for reason in REASONS:
            failures.add_metric([catalogue.model.name, VERSION, reason], self._failures(reason))
        yield failures

    def _failures(self, reason: str) -> int:
        # a copy: another thread counts meanwhile
        return sum(
            count for status, count in dict(self._tally.statuses).items() if _REASONS.get(status, "OTHER") == reason
        )
