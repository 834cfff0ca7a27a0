"""The settings of plain models: the `[plain]` table of steploom.toml."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.settings import check, setting


@dataclass(frozen=True)
class PlainSchedulerConfig:
    """What the pure scheduler of plain models needs."""

    max_queued: int = setting(
        4096,
        "requests of one model that may wait, whatever its own configuration says; more are refused",
        at_least=1,
        at_most=1_000_000,
    )
    max_priority_wait_s: float = setting(
        10.0,
        "seconds in the queue after which a request goes before those of higher priority",
        at_least=0,
        at_most=86_400,
    )
    host_grace_s: float = setting(
        30.0,
        "seconds for which a lost host is expected back: requests wait for it, and are still taken",
        at_least=0,
        at_most=3600,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class PlainConfig(PlainSchedulerConfig):
    """The whole `[plain]` table: the scheduler's settings, and where the models are."""

    models: str = setting(
        "", "folder of plain models, a folder for each; `steploom up` starts a host for it; empty: none"
    )
    threads: int = setting(
        0,
        "CPU threads that one call of a torch program uses in the host of `models`; 0: as many as torch chooses",
        at_least=0,
        at_most=1024,
    )
    hosts: tuple[str, ...] = setting((), "addresses of model hosts that run elsewhere; all have the same models")
    queue: str = setting(
        "gateway",
        "where requests wait: in the gateway, which costs least, or in the batcher, where several gateways share one",
        choices=("gateway", "batcher"),
    )
    shared_memory_bytes: int = setting(
        256 * 2**20,
        "bytes of shared memory for tensors between a gateway and hosts of its machine; 0: all travel in messages",
        at_least=0,
        at_most=2**40,
    )
    shared_memory_from_bytes: int = setting(
        128 * 2**10, "bytes of a request's tensors from which on they go there", at_least=1, at_most=2**30
    )
    batch_timeout_s: float = setting(
        120.0, "seconds without an answer to any batch after which a host counts as lost", above=0, at_most=86_400
    )
    drain_s: float = setting(
        30.0,
        "seconds for what waits for a model that is unloaded to run first; and for batches of the host of `models` to "
        "end once asked to stop",
        at_least=0,
        at_most=3600,
    )
