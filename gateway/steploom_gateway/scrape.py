"""What a scrape asks of the event loop, from the thread of the metrics server."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_SPARE_S = 5.0  # beyond the time that the answer has: for a loop that is busy


class Asked(Generic[Answer]):
    """Args:
    ask: runs on `loop`.
    timeout_s: that the answer has.
    loop: of the gateway.
    """

    def __init__(self, ask: Callable[[], Awaitable[Answer]], timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._ask = ask
        self._timeout_s = timeout_s
        self._loop = loop
        self._loop_thread = threading.get_ident()

    def __repr__(self) -> str:
        return f"Asked({self._ask!r})"

    def get(self) -> Answer | None:
        """The answer; None where there is none: on the loop itself, which must not wait for itself, or in an error."""
        if threading.get_ident() == self._loop_thread:
            return None
        asked = self._run()
        try:
            future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        except RuntimeError:  # the loop has ended: the last scrape
            asked.close()
            return None
        try:
            return future.result(self._timeout_s + _SPARE_S)
        except (TimeoutError, CancelledError):
            future.cancel()
            return None

    async def _run(self) -> Answer | None:
        try:
            return await asyncio.wait_for(self._ask(), self._timeout_s)
        except Exception as error:
            log.debug("a part of the metrics is left out: %r", error)
            return None
