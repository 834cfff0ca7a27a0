"""The whole steploom.toml: each service's table, and the supervisor's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steploom.backoff import Backoff
from steploom_batcher.config import BatcherConfig
from steploom_batcher.plain.config import PlainConfig
from steploom_common.log_settings import LogConfig
from steploom_common.settings import check, from_table, read_toml, section, setting
from steploom_common.tls_files import InternalConfig
from steploom_common.tracing_settings import TracingConfig
from steploom_engine_worker.config import WorkerConfig
from steploom_gateway.config import GatewayConfig


@dataclass(frozen=True)
class UpConfig:
    """The `[up]` table: how `steploom up` runs the services on this machine."""

    workers: int = setting(
        1, "engine workers to start; one a device; 0: none, to serve plain models alone", at_least=0, at_most=64
    )
    runtime_dir: str = setting(
        "", "folder of the internal sockets; empty: $XDG_RUNTIME_DIR/steploom, else /tmp/steploom-UID"
    )
    drain_s: float = setting(
        30.0,
        "seconds for running requests to end once asked to stop; then services are killed",
        at_least=0,
        at_most=3600,
    )
    ready_s: float = setting(
        600.0, "seconds until all services must be ready, warm-up included", above=0, at_most=86_400
    )
    hang_s: float = setting(
        60.0,
        "seconds without an answer to health checks after which a service that runs is killed and started again; "
        "0: never",
        at_least=0,
        at_most=86_400,
    )
    beside: bool = setting(
        True,
        "a worker that is replaced serves until the new one is ready, which takes the memory of both; where that does "
        "not suffice, or false: it ends first",
    )
    start_tries: int = setting(
        5, "crashes of a service that has never been ready after which all is given up", at_least=1, at_most=1000
    )
    min_backoff_s: float = setting(0.2, "seconds before the first restart of a crashed service", above=0, at_most=60)
    max_backoff_s: float = setting(10.0, "seconds between restarts at most", above=0, at_most=3600)
    stable_s: float = setting(
        30.0, "seconds of being ready after which earlier crashes are forgotten", at_least=0, at_most=86_400
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def backoff(self) -> Backoff:
        """The pauses between restarts."""
        return Backoff(self.min_backoff_s, max(self.min_backoff_s, self.max_backoff_s), self.stable_s)


@dataclass(frozen=True)
class SteploomConfig:
    """All tables of steploom.toml."""

    gateway: GatewayConfig = section(GatewayConfig, "the front door")
    batcher: BatcherConfig = section(BatcherConfig, "the scheduler and its service")
    worker: WorkerConfig = section(WorkerConfig, "the engine worker")
    plain: PlainConfig = section(PlainConfig, "plain models, as of a model repository of Triton's")
    internal: InternalConfig = section(InternalConfig, "between the services, where they are not on one host")
    tracing: TracingConfig = section(TracingConfig, "traces by OpenTelemetry, of gateway and batcher")
    log: LogConfig = section(LogConfig, "how all services log")
    up: UpConfig = section(UpConfig, "the supervisor behind `steploom up`")


def read_config(path: Path | None) -> SteploomConfig:
    """The configuration in a file, or the defaults without one.

    Raises:
        ConfigError: names file or key, value and bound.
    """
    return from_table(SteploomConfig, read_toml(path), "")
