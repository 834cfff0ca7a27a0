"""Answers in the order in which their requests came, where a model asks for that."""

from __future__ import annotations


class Order:
    """Requests that are to be answered, the oldest first.

    Args:
        is_kept: else every answer goes out as it comes.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._open: dict[int, bool] = {}  # by id, as they came: whether the answer is there

    def __repr__(self) -> str:
        return f"Order(open={len(self._open)})" if self._is_kept else "Order(any)"

    def came(self, item_id: int) -> None:
        """A request was taken."""
        if self._is_kept:
            self._open[item_id] = False

    def answered(self, item_ids: list[int]) -> list[int]:
        """Answers are there; those that may go out now, of these and of others."""
        if not self._is_kept:
            return item_ids
        self._open |= dict.fromkeys(item_ids, True)
        return self._ready()

    def held(self) -> list[int]:
        """Requests whose answers are there, and wait for those of others."""
        return [item_id for item_id, is_there in self._open.items() if is_there]

    def left(self, item_id: int) -> list[int]:
        """A request has ended without an answer; the answers that it has held back."""
        if not self._is_kept:
            return []
        self._open.pop(item_id, None)
        return self._ready()

    def _ready(self) -> list[int]:
        ready = []
        for item_id, is_there in self._open.items():
            if not is_there:
                break
            ready.append(item_id)
        for item_id in ready:
            del self._open[item_id]
        return ready
