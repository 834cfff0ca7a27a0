"""Requests of one model that could share a batch, the one that is to go first at the front.

A batch is cut from the front, as Triton cuts it: at once when its rows are a preferred number or can grow no more,
else when its oldest request has waited for the delay. Requests of other shapes wait in lines of their own, so that they
close nobody's batch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass

from steploom_batcher.plain.settings import BatchSettings
from steploom_batcher.plain.types import Item

Rank = tuple[int, bool, int]  # level, whether its timeout has passed, order of arrival: the smallest goes first

AGED = 0  # the level of what has waited too long for the levels before it


@dataclass(slots=True, eq=False)
class Waiting:
    """A request from its arrival to its end."""

    item: Item
    since: float  # when it came
    order: int  # of arrival
    level: int  # of priority
    expires: float  # when its timeout passes; infinity: never
    is_late: bool = False  # its timeout has passed, and it goes behind the others
    is_aged: bool = False  # it has waited too long for the levels before it, and goes first
    is_alone: bool = False  # it runs by itself, since a batch that it was in has failed
    losses: int = 0  # hosts that were lost with it, or did not take it
    is_queued: bool = True  # else it runs, or has ended
    is_cancelled: bool = False  # while it ran

    @property
    def rank(self) -> Rank:
        """Its place in line."""
        return (AGED, False, self.order) if self.is_aged else (self.level, self.is_late, self.order)

    @property
    def next_event(self) -> float:
        """When something is to be done with it although nobody takes it."""
        return min(self.item.deadline, math.inf if self.is_late else self.expires)


class Line:
    """Args:
    key: what its requests have in common.
    settings: of the model.
    """

    def __init__(self, key: Hashable, settings: BatchSettings) -> None:
        self.key = key
        self._settings = settings
        self._goes_at = settings.goes_at
        self._full = settings.full
        self._places: list[tuple[Rank, Waiting]] = []  # by rank, which is unique

    def __repr__(self) -> str:
        return f"Line({self.key}, {len(self._places)})"

    def __len__(self) -> int:
        return len(self._places)

    @property
    def front(self) -> Rank:
        """Of the request that goes first."""
        return self._places[0][0]

    def add(self, waiting: Waiting) -> None:
        """Puts a request in its place."""
        insort(self._places, (waiting.rank, waiting), key=_rank)

    def remove(self, waiting: Waiting) -> None:
        """Takes a request out, by the rank that it has."""
        index = bisect_left(self._places, waiting.rank, key=_rank)
        del self._places[index]

    def take(self, count: int) -> list[Waiting]:
        """The first `count` requests, which leave."""
        taken = [waiting for _, waiting in self._places[:count]]
        del self._places[:count]
        return taken

    def num_ready(self, now: float) -> int:
        """How many of the first requests are a batch that goes now; 0: it waits for company."""
        settings, rows, num, best = self._settings, 0, 0, 0
        oldest, is_closed = math.inf, False
        for _, waiting in self._places:
            more = waiting.item.rows
            if num and rows + more > self._full and not best:
                best = num
            if num and rows + more > settings.max_rows:
                is_closed = True
                break
            rows, num, oldest = rows + more, num + 1, min(oldest, waiting.since)
            if rows in self._goes_at:
                best = num
            if rows >= settings.max_rows:
                break
        is_overdue = settings.delay_s > 0 and now >= oldest + settings.delay_s
        if best and not is_overdue:
            return best
        return num if is_closed or rows >= self._full or is_overdue or not settings.delay_s else 0

    def overdue_at(self) -> float:
        """When its batch goes, if nobody joins it."""
        return min(waiting.since for _, waiting in self._places) + self._settings.delay_s


def _rank(place: tuple[Rank, Waiting]) -> Rank:
    return place[0]
