"""The batcher's metrics beside the gateway's own, asked for at each scrape: a host has one place to scrape."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

_SPARE_S = 5.0  # beyond the time that the batcher has: for a loop that is busy


class RelayedMetrics(Collector):
    """Nothing while the batcher does not answer. Its counters then go on, or begin at 0 with another process.

    Args:
        read: asks for the text; runs on `loop`. Its errors are as an empty text.
        timeout_s: that `read` keeps to.
        loop: of the gateway.
    """

    def __init__(self, read: Callable[[], Awaitable[str]], timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._read = read
        self._timeout_s = timeout_s
        self._loop = loop
        self._loop_thread = threading.get_ident()

    def __repr__(self) -> str:
        return f"RelayedMetrics({self._read!r})"

    def describe(self) -> list[Metric]:
        """No names: to be registered asks for nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families of the batcher. Waits, so nothing where it is called on the loop itself."""
        if threading.get_ident() == self._loop_thread:
            return
        asked = self._ask()
        try:
            future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError:  # the loop has ended: the last scrape
            asked.close()
            return
        try:
            text = future.result(self._timeout_s + _SPARE_S)
        except (TimeoutError, CancelledError):
            future.cancel()
            return
        yield from text_string_to_metric_families(text)

    async def _ask(self) -> str:
        try:
            return await self._read()
        except Exception as error:
            log.debug("the batcher's metrics are left out: %r", error)
            return ""
