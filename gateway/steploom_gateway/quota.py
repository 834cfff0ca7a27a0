"""How much one caller may ask for: requests by time, and requests at once. Pure: the time comes in as `now`."""

from __future__ import annotations

from dataclasses import dataclass

from steploom_common.errors import Exhausted

_BUSY_RETRY_S = 0.5
_ROUNDING = 1e-9  # of a request: who waits as long as he was told is let in


@dataclass(frozen=True)
class Limits:
    """Bounds of a quota; 0: none."""

    rate: float = 0.0  # requests a second in the long run
    burst: int = 0  # requests at once after a pause; 0: those of a second, one at least
    concurrency: int = 0  # requests that are open at once

    @property
    def capacity(self) -> float:
        """Requests that may come at once after a pause."""
        return float(self.burst or max(1.0, self.rate))


class Quota:
    """What a caller has left: a bucket that `rate` fills up to its capacity, and places for open requests.

    Args:
        subject: who is meant, for messages.
        limits: bounds.
        now: seconds, monotonic.
    """

    def __init__(self, subject: str, limits: Limits, now: float) -> None:
        self.subject = subject
        self.num_open = 0
        self._limits = limits
        self._level = limits.capacity
        self._level_at = now

    def __repr__(self) -> str:
        return f"Quota({self.subject}, open={self.num_open}, {self._limits})"

    def change(self, limits: Limits, now: float) -> None:
        """New bounds; what is used stays used."""
        self._fill(now)
        self._limits = limits
        self._level = min(self._level, limits.capacity)

    def enter(self, now: float) -> None:
        """Opens a request; `leave` closes it.

        Raises:
            Exhausted: too many are open, or they come too fast. Nothing is taken then.
        """
        bound = self._limits.concurrency
        if bound and self.num_open >= bound:
            message = f"{self.subject} has {self.num_open} requests open and may have {bound}"
            raise Exhausted(message, f"{self.subject}/concurrency", _BUSY_RETRY_S)
        self.take(now)
        self.num_open += 1

    def leave(self) -> None:
        """A request has ended, in whatever way."""
        self.num_open -= 1

    def take(self, now: float) -> None:
        """Counts a request by time alone.

        Raises:
            Exhausted: they come too fast.
        """
        rate = self._limits.rate
        if not rate:
            return
        self._fill(now)
        if self._level < 1.0 - _ROUNDING:
            message = f"{self.subject} may make {rate:g} requests a second"
            raise Exhausted(message, f"{self.subject}/rate", (1.0 - self._level) / rate)
        self._level -= 1.0

    def _fill(self, now: float) -> None:
        gained = max(0.0, now - self._level_at) * self._limits.rate
        self._level = min(self._limits.capacity, self._level + gained)
        self._level_at = now
