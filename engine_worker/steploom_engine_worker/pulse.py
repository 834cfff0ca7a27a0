"""What a worker's threads are at, and for how long: what is slow is told from what is stuck.

A device that hangs lets nobody go who waits for it, so a thread of its own looks on. It sees no more than what the
others have said that they are at, and for how long that may take; whoever waits for a command is at nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from steploom_common.patience import Patience

_LOOK_S = 1.0


class Pulse:
    """What one thread is at.

    Args:
        thread: its name, for messages.
    """

    def __init__(self, thread: str) -> None:
        self.thread = thread
        self._beats = 0
        self._doing: tuple[int, str, float] | None = None  # which, what, and its limit
        self._patience = Patience(_LOOK_S)
        self._seen = 0  # by the one who looks on

    def __repr__(self) -> str:
        return f"Pulse({self.thread}, {self._doing})"

    @contextmanager
    def at(self, what: str, limit_s: float) -> Iterator[None]:
        """The thread is at something within the block; what was around it begins anew with its end.

        Args:
            what: in words.
            limit_s: seconds after which it is stuck.
        """
        around = self._doing
        self._beat(what, limit_s)
        try:
            yield
        finally:
            if around is None:
                self._doing = None
            else:
                self._beat(*around[1:])

    def overdue(self, now: float) -> str:
        """In words what the thread is stuck at; empty: nothing. To be asked again and again, by one who looks on."""
        doing = self._doing
        if doing is None or doing[0] != self._seen:
            self._seen = doing[0] if doing else 0
            self._patience.heard()
        if doing is None or self._patience.look(now) <= doing[2]:
            return ""
        return f"the {self.thread} thread has been at {doing[1]} for {self._patience.waited_s:.0f} s"

    def _beat(self, what: str, limit_s: float) -> None:
        self._beats += 1
        self._doing = (self._beats, what, limit_s)


class Watch:
    """Looks on from a thread of its own.

    Args:
        pulses: of the threads.
        stuck: told once, in words, what a thread is stuck at; nobody looks on after that.
        look: called at each look.
    """

    def __init__(self, pulses: Sequence[Pulse], stuck: Callable[[str], None], look: Callable[[], None]) -> None:
        self._pulses = pulses
        self._stuck = stuck
        self._look = look
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="steploom-watch", daemon=True)

    def start(self) -> None:
        """Begins to look on."""
        self._thread.start()

    def end(self) -> None:
        """Looks on no more."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            self._look()
            now = time.monotonic()
            found = next(filter(None, [pulse.overdue(now) for pulse in self._pulses]), "")
            if found:
                self._stuck(found)
                return
