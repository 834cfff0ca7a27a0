"""A request that comes again under the same id joins the job that runs for it, or gets the picture that it has drawn.

What makes a request the same is who asks, its id, and all that it says: an id alone gives nobody another's picture, and
one that is used again for something else is simply another request. Only pictures are kept; whatever failed runs again.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from steploom_common.errors import DeadlineMissed, SteploomError
from steploom_protos.v1 import image_pb2

Start = Callable[[], AsyncGenerator[image_pb2.EditEvent]]
Event = image_pb2.EditEvent

_ENTRY_BYTES = 4096  # that an entry takes beside its picture


@dataclass(frozen=True)
class Same:
    """What two requests have in common of which the second is a retry."""

    caller: str  # name of the token; empty: nobody is asked for one
    request_id: str
    content: bytes  # SHA-256 of all that the request says


async def same(caller: str, request_id: str, request: image_pb2.EditRequest) -> Same:
    """What a retry of a request has in common with it. A large picture is hashed beside the event loop."""
    content = await asyncio.to_thread(_digest, request)
    return Same(caller, request_id, content)


def _digest(request: image_pb2.EditRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


@dataclass
class _Told:
    """What a caller has been told of its job so far."""

    is_queued: bool = False
    is_started: bool = False
    step: int = 0


class Retries:
    """Jobs that run and pictures that are kept, by what their requests have in common.

    Args:
        window_s: seconds for which a picture is kept; 0: no request joins another.
        max_bytes: of all pictures that are kept; the oldest make way.
        on_repeat: told `joined` or `stored` when a request does not run for itself.
    """

    def __init__(self, window_s: float, max_bytes: int, on_repeat: Callable[[str], None]) -> None:
        self._window_s = window_s
        self._max_bytes = max_bytes
        self._on_repeat = on_repeat
        self._jobs: dict[Same, _Job] = {}  # that run, or whose picture is kept
        self._kept: dict[Same, _Kept] = {}  # the oldest first
        self._num_bytes = 0

    def __repr__(self) -> str:
        return f"Retries(jobs={len(self._jobs)}, kept={len(self._kept)}, bytes={self._num_bytes})"

    @property
    def is_on(self) -> bool:
        """Whether requests join others at all."""
        return self._window_s > 0

    @property
    def num_bytes(self) -> int:
        """Of the pictures that are kept."""
        return self._num_bytes

    async def events(self, same: Same, deadline_unix_s: float, start: Start) -> AsyncGenerator[Event]:
        """The events of a request's job, whoever has started it; what had happened before is told in short.

        A job whose last caller goes away is cancelled.

        Args:
            same: of the request.
            deadline_unix_s: of this call, seconds since the epoch; 0: none.
            start: runs the request, where no other runs or has run for it.

        Raises:
            SteploomError: what the job ends with.
        """
        deadline_unix_s = deadline_unix_s or math.inf
        told = _Told()
        while True:
            job = self._jobs.get(same)
            if job is None:
                job = self._jobs[same] = _Job(start, deadline_unix_s, lambda ended: self._ended(same, ended))
            else:
                self._on_repeat("joined" if job.done is None else "stored")
            try:
                async with aclosing(job.followed(told)) as events:
                    async for event in events:
                        yield event
                return
            except DeadlineMissed:
                # that of the caller who started the job; this one may have more time
                if deadline_unix_s <= job.deadline_unix_s:
                    raise
            finally:
                self._abandon(same, job)

    def close(self) -> None:
        """Forgets all pictures."""
        for key in list(self._kept):
            self._forget(key)

    def _abandon(self, same: Same, job: _Job) -> None:
        """Ends a job that nobody follows any more, so that the next who asks starts anew."""
        if job.num_followers or job.done is not None:
            return
        job.cancel()
        if self._jobs.get(same) is job:
            del self._jobs[same]

    def _ended(self, same: Same, job: _Job) -> None:
        """Keeps the picture of a job, if it has one and there is room."""
        if self._jobs.get(same) is not job:
            return
        num_bytes = _ENTRY_BYTES + (job.done.ByteSize() if job.done else 0)
        if job.done is None or num_bytes > self._max_bytes:
            del self._jobs[same]
            return
        while self._num_bytes + num_bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))
        timer = asyncio.get_running_loop().call_later(self._window_s, self._forget, same)
        self._kept[same] = _Kept(num_bytes, timer)
        self._num_bytes += num_bytes

    def _forget(self, same: Same) -> None:
        kept = self._kept.pop(same)
        kept.timer.cancel()
        self._num_bytes -= kept.num_bytes
        del self._jobs[same]


@dataclass(frozen=True)
class _Kept:
    """A picture's place in memory."""

    num_bytes: int
    timer: asyncio.TimerHandle  # at whose end it is forgotten


@dataclass
class _News:
    """What has happened to a job, in constant space: who reads slowly misses steps, never the end."""

    queued: Event | None = None
    is_started: bool = False
    step: Event | None = None  # the last one


class _Job:
    """A request that runs in a task of its own, followed by every caller who asks for it."""

    def __init__(self, start: Start, deadline_unix_s: float, on_end: Callable[[_Job], None]) -> None:
        self.deadline_unix_s = deadline_unix_s  # of the caller who started it; infinity: none
        self.num_followers = 0
        self.done: Event | None = None  # with the picture
        self._error: Exception | None = None
        self._news = _News()
        self._changed = asyncio.Event()
        self._on_end = on_end
        self._task = asyncio.create_task(self._run(start), name="edit that may be retried")

    def cancel(self) -> None:
        """Ends it at its next step."""
        self._task.cancel()

    async def followed(self, told: _Told) -> AsyncGenerator[Event]:
        """What happens from now on, and in short what has happened before."""
        self.num_followers += 1
        try:
            while True:
                changed = self._changed
                for event in list(self._unheard(told)):
                    yield event
                if changed is not self._changed:  # something has happened while those were on their way
                    continue
                if self._error:
                    raise self._error
                if self.done:
                    yield self.done
                    return
                await changed.wait()
        finally:
            self.num_followers -= 1

    def _unheard(self, told: _Told) -> Iterator[Event]:
        news = self._news
        if news.queued and not told.is_queued:
            told.is_queued = True
            yield _as_done(news.queued) if self.done else news.queued
        if (news.is_started or self.done) and not told.is_started:
            told.is_started = True
            yield Event(started=Event.Started())
        if news.step and news.step.step.step > told.step:
            told.step = news.step.step.step
            yield news.step

    async def _run(self, start: Start) -> None:
        try:
            async with aclosing(start()) as events:
                async for event in events:
                    self._take(event)
            if self.done is None:
                self._error = SteploomError("the edit ended without a picture")
        except asyncio.CancelledError:
            self._error = SteploomError("the edit was cancelled")
            raise
        except Exception as error:
            self._error = error
        finally:
            self._on_end(self)
            self._tell()

    def _take(self, event: Event) -> None:
        match event.WhichOneof("event"):
            case "queued":
                self._news.queued = event
            case "started":
                self._news.is_started = True
            case "step":
                self._news.step = event
            case "done":
                self.done = event
                self._news.step = None  # with its preview
                return  # told at the end of the task: what runs it has let go of everything then
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _as_done(queued: Event) -> Event:
    """The event of admission for one who comes when the picture is there."""
    return Event(queued=Event.Queued(request_id=queued.queued.request_id, predicted_s=0.0))
