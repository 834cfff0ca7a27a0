"""A bounded queue between the event loop and the driving thread that can be emptied at once."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """First in, first out; `try_put` never waits, `get` does."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._items: deque[Item] = deque()
        self._filled = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def try_put(self, item: Item) -> bool:
        """Adds at the end; False where the box is full."""
        with self._filled:
            if len(self._items) >= self._bound:
                return False
            self._items.append(item)
            self._filled.notify()
            return True

    def put(self, item: Item) -> None:
        """Adds at the end, whatever the bound: for what comes now and then."""
        with self._filled:
            self._items.append(item)
            self._filled.notify()

    def replace(self, item: Item) -> None:
        """Throws away what waits and leaves `item` alone; always fits."""
        with self._filled:
            self._items.clear()
            self._items.append(item)
            self._filled.notify()

    def get(self, timeout_s: float | None = None) -> Item | None:
        """Waits for the next item; None where none has come in time."""
        with self._filled:
            if not self._filled.wait_for(lambda: bool(self._items), timeout_s):
                return None
            return self._items.popleft()
