"""The batcher's metrics beside the gateway's own, asked for at each scrape: a host has one place to scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from steploom_gateway.scrape import Asked


class RelayedMetrics(Collector):
    """Nothing while the batcher does not answer. Its counters then go on, or begin at 0 with another process.

    Args:
        text: of the batcher's metrics.
    """

    def __init__(self, text: Asked[str]) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"RelayedMetrics({self._text!r})"

    def describe(self) -> list[Metric]:
        """No names: to be registered asks for nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families of the batcher. Waits, so nothing where it is called on the loop itself."""
        yield from text_string_to_metric_families(self._text.get() or "")
