"""How long somebody has waited, as far as he was awake: a machine that freezes is no reason to give anybody up."""

from __future__ import annotations

from dataclasses import dataclass

_ALLOWED = 2.0  # of a look's turn: what a look comes later than that is not counted


class Patience:
    """Adds up the time between looks. Who is frozen himself has not listened meanwhile, and others may be as he is.

    Args:
        look_s: seconds between looks.
    """

    def __init__(self, look_s: float) -> None:
        self.look_s = look_s
        self.waited_s = 0.0  # since something was heard, as far as it counts
        self._looked_at: float | None = None

    def __repr__(self) -> str:
        return f"Patience({self.waited_s:g} s)"

    def heard(self) -> None:
        """A sign of life: the wait begins anew."""
        self.waited_s, self._looked_at = 0.0, None

    def look(self, now: float) -> float:
        """Nothing was heard until `now`; gives the seconds that count, 0 at the first look."""
        if self._looked_at is not None:
            self.waited_s += min(now - self._looked_at, _ALLOWED * self.look_s)
        self._looked_at = now
        return self.waited_s


@dataclass(frozen=True)
class Overdue:
    """When what was predicted to take some time counts as stuck."""

    least_s: float = 120.0  # at the earliest
    times: float = 20.0  # the predicted time, where that is longer

    def limit_s(self, predicted_s: float) -> float:
        """Seconds."""
        return max(self.least_s, self.times * predicted_s)
