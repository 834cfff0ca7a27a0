"""When a worker lets its engine prepare: at once while there is nothing to do, else for a small share of the time.

One preparation is never cut short, so the longest that a command waits for one is what that takes. Pure: the caller
knows the time.
"""

from __future__ import annotations

import math

SHARE = 0.1  # of the time while there are jobs
IDLE_S = 0.5  # without a job, after which nothing is likely to come at once


class Pace:
    """See the module. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._has_more = True
        self._was_busy = -math.inf  # at last
        self._rested = -math.inf  # when the latest preparation is as small a share as it shall be

    def wait_s(self, now: float, is_busy: bool) -> float | None:
        """How long to wait for a command before the next preparation, 0 for not at all; None: there is no next."""
        if not self._has_more:
            return None
        if is_busy:
            self._was_busy = now
        due = self._rested if is_busy else min(self._rested, self._was_busy + IDLE_S)
        return max(0.0, due - now)

    def resume(self) -> None:
        """There may be something to prepare again."""
        self._has_more = True

    def add(self, begin: float, end: float, has_more: bool) -> None:
        """One has been made."""
        self._has_more = has_more
        self._rested = end + (end - begin) * (1.0 / SHARE - 1.0)
