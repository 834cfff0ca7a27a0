"""Prometheus metrics of the batcher and its workers, as text: a gateway shows them beside its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from steploom_batcher.messages import TickReport
from steploom_batcher.types import Cause, SchedulerStats, Stage, Status, Tick
from steploom_batcher.worker_link import WorkerLink

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Seconds: from a small model's tick on a GPU to a large one's on a CPU.
_TICK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLACK_SECONDS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0)

_REFUSALS = tuple(cause.value for cause in Cause if cause is not Cause.POISON)  # that one is a failure


class BatcherMetrics:
    """What is counted as it happens; `text` adds what scheduler and links count anyway."""

    def __init__(self) -> None:
        self._started_unix_s = time.time()
        self._registry = CollectorRegistry()
        self._tick_rows = Histogram(
            "steploom_batcher_tick_rows",
            "Rows of jobs in a tick, padding not included (encode, decode: jobs), by stage",
            ["stage"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self._tick_seconds = Histogram(
            "steploom_batcher_tick_seconds",
            "Device time of a tick, by stage and bucket (the rows that were computed, padding included)",
            ["stage", "bucket"],
            buckets=_TICK_SECONDS,
            registry=self._registry,
        )
        self._tick_ratio = Histogram(
            "steploom_batcher_tick_measured_ratio",
            "Device time of a tick over what was predicted when it was planned, by stage",
            ["stage"],
            buckets=_RATIOS,
            registry=self._registry,
        )
        self._slack = Histogram(
            "steploom_batcher_admission_slack_seconds",
            "Time between the predicted end of a job and its deadline, when it was admitted, by tier",
            ["tier"],
            buckets=_SLACK_SECONDS,
            registry=self._registry,
        )
        self._job_ratio = Histogram(
            "steploom_batcher_job_measured_ratio",
            "Time from admission to the picture over what was predicted at admission, by tier",
            ["tier"],
            buckets=_RATIOS,
            registry=self._registry,
        )
        self._not_run = Counter(
            "steploom_worker_ticks_not_run",
            "Ticks that moved no job, by worker and how they ended (failed: it raised, skipped: one before it did)",
            ["worker", "status"],
            registry=self._registry,
        )

    def tick_done(self, worker: str, tick: Tick, report: TickReport) -> None:
        """Counts a tick that is back."""
        outcome, stage = report.outcome, tick.stage.name.lower()
        if outcome.status is not Status.OK:
            self._not_run.labels(worker, outcome.status.name.lower()).inc()
            return
        self._tick_rows.labels(stage).observe(tick.rows)
        self._tick_seconds.labels(stage, tick.bucket).observe(outcome.seconds)
        if tick.predicted_s > 0:
            self._tick_ratio.labels(stage).observe(outcome.seconds / tick.predicted_s)

    def admitted(self, tier: str, slack_s: float) -> None:
        """Counts a job that was taken, and how much later than predicted it may end."""
        self._slack.labels(tier).observe(slack_s)

    def finished(self, tier: str, seconds: float, predicted_s: float) -> None:
        """Counts a job that has its picture, so many seconds after its admission."""
        if predicted_s > 0:
            self._job_ratio.labels(tier).observe(seconds / predicted_s)

    def text(self, families: Iterable[Metric]) -> str:
        """Everything in Prometheus' text format. May run on another thread than the rest.

        Args:
            families: of `current`.
        """
        start = GaugeMetricFamily(
            "steploom_batcher_start_time_seconds",
            "When the batcher began, in seconds since the epoch: its counters count from there",
            self._started_unix_s,
        )
        return generate_latest(_Together([start, *families], self._registry)).decode()


class _Together(Collector):
    """Families that are at hand, and those of a registry."""

    def __init__(self, families: Sequence[Metric], registry: CollectorRegistry) -> None:
        self._families = families
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        yield from self._families
        yield from self._registry.collect()


def current(stats: SchedulerStats, links: Sequence[WorkerLink], is_draining: bool) -> list[Metric]:
    """What scheduler and links have counted. Reads live objects: call it on the loop.

    Every series is there from the start, at 0, so that a rate sees the first of its kind.
    """
    return [*_jobs(stats, is_draining), *_workers(stats, links), *_work(links)]


def _jobs(stats: SchedulerStats, is_draining: bool) -> list[Metric]:
    ended = {
        "finished": stats.finished, "failed": stats.failed, "cancelled": stats.cancelled, "expired": stats.expired
    }  # fmt: skip
    refused = {cause: stats.refused.get(cause, 0) for cause in _REFUSALS}
    tiers = stats.tiers.items()
    return [
        CounterMetricFamily(
            "steploom_batcher_submitted", "Jobs that came: refused, ended, queued or running", stats.submitted
        ),
        _counters("steploom_batcher_refused", "Jobs that were not admitted, by cause", "cause", refused),
        _counters(
            "steploom_batcher_ended",
            "Admitted jobs that have ended, by outcome (finished, failed, cancelled; expired: past their deadline)",
            "outcome",
            ended,
        ),
        _gauges(
            "steploom_batcher_queued", "Jobs that wait for a slot now, by tier", "tier",
            {name: tier.queued for name, tier in tiers},
        ),
        _gauges(
            "steploom_batcher_max_queued", "Jobs that may wait for a slot, by tier", "tier",
            {name: tier.max_queued for name, tier in tiers},
        ),
        _gauges(
            "steploom_batcher_running", "Jobs that have a slot now, by tier", "tier",
            {name: tier.running for name, tier in tiers},
        ),
        GaugeMetricFamily("steploom_batcher_draining", "1 when no more jobs are admitted, else 0", float(is_draining)),
        CounterMetricFamily(
            "steploom_batcher_cpu_seconds", "CPU time of the batcher's process, user and system", time.process_time()
        ),
    ]  # fmt: skip


def _workers(stats: SchedulerStats, links: Sequence[WorkerLink]) -> list[Metric]:
    now = {link.address: stats.workers.get(link.name) for link in links}
    memory = GaugeMetricFamily(
        "steploom_worker_memory_bytes",
        "Memory of the worker's device, as it last said (total, free, slots: state of jobs, weights)",
        labels=["worker", "use"],
    )
    for link in links:
        if link.ready is not None and link.ready.memory.total:
            for use in ("total", "free", "slots", "weights"):
                memory.add_metric([link.address, use], getattr(link.ready.memory, use))
    return [
        _gauges(
            "steploom_worker_up", "1 while the worker takes ticks, else 0", "worker",
            {link.address: link.is_up for link in links},
        ),
        _gauges(
            "steploom_worker_slots", "Jobs that the worker holds at once; 0 while it is down", "worker",
            {name: worker.num_slots if worker else 0 for name, worker in now.items()},
        ),
        _gauges(
            "steploom_worker_slots_used", "Jobs that the worker holds now", "worker",
            {name: worker.slots_used if worker else 0 for name, worker in now.items()},
        ),
        _gauges(
            "steploom_worker_ticks_in_flight", "Ticks that are sent and not answered", "worker",
            {name: worker.ticks_in_flight if worker else 0 for name, worker in now.items()},
        ),
        memory,
    ]  # fmt: skip


def _work(links: Sequence[WorkerLink]) -> list[Metric]:
    """What devices have done: a tick that failed or was skipped is in none of it."""
    labels = ["worker", "stage"]
    ticks = CounterMetricFamily("steploom_worker_ticks", "Ticks that ran, by stage", labels=labels)
    rows = CounterMetricFamily(
        "steploom_worker_rows", "Rows of jobs in ticks that ran (encode, decode: jobs), by stage", labels=labels
    )
    padding = CounterMetricFamily(
        "steploom_worker_padding_rows", "Rows computed for nobody, to fill a bucket, by stage", labels=labels
    )
    busy = CounterMetricFamily(
        "steploom_worker_busy_seconds", "Device time of ticks; stages may overlap, by stage", labels=labels
    )
    idle = CounterMetricFamily(
        "steploom_worker_idle_seconds",
        "Time for which the device had nothing to do before ticks, with work waiting or without",
        labels=["worker"],
    )
    for link in links:
        idle.add_metric([link.address], link.use.idle_s)
        for stage in Stage:
            use, values = link.use.stages[stage], [link.address, stage.name.lower()]
            ticks.add_metric(values, use.ticks)
            rows.add_metric(values, use.rows)
            padding.add_metric(values, use.padding)
            busy.add_metric(values, use.busy_s)
    return [ticks, rows, padding, busy, idle]


def _counters(name: str, meaning: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauges(name: str, meaning: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
