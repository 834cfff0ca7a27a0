"""A job's events on their way to one reader, in constant space: a slow reader misses steps, never the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from steploom_batcher.messages import Begun, Done, Event, Picture, Progress
from steploom_common.errors import SteploomError


class JobFeed:
    """Where the driver leaves what has happened, and its one reader takes it.

    Args:
        steps: denoising steps of the job.
        has_progress: False wakes the reader for the end alone.
    """

    def __init__(self, steps: int, has_progress: bool = True) -> None:
        self._steps = steps
        self._has_progress = has_progress
        self._has_begun = False
        self._step = 0  # latest that is done
        self._step_read = 0
        self._preview: Picture | None = None  # latest that nobody has read
        self._begun_read = False
        self._end: Done | SteploomError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"JobFeed(step={self._step}/{self._steps}, end={self._end!r})"

    @property
    def has_ended(self) -> bool:
        """The last event is there."""
        return self._end is not None

    def begin(self) -> None:
        """The encode tick is done."""
        self._has_begun = True
        self._wake_for_progress()

    def step(self, step: int, preview: Picture | None) -> None:
        """A step is done; takes the place of one that was not read."""
        self._step = step
        if preview is not None:
            self._preview = preview
        self._wake_for_progress()

    def end(self, result: Done | SteploomError) -> None:
        """The last event. Later ones are ignored."""
        if self._end is None:
            self._end = result
            self._wake()

    async def events(self) -> AsyncIterator[Event]:
        """Events for the one reader, up to `Done`.

        Raises:
            SteploomError: the job ended without a picture.
        """
        while True:
            event = self._take()
            if event is None:
                await self._changed()
                continue
            yield event
            if isinstance(event, Done):
                return

    async def ended(self) -> None:
        """Returns when the last event is there, read or not."""
        while self._end is None:
            await self._changed()

    def _take(self) -> Event | None:
        if self._has_progress:
            if self._has_begun and not self._begun_read:
                self._begun_read = True
                return Begun()
            if self._step != self._step_read:
                self._step_read = self._step
                preview, self._preview = self._preview, None
                return Progress(self._step, self._steps, preview)
        if isinstance(self._end, SteploomError):
            raise self._end
        return self._end

    async def _changed(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_for_progress(self) -> None:
        if self._has_progress:
            self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
