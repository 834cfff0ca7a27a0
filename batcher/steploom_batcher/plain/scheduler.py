"""Which requests of plain models run together, where and when: pure, without clock, I/O or protobuf.

*Every version of a model has a queue. While a host has an instance of it free, the queue gives a batch; a batch that
came to nothing runs again, each request alone, so that one that makes the model fail ends nobody but itself.*

A change is told at once; `next_batches` then says all that is to be done, and `wake_at` when to ask again.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from steploom_batcher.plain.config import PlainSchedulerConfig
from steploom_batcher.plain.line import Waiting
from steploom_batcher.plain.queue import ModelQueue
from steploom_batcher.plain.settings import BatchSettings
from steploom_batcher.plain.types import Batch, Cause, Dropped, Item, Outcome, Refused, Version, Work

_MAX_LOSSES = 2  # hosts that a request may be lost with, or not be taken by: it runs once more, and no oftener
_SHARE = 0.2  # of the latest batch in the mean of what batches take
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 10.0
_RETRY_S = 1.0  # where nothing has been measured


@dataclass
class _Served:
    """A version of a model, and who serves it."""

    queue: ModelQueue
    instances: dict[str, int] = field(default_factory=dict)  # by host: batches that run at once
    running: dict[str, int] = field(default_factory=dict)  # by host
    lost_at: float = -math.inf  # when the last host that served it was lost
    batch_s: float = 0.0  # that a batch takes, a moving mean; 0: not known

    def free_host(self) -> str | None:
        """The host with the largest share of its instances idle; None where all are busy."""
        best, most = None, 0.0
        for host, instances in self.instances.items():
            share = 1 - self.running.get(host, 0) / instances
            if share > most:
                best, most = host, share
        return best


@dataclass(frozen=True, slots=True)
class _Running:
    batch: Batch
    items: list[Waiting]
    since: float


class PlainScheduler:
    """Args:
    config: bounds that hold for all models.
    """

    def __init__(self, config: PlainSchedulerConfig) -> None:
        self._config = config
        self._work = Work()
        self._models: dict[Version, _Served] = {}
        self._items: dict[int, Waiting] = {}  # that wait or run
        self._batches: dict[int, _Running] = {}
        self._ids = itertools.count(1)
        self._leaving: set[str] = set()  # models that take no requests any more
        self._is_draining = False

    def __repr__(self) -> str:
        return f"PlainScheduler(models={len(self._models)}, items={len(self._items)}, batches={len(self._batches)})"

    @property
    def num_items(self) -> int:
        """Requests that wait or run."""
        return len(self._items)

    def num_queued(self, model: Version) -> int:
        """Requests that wait."""
        return len(self._models[model].queue) if model in self._models else 0

    def serves(self, model: Version) -> bool:
        """Whether a host serves it now."""
        return model in self._models and bool(self._models[model].instances)

    def offer(self, host: str, model: Version, settings: BatchSettings, instances: int) -> None:
        """A host serves a model, from now on with these settings.

        Args:
            host: by name.
            model: one version.
            settings: as the model's configuration says; other ones than before hold for those who wait, too.
            instances: batches that run at once, at least 1.
        """
        served = self._models.get(model)
        if served is None:
            queue = ModelQueue(model, settings, self._config.max_queued, self._config.max_priority_wait_s, self._work)
            served = self._models[model] = _Served(queue)
        elif served.queue.settings != settings:
            served.queue.change(settings)
        served.instances[host] = max(1, instances)

    def withdraw(self, host: str, model: Version, reason: str) -> None:
        """A host serves a model no more, and means it: what waits for it ends, unless another serves it."""
        served = self._models.get(model)
        if served is None or served.instances.pop(host, None) is None or served.instances:
            return
        served.lost_at = -math.inf
        self._end_all(served, Refused(Cause.NO_MODEL, reason, _RETRY_S))
        self._forget_idle(model)

    def lose(self, host: str, now: float) -> None:
        """A host is gone: what ran there runs again, and what waits for it waits for the grace."""
        for batch_id in [batch_id for batch_id, running in self._batches.items() if running.batch.host == host]:
            self.finish(batch_id, Outcome.NOT_RUN, now)
        self.leave(host, now)

    def leave(self, host: str, now: float) -> None:
        """A host takes no more batches, and is expected back: what waits for it waits for the grace."""
        for served in self._models.values():
            if served.instances.pop(host, None) is not None and not served.instances:
                served.lost_at = now

    def close(self, name: str) -> None:
        """No version of a model takes requests any more; those that are taken run."""
        self._leaving.add(name)

    def reopen(self, name: str) -> None:
        """It takes requests again, where it is served."""
        self._leaving.discard(name)

    def drain(self) -> None:
        """Takes no requests any more; those that are taken run."""
        self._is_draining = True

    def submit(self, item: Item, now: float) -> Refused | None:
        """Takes a request, or says why not."""
        if self._is_draining:
            return Refused(Cause.DRAINING, "the batcher is draining", _RETRY_S)
        if item.model.name in self._leaving:
            return Refused(Cause.NO_MODEL, f"model {item.model.name} is being unloaded", _RETRY_S)
        served = self._models.get(item.model)
        if served is None:
            return Refused(Cause.NO_MODEL, f"no host serves {item.model.name}", _RETRY_S)
        if not served.instances and now >= served.lost_at + self._config.host_grace_s:
            return Refused(Cause.NO_HOST, f"the host of {item.model.name} is lost", _RETRY_S)
        if item.deadline <= now:
            return Refused(Cause.DEADLINE, "its deadline had passed when it came")
        taken = served.queue.put(item, now, self._retry_after_s(served))
        if isinstance(taken, Refused):
            return taken
        self._items[item.item_id] = taken
        return None

    def cancel(self, item_id: int) -> None:
        """Ends a request: at once where it waits; one that runs ends with its batch, without an answer."""
        waiting = self._items.get(item_id)
        if waiting is None:
            return
        if waiting.is_queued:
            del self._items[item_id]
            self._models[waiting.item.model].queue.take_out(waiting, _CANCELLED)
        else:
            waiting.is_cancelled = True

    def finish(self, batch_id: int, outcome: Outcome, now: float) -> None:
        """A batch has ended."""
        running = self._batches.pop(batch_id, None)
        if running is None:
            return
        batch = running.batch
        served = self._models[batch.model]
        served.running[batch.host] -= 1
        if outcome is Outcome.ANSWERED:
            taken_s = now - running.since
            served.batch_s += (taken_s - served.batch_s) * (_SHARE if served.batch_s else 1.0)
        answered = [waiting.item.item_id for waiting in running.items if self._has_answer(waiting, outcome, served)]
        for item_id in answered:
            del self._items[item_id]
        self._work.released += served.queue.order.answered(answered)
        self._forget_idle(batch.model)

    def next_batches(self, now: float) -> Work:
        """All that is to be done after the changes since the last call: each part is told once."""
        for served in self._models.values():
            if len(served.queue):
                self._pass_time(served, now)
                self._fill(served, now)
        return self.ended()

    def ended(self) -> Work:
        """Of that, what has ended by now, without new batches."""
        work = Work(self._work.batches[:], self._work.dropped[:], self._work.released[:])
        for part in (self._work.batches, self._work.dropped, self._work.released):
            part.clear()
        return work

    def wake_at(self) -> float:
        """When to ask again although nothing has changed; infinity: never."""
        return min((self._wake_at(served) for served in self._models.values() if len(served.queue)), default=math.inf)

    def _wake_at(self, served: _Served) -> float:
        if not served.instances:
            return min(served.queue.wake_at(False), served.lost_at + self._config.host_grace_s)
        return served.queue.wake_at(served.free_host() is not None)

    def _pass_time(self, served: _Served, now: float) -> None:
        for waiting in served.queue.pass_time(now):
            del self._items[waiting.item.item_id]
        if not served.instances and now >= served.lost_at + self._config.host_grace_s:
            name = served.queue.model.name
            self._end_all(served, Refused(Cause.NO_HOST, f"the host of {name} was lost, and is not back", _RETRY_S))

    def _fill(self, served: _Served, now: float) -> None:
        while (host := served.free_host()) is not None:
            items = served.queue.next_batch(now)
            if not items:
                return
            batch = Batch(
                next(self._ids),
                host,
                served.queue.model,
                tuple(waiting.item.item_id for waiting in items),
                sum(waiting.item.rows for waiting in items),
                tuple(now - waiting.since for waiting in items),
            )
            served.running[host] = served.running.get(host, 0) + 1
            self._batches[batch.batch_id] = _Running(batch, items, now)
            self._work.batches.append(batch)

    def _has_answer(self, waiting: Waiting, outcome: Outcome, served: _Served) -> bool:
        """Whether the end of its batch is that of a request, with an answer; else it is seen to here."""
        if waiting.is_cancelled:
            self._drop(waiting, served, _CANCELLED)
            return False
        if outcome is Outcome.ANSWERED:
            return True
        if outcome is Outcome.FAILED and waiting.is_alone:
            return True  # its own error
        if outcome is Outcome.NOT_RUN:
            waiting.losses += 1
            name = waiting.item.model.name
            if waiting.losses >= _MAX_LOSSES:
                self._drop(waiting, served, Refused(Cause.NO_HOST, f"the host of {name} was lost twice", _RETRY_S))
                return False
        served.queue.put_back(waiting)
        return False

    def _drop(self, waiting: Waiting, served: _Served, refused: Refused) -> None:
        del self._items[waiting.item.item_id]
        self._work.dropped.append(Dropped(waiting.item.item_id, refused))
        self._work.released += served.queue.order.left(waiting.item.item_id)

    def _end_all(self, served: _Served, refused: Refused) -> None:
        for waiting in served.queue.end_all(refused):
            del self._items[waiting.item.item_id]

    def _forget_idle(self, model: Version) -> None:
        """A version that nobody serves and nobody waits for needs no queue, unless its host is expected back."""
        served = self._models[model]
        is_idle = not len(served.queue) and not any(served.running.values())
        if is_idle and not served.instances and served.lost_at == -math.inf:
            del self._models[model]

    def _retry_after_s(self, served: _Served) -> float:
        """When the queue is likely to have room: what waits, at the pace of the latest batches."""
        if not served.batch_s:
            return _RETRY_S
        batches = len(served.queue) / max(1, served.queue.settings.max_rows) / max(1, sum(served.instances.values()))
        return min(_MAX_RETRY_S, max(_MIN_RETRY_S, served.batch_s * batches))


_CANCELLED = Refused(Cause.CANCELLED, "the caller went away")
