"""The PlainBatcher service: many requests on one stream, and what the hosts serve."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from steploom_batcher.plain.driver import PlainDriver
from steploom_batcher.plain.side import PlainSide
from steploom_batcher.plain.statistics_wire import statistics_to_wire
from steploom_batcher.plain.types import Cause, Item, Refused, Version
from steploom_protos.batcher.v1 import plain_pb2 as pb
from steploom_protos.batcher.v1 import plain_pb2_grpc
from steploom_protos.worker.v1 import plain_pb2 as host_pb

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")

_MAX_ANSWERS = 1024  # in a message
_MAX_BYTES = 64 * 2**20  # in a message, from which on no answer is added

_KINDS = {
    Cause.QUEUE_FULL: pb.PlainRefusal.QUEUE_FULL,
    Cause.TIMEOUT: pb.PlainRefusal.TIMEOUT,
    Cause.DEADLINE: pb.PlainRefusal.TIMEOUT,
    Cause.TOO_LARGE: pb.PlainRefusal.INVALID,
    Cause.NO_MODEL: pb.PlainRefusal.UNAVAILABLE,
    Cause.NO_HOST: pb.PlainRefusal.UNAVAILABLE,
    Cause.DRAINING: pb.PlainRefusal.UNAVAILABLE,
    Cause.CANCELLED: pb.PlainRefusal.CANCELLED,
}


class News:
    """Wakes all who wait whenever something has changed."""

    def __init__(self) -> None:
        self.next = asyncio.Event()  # of the next change: take it before you look, and nothing is missed

    def tell(self) -> None:
        """Something has changed."""
        self.next.set()
        self.next = asyncio.Event()


class PlainBatcherService(plain_pb2_grpc.PlainBatcherServicer):
    """Args:
    side: runs the requests.
    news: of what its hosts serve.
    """

    def __init__(self, side: PlainSide, news: News) -> None:
        self._side = side
        self._news = news

    async def Infer(
        self, request_iterator: AsyncIterator[pb.PlainRequests], context: Context
    ) -> AsyncIterator[pb.PlainAnswers]:
        """Runs all requests of one gateway; see the .proto."""
        del context
        session = _Session(self._side.driver, self._side.newest)
        reader = asyncio.create_task(session.read(request_iterator), name="plain requests")
        try:
            async for answers in session.answers():
                yield answers
        finally:
            reader.cancel()
            session.close()

    async def Models(self, request: pb.PlainModelsRequest, context: Context) -> AsyncIterator[pb.PlainModels]:
        """What is served, now and after every change."""
        del request, context
        while True:
            changed = self._news.next
            yield pb.PlainModels(models=self._side.models, is_draining=self._side.is_draining)
            await changed.wait()

    async def Statistics(self, request: pb.PlainStatisticsRequest, context: Context) -> pb.PlainStatistics:
        """Of all models that were ever asked for."""
        del request, context
        return statistics_to_wire(self._side.driver)

    async def Load(self, request: host_pb.LoadRequest, context: Context) -> host_pb.LoadResponse:
        """On every host."""
        return await _relayed(self._side.load(request), context)

    async def Unload(self, request: host_pb.UnloadRequest, context: Context) -> host_pb.UnloadResponse:
        """On every host."""
        return await _relayed(self._side.unload(request), context)

    async def Index(self, request: host_pb.IndexRequest, context: Context) -> host_pb.IndexResponse:
        """Of the first host that is up."""
        del request
        return await _relayed(self._side.index(), context)


async def _relayed(call: Awaitable[Answer], context: Context) -> Answer:
    """What a host answers, with its own status where it refuses."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        await context.abort(error.code(), error.details() or "")


class _Session:
    """One gateway's stream."""

    def __init__(self, driver: PlainDriver, newest: Callable[[str], int]) -> None:
        self._driver = driver
        self._newest = newest
        self._items: dict[int, int] = {}  # the gateway's ids to the driver's, of those that are not answered
        self._outbox: list[tuple[int, host_pb.ItemDone | Refused]] = []
        self._filled = asyncio.Event()
        self._is_open = True

    async def read(self, messages: AsyncIterator[pb.PlainRequests]) -> None:
        """Takes what comes in, until the gateway has no more."""
        loop = asyncio.get_running_loop()
        async for message in messages:
            now = loop.time()
            for request in message.requests:
                self._take(request, now)
            for request_id in message.cancelled:
                if request_id in self._items:
                    self._driver.cancel(self._items[request_id])

    async def answers(self) -> AsyncIterator[pb.PlainAnswers]:
        """As many at once as are there when the last message is on its way."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                yield self._message()

    def close(self) -> None:
        """Nobody reads any more: ends all that is left."""
        self._is_open = False
        for item_id in self._items.values():
            self._driver.cancel(item_id)

    def _take(self, request: pb.PlainRequest, now: float) -> None:
        request_id = request.id
        item = Item(
            item_id=0,
            model=Version(request.model, request.version or self._newest(request.model)),
            rows=request.rows,
            key=request.key,
            priority=request.priority,
            timeout_s=request.timeout_us / 1e6,
            deadline=now + request.left_s if request.left_s else math.inf,
        )

        def answer(end: host_pb.ItemDone | Refused) -> None:
            self._items.pop(request_id, None)
            if self._is_open:
                self._outbox.append((request_id, end))
                self._filled.set()

        self._items[request_id] = self._driver.submit(item, request.item, answer)

    def _message(self) -> pb.PlainAnswers:
        message = pb.PlainAnswers()
        num_bytes = num = 0
        for request_id, end in self._outbox[:_MAX_ANSWERS]:
            answer = message.answers.add(id=request_id)
            num += 1
            if isinstance(end, Refused):
                answer.refused.kind, answer.refused.message = _KINDS[end.cause], end.message
                answer.refused.retry_after_s = end.retry_after_s
                continue
            answer.done.CopyFrom(end)
            num_bytes += sum(len(tensor.data) for tensor in end.outputs)
            if num_bytes > _MAX_BYTES:
                break
        del self._outbox[:num]
        return message
