"""How long before the predicted end of all that a worker holds its next tick is planned.

Late is good for whoever arrives meanwhile; too late leaves the device idle, for as long as an answer and a tick are on
their way, or a prediction is off: stages that overlap on a device take less together than one after the other. So the
lead is learned. A tick that was held back and found the device idle lengthens it by twice as long as that was; one that
did not shortens it a little. Moments that hardly count beside the tick are no reason: a device that computes on the
host's own cores always has them.
"""

from __future__ import annotations

_MOST_S = 0.1
_GROWTH = 2.0  # of the idle time that there was
_DECAY = 0.005  # of the lead, for each tick that came in time
_TOLERATED = 0.02  # of the time that the tick took
_TOLERATED_S = 0.0005


class Lead:
    """See the module.

    Args:
        least_s: what it begins with, and never falls below.

    Attributes:
        seconds: the lead.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self.seconds = least_s

    def __repr__(self) -> str:
        return f"Lead({self.seconds:.4f} s)"

    def learn(self, idle_s: float, seconds: float) -> None:
        """Of a tick that was held back: how long the device had nothing to do before it, and how long it took."""
        if idle_s > max(_TOLERATED_S, _TOLERATED * seconds):
            self.seconds = max(self.seconds, min(_MOST_S, self.seconds + _GROWTH * idle_s))
        else:
            self.seconds = max(self._least_s, self.seconds * (1.0 - _DECAY))
