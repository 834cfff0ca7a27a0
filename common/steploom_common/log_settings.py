"""The `[log]` table: how all services log."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.settings import check, setting


@dataclass(frozen=True)
class LogConfig:
    """What the services write to standard error."""

    format: str = setting(
        "text", "lines for people, or a JSON object a line for programs that collect them", choices=("text", "json")
    )
    level: str = setting(
        "info",
        "the least that is told; debug: also where each job is, in the batcher and its workers",
        choices=("debug", "info", "warning", "error"),
    )

    def __post_init__(self) -> None:
        check(self)
