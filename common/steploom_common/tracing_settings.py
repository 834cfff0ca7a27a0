"""The `[tracing]` table: where gateway and batcher send traces."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.settings import ConfigError, check, setting


@dataclass(frozen=True)
class TracingConfig:
    """Where traces go, and of which requests."""

    endpoint: str = setting(
        "",
        "http:// or https:// address of an OpenTelemetry collector's gRPC port, as http://127.0.0.1:4317; empty: none",
    )
    share: float = setting(
        1.0, "share of requests that are traced where their callers have not decided", at_least=0, at_most=1
    )

    def __post_init__(self) -> None:
        check(self)
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError("endpoint", f"is {self.endpoint!r}, must begin with http:// or https://")
