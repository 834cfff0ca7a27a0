"""How long to wait before a crashed service is started again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Doubles from `min_s` to `max_s`, then takes a random share of half to all of it.

    The jitter keeps services that fell together from coming back together.
    """

    min_s: float  # seconds before the first restart, before jitter
    max_s: float  # seconds between restarts at most
    stable_s: float  # seconds of being up after which earlier crashes are forgotten

    def delay(self, crashes: int, random: Callable[[], float]) -> float:
        """Seconds to wait after the `crashes`-th crash in a row, from 1.

        Args:
            random: a number from 0 to 1, as `random.random`.
        """
        whole = min(self.max_s, self.min_s * 2.0 ** min(crashes - 1, 60))
        return whole * (0.5 + 0.5 * random())
