"""The queue of one version of a model: who waits, for how long, and who goes next.

*The line whose front ranks first among those that are ready gives the batch. Levels of priority are strict, but for
what has waited longer than the bound on aging: that goes before all.*
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Hashable

from steploom_batcher.plain.line import Line, Waiting
from steploom_batcher.plain.order import Order
from steploom_batcher.plain.settings import BatchSettings
from steploom_batcher.plain.types import Cause, Dropped, Item, Refused, Version, Work

_MIN_GARBAGE = 64  # entries of the clock that nobody waits for, from which on they are swept


class ModelQueue:
    """Args:
    model: whose queue it is.
    settings: of the model.
    max_queued: requests that may wait, whatever the model's own bounds say.
    max_wait_s: after which a request goes before those of higher priority.
    work: where ends are put.
    """

    def __init__(self, model: Version, settings: BatchSettings, max_queued: int, max_wait_s: float, work: Work) -> None:
        self.model = model
        self.settings = settings
        self._max_queued = max_queued
        self._max_wait_s = max_wait_s
        self._work = work
        self._num_came = 0
        self._lines: dict[Hashable, Line] = {}
        self._again: list[Waiting] = []  # to run once more, each alone, the oldest last
        self._queued: Counter[int] = Counter()  # by level
        self._num_queued = 0
        self._clock: list[tuple[float, int, Waiting]] = []  # a heap: when a request's time is up
        self._pushes = itertools.count()  # breaks ties on the clock
        self._aging: deque[Waiting] = deque()  # as they came
        self.order = Order(settings.keeps_order)

    def __repr__(self) -> str:
        return f"ModelQueue({self.model}, queued={self._num_queued}, lines={len(self._lines)})"

    def __len__(self) -> int:
        return self._num_queued

    def change(self, settings: BatchSettings) -> None:
        """Other settings hold from now on, for those who wait too; their timeouts stay as they were."""
        everyone = [waiting for line in self._lines.values() for waiting in line.take(len(line))]
        if self.settings.keeps_order != settings.keeps_order:
            self._work.released += self.order.held()
            self.order = Order(settings.keeps_order)
        self.settings = settings
        self._lines.clear()
        for waiting in everyone:
            self._join_line(waiting)

    def put(self, item: Item, now: float, retry_after_s: float) -> Waiting | Refused:
        """Takes a request in.

        Args:
            item: of this model.
            now: when it came.
            retry_after_s: the hint for one that finds no room.
        """
        settings = self.settings
        if item.rows > settings.max_rows:
            return Refused(Cause.TOO_LARGE, f"has {item.rows} rows, must have at most {settings.max_rows}")
        level = settings.level(item.priority)
        policy = settings.policy(level)
        bound = policy.max_queue_size
        if bound and self._queued[level] >= bound:
            where = f" at priority {level}" if settings.num_levels else ""
            return Refused(Cause.QUEUE_FULL, f"{bound} requests of {self.model.name} wait{where}", retry_after_s)
        if self._num_queued >= self._max_queued:
            return Refused(Cause.QUEUE_FULL, f"{self._num_queued} requests of {self.model.name} wait", retry_after_s)
        self._num_came += 1
        expires = now + policy.timeout_of(item.timeout_s)
        waiting = Waiting(item, now, self._num_came, level, expires)
        self.order.came(item.item_id)
        self._enter(waiting)
        if settings.num_levels > 1 or policy.is_delayed:
            self._aging.append(waiting)
        return waiting

    def put_back(self, waiting: Waiting) -> None:
        """Takes in a request whose batch came to nothing: it goes next, and alone."""
        waiting.is_alone = waiting.is_queued = True
        waiting.expires = math.inf  # its time in the queue had an end
        self._count(waiting, 1)
        self._watch(waiting)
        self._again.append(waiting)
        self._again.sort(key=lambda item: -item.order)

    def take_out(self, waiting: Waiting, refused: Refused) -> None:
        """Ends a request that waits."""
        waiting.is_queued = False
        self._count(waiting, -1)
        if waiting.is_alone:
            self._again.remove(waiting)
        else:
            self._leave_line(waiting)
        self._work.dropped.append(Dropped(waiting.item.item_id, refused))
        self._work.released += self.order.left(waiting.item.item_id)

    def end_all(self, refused: Refused) -> list[Waiting]:
        """Ends all requests that wait; those."""
        everyone = [
            *reversed(self._again),
            *(waiting for line in self._lines.values() for waiting in line.take(len(line))),
        ]
        self._again.clear()
        self._lines.clear()
        for waiting in everyone:
            waiting.is_queued = False
            self._count(waiting, -1)
            self._work.dropped.append(Dropped(waiting.item.item_id, refused))
            self._work.released += self.order.left(waiting.item.item_id)
        return everyone

    def pass_time(self, now: float) -> list[Waiting]:
        """Sees to those whose time is up, and lets others age; returns those that have ended."""
        ended = []
        while self._clock and self._clock[0][0] <= now:
            _, _, waiting = heapq.heappop(self._clock)
            if waiting.is_queued and waiting.next_event <= now and self._time_is_up(waiting, now):
                ended.append(waiting)
        while self._aging and (not self._aging[0].is_queued or self._aging[0].since + self._max_wait_s <= now):
            waiting = self._aging.popleft()
            if waiting.is_queued and not waiting.is_alone:
                self._leave_line(waiting)
                waiting.is_aged = True
                self._join_line(waiting)
        return ended

    def next_batch(self, now: float) -> list[Waiting]:
        """The requests of a batch that goes now, which leave the queue; none where nobody is ready."""
        taken = [self._again.pop()] if self._again else self._next_of_lines(now)
        for waiting in taken:
            waiting.is_queued = False
            self._count(waiting, -1)
        return taken

    def wake_at(self, is_free: bool) -> float:
        """When something is to be done without a cause from outside; infinity: never.

        Args:
            is_free: whether a batch could run now.
        """
        while self._clock and not self._clock[0][2].is_queued:
            heapq.heappop(self._clock)
        time_is_up = self._clock[0][0] if self._clock else math.inf
        if not is_free or not self._lines:
            return time_is_up
        return min(time_is_up, *(line.overdue_at() for line in self._lines.values()))

    def _next_of_lines(self, now: float) -> list[Waiting]:
        best: Line | None = None
        num_best = 0
        for line in self._lines.values():
            if best is not None and best.front < line.front:
                continue
            num_ready = line.num_ready(now) if self.settings.is_batched else 1
            if num_ready:
                best, num_best = line, num_ready
        if best is None:
            return []
        taken = best.take(num_best)
        if not best:
            del self._lines[best.key]
        return taken

    def _time_is_up(self, waiting: Waiting, now: float) -> bool:
        """Whether the request ends by it."""
        if waiting.item.deadline <= now:
            waited_ms = 1000 * (now - waiting.since)
            self.take_out(
                waiting, Refused(Cause.DEADLINE, f"its deadline passed after {waited_ms:.0f} ms in the queue")
            )
            return True
        policy = self.settings.policy(waiting.level)
        if not policy.is_delayed:
            timeout_ms = 1000 * (waiting.expires - waiting.since)
            self.take_out(waiting, Refused(Cause.TIMEOUT, f"it waited for {timeout_ms:g} ms in the queue"))
            return True
        if waiting.is_alone or waiting.is_aged:
            waiting.is_late = True
        else:
            self._leave_line(waiting)
            waiting.is_late = True
            self._join_line(waiting)
        self._watch(waiting)
        return False

    def _enter(self, waiting: Waiting) -> None:
        self._count(waiting, 1)
        self._watch(waiting)
        self._join_line(waiting)

    def _join_line(self, waiting: Waiting) -> None:
        key = waiting.item.key if self.settings.is_batched else None
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key, self.settings)
        line.add(waiting)

    def _leave_line(self, waiting: Waiting) -> None:
        key = waiting.item.key if self.settings.is_batched else None
        line = self._lines[key]
        line.remove(waiting)
        if not line:
            del self._lines[key]

    def _watch(self, waiting: Waiting) -> None:
        if waiting.next_event == math.inf:
            return
        heapq.heappush(self._clock, (waiting.next_event, next(self._pushes), waiting))
        if len(self._clock) > 2 * self._num_queued + _MIN_GARBAGE:
            self._clock = [entry for entry in self._clock if entry[2].is_queued]
            heapq.heapify(self._clock)

    def _count(self, waiting: Waiting, change: int) -> None:
        self._queued[waiting.level] += change
        self._num_queued += change
