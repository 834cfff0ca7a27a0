"""The model host's settings."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.settings import check, setting


@dataclass(frozen=True)
class HostConfig:
    """How a model host runs."""

    repository: str = setting("", "Folder of the models, one folder each. What is in it is run as code.")
    load: tuple[str, ...] = setting((), "Models to load at the start; empty: all that there are.")
    threads: int = setting(
        0, "CPU threads that one call of a torch program uses; 0: as many as torch chooses.", at_least=0, at_most=1024
    )
    drain_s: float = setting(30.0, "Seconds for batches that have come to end after SIGTERM.", at_least=0, at_most=3600)

    def __post_init__(self) -> None:
        check(self)
