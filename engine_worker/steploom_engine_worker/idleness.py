"""For how long a device has nothing to do: from the end of the last tick under way to the start of the next one.

Of whatever stage they are. Recordings of graphs between ticks count as nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Idleness:
    """See the module. On any thread.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way = 0
        self._since: float | None = None  # nothing is under way; None: something is, or nothing ever was

    def begin(self) -> float:
        """A tick is started; gives the seconds before it in which none was under way, 0 before the first."""
        with self._lock:
            idle_s = 0.0 if self._since is None else self._clock() - self._since
            self._under_way += 1
            self._since = None
            return idle_s

    def end(self) -> None:
        """A tick is done, or has not run after all."""
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                self._since = self._clock()
