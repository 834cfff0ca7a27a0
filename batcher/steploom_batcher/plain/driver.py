"""The plain scheduler's asyncio adapter: requests and reports in, batches and answers out.

Everything here is synchronous. A change is told to the scheduler at once; one `_pump` then runs for all changes of a
turn of the event loop, hands out what the scheduler says, and arms the only timer. What is in a tensor is nobody's
concern.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from steploom_batcher.plain.scheduler import PlainScheduler
from steploom_batcher.plain.settings import BatchSettings
from steploom_batcher.plain.statistics import FAILED, INVALID, ModelStatistics, Times
from steploom_batcher.plain.types import Batch, Item, Outcome, Refused, Version, Work
from steploom_protos.worker.v1 import plain_pb2 as pb

log = logging.getLogger(__name__)

_QUIET_TURNS = 8  # of the loop, some tens of microseconds: gRPC takes several to hand over a request
_GATHER_S = 0.003  # that requests gather at most, where they keep coming: a loop that is so busy has no idle host

Answer = Callable[[pb.ItemDone | Refused], None]
"""Told the end of a request, once."""

_KINDS = {pb.ERROR_KIND_INVALID: INVALID, pb.ERROR_KIND_UNAVAILABLE: "no_host"}


class Link(Protocol):
    """Where batches of a host go."""

    def send(self, batch: Batch, items: Sequence[pb.Item]) -> None:
        """Puts a batch in line for the one writer."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a batch ended, as its host says."""

    batch_id: int
    items: Sequence[pb.ItemDone]  # one for each item, in their order; empty where the batch failed as a whole
    error: pb.ItemError | None  # of the batch as a whole
    times: Times


@dataclass(slots=True)
class _Request:
    item: Item
    payload: pb.Item
    answer: Answer
    came_at: float
    done: pb.ItemDone | None = None  # once it is there; it may be held back


@dataclass(frozen=True, slots=True)
class _Sent:
    batch: Batch
    at: float


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A model that takes no requests any more."""

    items: set[int]  # its requests that wait or run
    is_idle: asyncio.Event


class PlainDriver:
    """Runs the scheduler on the event loop.

    Args:
        scheduler: the pure core; nobody else may drive it.
        loop: its clock is the scheduler's.
    """

    def __init__(self, scheduler: PlainScheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._clock = loop.time
        self._requests: dict[int, _Request] = {}
        self._sent: dict[int, _Sent] = {}
        self._links: dict[str, Link] = {}
        self._offers: dict[str, set[Version]] = {}  # by host
        self._num_items = 0
        self._pump_handle: asyncio.Handle | None = None
        self._num_quiet_turns = 0  # of the loop, since the last request came
        self._gathers_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._leaving: list[_Leaving] = []
        self.statistics: dict[Version, ModelStatistics] = {}

    def __repr__(self) -> str:
        return f"PlainDriver(requests={len(self._requests)}, hosts={len(self._links)}, {self._scheduler!r})"

    @property
    def num_requests(self) -> int:
        """That wait or run."""
        return len(self._requests)

    def num_queued(self, model: Version) -> int:
        """Requests that wait."""
        return self._scheduler.num_queued(model)

    def submit(self, item: Item, payload: pb.Item, answer: Answer) -> int:
        """Takes a request; its end is told, and never before this returns.

        Args:
            item: what the scheduler sees; its id is set here.
            payload: for the host.
            answer: told the end.

        Returns:
            The id by which it can be cancelled.
        """
        self._num_items += 1
        item.item_id = self._num_items
        now = self._clock()
        refused = self._scheduler.submit(item, now)
        if refused is not None:
            self._of(item.model).failed(refused.cause.value, 0.0)
            self._loop.call_soon(answer, refused)
            return item.item_id
        self._requests[item.item_id] = _Request(item, payload, answer, now)
        self._idle.clear()
        self._gather_soon(now)
        return item.item_id

    def cancel(self, item_id: int) -> None:
        """Ends a request: its end is told when no host holds its tensors."""
        self._scheduler.cancel(item_id)
        self._pump_soon()

    def host_up(self, host: str, link: Link) -> None:
        """Batches can be sent to a host."""
        self._links[host] = link
        self._offers[host] = set()

    def host_serves(self, host: str, offers: Mapping[Version, tuple[BatchSettings, int]], gone: str) -> None:
        """What a host serves from now on.

        Args:
            host: that is up.
            offers: settings and instances.
            gone: why it does not serve what it served before, for its callers.
        """
        if host not in self._links:
            return
        for model in self._offers[host] - offers.keys():
            self._scheduler.withdraw(host, model, gone.format(model=model.name))
        for model, (settings, instances) in offers.items():
            self._scheduler.offer(host, model, settings, instances)
            self._of(model)  # it is shown at 0 before its first request
        self._offers[host] = set(offers)
        self._pump_soon()

    def host_leaves(self, host: str) -> None:
        """It takes no more batches, and ends what it has; it is expected back."""
        if host in self._links:
            self._offers[host] = set()
            self._scheduler.leave(host, self._clock())
            self._pump_soon()

    def host_lost(self, host: str) -> None:
        """Its stream has ended: what ran there runs again."""
        if self._links.pop(host, None) is None:
            return
        del self._offers[host]
        for batch_id in [batch_id for batch_id, sent in self._sent.items() if sent.batch.host == host]:
            del self._sent[batch_id]
        self._scheduler.lose(host, self._clock())
        self._pump_soon()

    def reported(self, reports: Sequence[Report]) -> None:
        """Batches have ended."""
        now, unix_ms = self._clock(), int(1000 * time.time())
        for report in reports:
            sent = self._sent.pop(report.batch_id, None)
            if sent is not None:
                self._take(report, sent, now, unix_ms)
        self._hand_out(self._scheduler.ended(), now)
        self._gather_soon(now)  # who has an answer may have another request: it joins those that wait

    def drain(self) -> None:
        """Takes no requests any more."""
        self._scheduler.drain()

    async def idle(self) -> None:
        """Returns when no request waits or runs."""
        await self._idle.wait()

    def close_model(self, name: str) -> asyncio.Event:
        """A model takes no requests any more; set when none of it waits or runs."""
        self._scheduler.close(name)
        items = {item_id for item_id, request in self._requests.items() if request.item.model.name == name}
        self._leaving.append(_Leaving(items, asyncio.Event()))
        is_idle = self._leaving[-1].is_idle
        self._look_after_leaving()
        return is_idle

    def reopen_model(self, name: str) -> None:
        """It takes requests again, where it is served."""
        self._scheduler.reopen(name)

    def cancel_all(self) -> None:
        """Ends all requests."""
        for item_id in list(self._requests):
            self._scheduler.cancel(item_id)
        self._pump_soon()

    def close(self) -> None:
        """Ends the timer."""
        for handle in (self._pump_handle, self._timer):
            if handle is not None:
                handle.cancel()

    def _take(self, report: Report, sent: _Sent, now: float, unix_ms: int) -> None:
        batch = sent.batch
        error = report.error
        if error is not None and error.kind == pb.ERROR_KIND_UNAVAILABLE:
            self._scheduler.finish(batch.batch_id, Outcome.NOT_RUN, now)
            return
        if error is not None and len(batch.items) > 1:
            log.warning("a batch of %d of %s failed, and runs again one by one: %s", len(batch.items), batch.model.name,
                        error.message)  # fmt: skip
            self._scheduler.finish(batch.batch_id, Outcome.FAILED, now)
            return
        items = report.items if error is None else [pb.ItemDone(error=error)]
        if len(items) != len(batch.items):
            log.error("host %s: a batch of %d has %d answers", batch.host, len(batch.items), len(items))
            items = [_NO_ANSWER] * len(batch.items)
        statistics = self._of(batch.model)
        statistics.batch_ran(batch.rows, report.times, unix_ms)
        ran_s = now - sent.at
        for item_id, waited_s, done in zip(batch.items, batch.waited_s, items, strict=True):
            request = self._requests[item_id]
            request.done = done
            if done.HasField("error"):
                statistics.failed(_KINDS.get(done.error.kind, FAILED), now - request.came_at)
            else:
                statistics.answered(request.item.rows, waited_s, ran_s, report.times)
        self._scheduler.finish(batch.batch_id, Outcome.ANSWERED, now)

    def _gather_soon(self, now: float) -> None:
        self._num_quiet_turns = 0
        if self._pump_handle is None:
            self._gathers_until = now + _GATHER_S
            self._pump_handle = self._loop.call_soon(self._gather)

    def _gather(self) -> None:
        """Requests that come in a burst go together: as long as the next turns of the loop bring more of them."""
        self._num_quiet_turns += 1
        if self._num_quiet_turns > _QUIET_TURNS or self._clock() >= self._gathers_until:
            self._pump()
        else:
            self._pump_handle = self._loop.call_soon(self._gather)

    def _pump_soon(self) -> None:
        if self._pump_handle is None:
            self._pump_handle = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Hands out what is to be done."""
        if self._pump_handle is not None:
            self._pump_handle.cancel()
            self._pump_handle = None
        now = self._clock()
        self._hand_out(self._scheduler.next_batches(now), now)
        self._arm()

    def _hand_out(self, work: Work, now: float) -> None:
        for batch in work.batches:
            self._sent[batch.batch_id] = _Sent(batch, now)
            self._links[batch.host].send(batch, [self._requests[item_id].payload for item_id in batch.items])
        for item_id in work.released:
            request = self._requests.pop(item_id)
            assert request.done is not None
            request.answer(request.done)
        for dropped in work.dropped:
            request = self._requests.pop(dropped.item_id)
            self._of(request.item.model).failed(dropped.refused.cause.value, now - request.came_at)
            request.answer(dropped.refused)
        if not self._requests:
            self._idle.set()
        if self._leaving:
            self._look_after_leaving()

    def _look_after_leaving(self) -> None:
        for leaving in self._leaving:
            leaving.items.intersection_update(self._requests)
            if not leaving.items:
                leaving.is_idle.set()
        self._leaving = [leaving for leaving in self._leaving if leaving.items]

    def _arm(self) -> None:
        wake_at = self._scheduler.wake_at()
        if self._timer is not None:
            if self._timer.when() == wake_at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if wake_at < math.inf:
            self._timer = self._loop.call_at(wake_at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._pump()

    def _of(self, model: Version) -> ModelStatistics:
        return self.statistics.setdefault(model, ModelStatistics())


_NO_ANSWER = pb.ItemDone(
    error=pb.ItemError(kind=pb.ERROR_KIND_FAILED, message="the model host gave no answer to this request")
)
