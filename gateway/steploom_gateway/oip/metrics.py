"""Metrics by the names that dashboards and autoscalers made for Triton look for: `nv_inference_*`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from steploom_gateway.catalogue import Catalogue
from steploom_gateway.oip.names import STAGES, VERSION
from steploom_gateway.oip.statistics import statistics
from steploom_gateway.plain.statistics import statistics as plain_statistics
from steploom_gateway.scrape import Asked
from steploom_gateway.tally import Tally
from steploom_protos.batcher.v1 import plain_pb2 as batcher_pb
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
# The same of plain models, by the cause that their queue counts.
_PLAIN_REASONS = {
    "queue_full": "REJECTED",
    "timeout": "REJECTED",
    "deadline": "REJECTED",
    "no_model": "REJECTED",
    "no_host": "REJECTED",
    "draining": "REJECTED",
    "cancelled": "CANCELED",
    "failed": "BACKEND",
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

_NUMBERS: dict[str, tuple[str, Callable[[pb.ModelStatistics], float]]] = {
    "nv_inference_request_success": (
        "Requests that got their picture; plain: their outputs",
        lambda of: of.inference_stats.success.count,
    ),
    "nv_inference_count": (
        "Inferences: pictures of the pipeline; of a step, rows in the ticks of all workers; plain: rows",
        lambda of: of.inference_count,
    ),
    "nv_inference_exec_count": (
        "Executions: pictures of the pipeline; of a step, ticks of all workers; plain: batches",
        lambda of: of.execution_count,
    ),
    "nv_inference_request_duration_us": (
        "Microseconds of requests of nv_inference_request_success, from arrival to answer",
        lambda of: of.inference_stats.success.ns / 1000,
    ),
    "nv_inference_queue_duration_us": (
        "Of nv_inference_request_duration_us: waiting for the first tick; plain: for an instance",
        lambda of: of.inference_stats.queue.ns / 1000,
    ),
    "nv_inference_compute_input_duration_us": (
        "Of nv_inference_request_duration_us: from the picture that was sent to the model's; plain: making the batch",
        lambda of: of.inference_stats.compute_input.ns / 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Of nv_inference_request_duration_us: in the model's stages; plain: in the model",
        lambda of: of.inference_stats.compute_infer.ns / 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Of nv_inference_request_duration_us: from the model's picture to the answer; plain: taking the batch apart",
        lambda of: of.inference_stats.compute_output.ns / 1000,
    ),
}


Plain = Sequence[batcher_pb.PlainModelStatistics]


class TritonMetrics(Collector):
    """Untyped, since the text format has counters end in `_total` and Triton's do not. They count from our start.

    Args:
        catalogue: the last that is known of the batcher; None: nothing of the pipeline is shown yet.
        tally: of what has been served.
        plain: what the queue of plain models has counted; nothing of them is shown while it is not known.
    """

    def __init__(self, catalogue: Callable[[], Catalogue | None], tally: Tally, plain: Asked[Plain]) -> None:
        self._catalogue = catalogue
        self._tally = tally
        self._plain = plain

    def __repr__(self) -> str:
        return f"TritonMetrics({self._tally!r})"

    def describe(self) -> list[Metric]:
        """No names: they are nobody else's."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Of the pipeline and its steps, whose failures are the pipeline's alone, and of plain models."""
        catalogue = self._catalogue()
        plain = self._plain.get() or ()
        if catalogue is None and not plain:
            return
        models = [statistics(catalogue, self._tally, stage) for stage in ("", *STAGES)] if catalogue else []
        shown = [(VERSION, of) for of in models] + [(str(of.version), plain_statistics(of)) for of in plain]
        for name, (meaning, number) in _NUMBERS.items():
            family = UnknownMetricFamily(name, meaning, labels=["model", "version"])
            for version, of_model in shown:
                family.add_metric([of_model.name, version], number(of_model))
            yield family
        failures = UnknownMetricFamily(
            "nv_inference_request_failure",
            f"Requests that got an error, by reason ({', '.join(REASONS)})",
            labels=["model", "version", "reason"],
        )
        # a copy: another thread counts meanwhile
        counts = (
            [(catalogue.model.name, VERSION, _by_reason(dict(self._tally.statuses), _REASONS))] if catalogue else []
        )
        counts += [(of.name, str(of.version), _by_reason(of.ended, _PLAIN_REASONS)) for of in plain]
        for model, version, by_reason in counts:
            for reason in REASONS:
                failures.add_metric([model, version, reason], by_reason[reason])
        yield failures
        if plain:
            pending = GaugeMetricFamily(
                "nv_inference_pending_request_count",
                "Requests of a plain model that wait for an instance now",
                labels=["model", "version"],
            )
            for of in plain:
                pending.add_metric([of.name, str(of.version)], of.queued)
            yield pending


def _by_reason(counts: Mapping[str, int], reasons: Mapping[str, str]) -> dict[str, int]:
    found = dict.fromkeys(REASONS, 0)
    for cause, count in counts.items():
        found[reasons.get(cause, "OTHER")] += count
    return found
