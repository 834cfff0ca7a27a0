"""The batcher's settings: the `[batcher]` table of steploom.toml."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.adapter import AUTO
from steploom_common.patience import Overdue
from steploom_common.settings import ConfigError, check, section, setting


@dataclass(frozen=True)
class TierConfig:
    """A named class of service."""

    steps: int = setting(35, "denoising steps where the request names none", at_least=1, at_most=1000)
    weight: float = setting(1.0, "share of the device under contention, relative to other tiers", above=0, at_most=1000)
    deadline_s: float = setting(
        60.0, "seconds in which an answer is due, and the deadline of a call that has none", above=0, at_most=3600
    )
    max_queued: int = setting(256, "jobs that may wait for a slot; more are refused", at_least=0, at_most=1_000_000)
    max_queued_per_token: int = setting(
        0,
        "jobs of one bearer token that may wait for a slot; more are refused; 0: as many as max_queued",
        at_least=0,
        at_most=1_000_000,
    )
    adapter: str = setting(
        "",
        "low-rank adapter where the request names none; auto: the model's first that was trained for such a request, "
        "if any; empty: none",
    )

    def __post_init__(self) -> None:
        check(self)


def default_tiers() -> dict[str, TierConfig]:
    """A free tier of few steps and a pro tier of many."""
    return {
        "free": TierConfig(steps=3, weight=1.0, deadline_s=20.0, adapter=AUTO),
        "pro": TierConfig(steps=35, weight=2.0, deadline_s=60.0),
    }


@dataclass(frozen=True)
class SchedulerConfig:
    """What the pure scheduler needs."""

    policy: str = setting(
        "step",
        "what a batch is made of: rows of any jobs at every tick, or whole requests that run to their end",
        choices=("step", "request"),
    )
    default_tier: str = setting("pro", "tier of a request that names none")
    ticks_in_flight: int = setting(3, "ticks a worker holds, running or waiting", at_least=1, at_most=8)
    lead_s: float = setting(
        0.005,
        "least seconds before the predicted end of a worker's ticks at which the next is planned",
        at_least=0,
        at_most=10,
    )
    max_rows: int = setting(64, "most rows of a tick, whatever buckets a worker has", at_least=3, at_most=4096)
    batch_gain: float = setting(
        0.03,
        "a tick is full when a row costs at most this share more than in the cheapest bucket",
        at_least=0,
        at_most=1,
    )
    max_queue_delay_s: float = setting(
        0.002, "seconds an idle worker waits at most for company, where it pays", at_least=0, at_most=10
    )
    margin: float = setting(
        0.2,
        "share by which the work ahead of a request is assumed to grow, when it is held against the deadline",
        at_least=0,
        at_most=10,
    )
    fairness: float = setting(
        1.0,
        "seconds by which a tier's next job counts as due earlier for each second of device time it is owed",
        at_least=0,
        at_most=1000,
    )
    worker_grace_s: float = setting(
        30.0, "seconds for which a lost worker is expected back and jobs are still admitted", at_least=0, at_most=3600
    )
    max_crashes: int = setting(3, "workers a job may lose before it is failed", at_least=1, at_most=100)
    tiers: dict[str, TierConfig] = section(default_tiers, "classes of service, by name")

    def __post_init__(self) -> None:
        check(self)
        if self.default_tier not in self.tiers:
            known = ", ".join(self.tiers) or "none"
            raise ConfigError("default_tier", f"is {self.default_tier!r}, must be one of the tiers: {known}")


@dataclass(frozen=True)
class BatcherConfig(SchedulerConfig):
    """The whole `[batcher]` table: the scheduler's settings and the service's."""

    workers: tuple[str, ...] = setting((), "addresses of engine workers; empty: those that `steploom up` starts")
    drain_s: float = setting(30.0, "seconds for running jobs to end once asked to stop", at_least=0, at_most=3600)
    min_backoff_s: float = setting(0.1, "seconds before the first new try to reach a worker", above=0, at_most=60)
    max_backoff_s: float = setting(2.0, "seconds between later tries", above=0, at_most=600)
    tick_timeout_s: float = setting(
        120.0,
        "least seconds without an answer to a tick after which a worker counts as lost",
        above=0,
        at_most=3600,
    )
    tick_timeout_factor: float = setting(
        20.0,
        "times the predicted seconds of a tick for which its answer is waited for, where that is longer",
        at_least=1,
        at_most=10_000,
    )

    @property
    def overdue(self) -> Overdue:
        """When a worker that owes the end of a tick counts as lost."""
        return Overdue(self.tick_timeout_s, self.tick_timeout_factor)
