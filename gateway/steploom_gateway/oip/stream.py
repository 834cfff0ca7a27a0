"""Many requests on one stream: they run side by side, and their answers go out as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")

_MAX_WAITING = 8  # answers that wait for a slow reader; their requests wait too


async def interleaved(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], AsyncGenerator[Response]],
    max_open: int,
) -> AsyncGenerator[Response]:
    """The answers to all requests, those of each in their order.

    Closing it ends all of them.

    Args:
        requests: read one by one, while fewer than `max_open` are being answered.
        answer: the answers to one request; what it raises ends the stream.
        max_open: requests that are answered at once.

    Raises:
        Exception: the first that `requests` or `answer` raises.
    """
    answers: asyncio.Queue[Response | None] = asyncio.Queue(_MAX_WAITING)
    room = asyncio.Semaphore(max_open)

    async def one(request: Request) -> None:
        try:
            async with aclosing(answer(request)) as parts:
                async for part in parts:
                    await answers.put(part)
        finally:
            room.release()

    async def all_of_them() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await room.acquire()
                    group.create_task(one(request))
        except Exception:
            await answers.put(None)
            raise
        await answers.put(None)

    reader = asyncio.create_task(all_of_them(), name="requests of a stream")
    try:
        while (part := await answers.get()) is not None:
            yield part
        await reader
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
