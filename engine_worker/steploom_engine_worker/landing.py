"""Waits for what a device was told to do, in that order, on a thread of its own, beside the one that tells it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Landing:
    """Runs actions one after another, while no more than `depth` are under way.

    Args:
        depth: how many may be under way; at least 1.
        crash: called when an action has raised; nothing more is run then.

    Attributes:
        error: what an action raised.
    """

    def __init__(self, depth: int, crash: Callable[[], None]) -> None:
        self._depth = depth
        self._crash = crash
        self._actions: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="steploom-land", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._actions)

    def make_room(self) -> None:
        """Waits until fewer than `depth` are under way, or `error` is set: then none ever will be."""
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or len(self._actions) < self._depth)

    def add(self, action: Callable[[], None]) -> None:
        """Puts an action under way."""
        with self._changed:
            self._actions.append(action)
            self._changed.notify_all()

    def close(self, timeout_s: float | None = None) -> bool:
        """Lets what is under way end, and then the thread; False where it did not in time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._actions or self._is_closed)
                if not self._actions:
                    return
                action = self._actions[0]
            try:
                action()
            except BaseException as error:
                with self._changed:
                    self.error = error
                    self._changed.notify_all()
                self._crash()
                return
            with self._changed:
                self._actions.popleft()
                self._changed.notify_all()
