"""An event loop without waiting: when nothing is ready, its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class StuckError(RuntimeError):
    """Nothing is ready and no timer is set: real time would wait for ever."""


class _NeverWaits(selectors.DefaultSelector):
    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not events and timeout != 0:
            self.loop.jump()
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For code that waits on timers alone; sockets and threads are not waited for."""

    def __init__(self) -> None:
        selector = _NeverWaits()
        selector.loop = self
        self._virtual_now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._virtual_now

    def jump(self) -> None:
        """To the moment of the next timer, exactly.

        Raises:
            StuckError: there is none.
        """
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if not timers:
            raise StuckError("every task waits, and no timer is set")
        self._virtual_now = max(self._virtual_now, timers[0].when())


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Like `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
