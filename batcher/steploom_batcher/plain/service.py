"""The PlainBatcher service: many requests on one stream, and what the hosts serve."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from steploom_batcher.plain.driver import PlainDriver
from steploom_batcher.plain.host_link import HostLink
from steploom_batcher.plain.statistics import Compute, ModelStatistics, Total
from steploom_batcher.plain.types import Cause, Item, Refused, Version
from steploom_common.errors import Unavailable
from steploom_protos.batcher.v1 import plain_pb2 as pb
from steploom_protos.batcher.v1 import plain_pb2_grpc
from steploom_protos.worker.v1 import plain_pb2 as host_pb
from steploom_protos.worker.v1 import plain_pb2_grpc as host_grpc

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
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Until the next change."""
        await self._changed.wait()


class PlainBatcherService(plain_pb2_grpc.PlainBatcherServicer):
    """Args:
    driver: runs the requests.
    links: to all hosts.
    news: of what they serve.
    has_workers: whether engine workers are configured beside them.
    """

    def __init__(self, driver: PlainDriver, links: Sequence[HostLink], news: News, has_workers: bool) -> None:
        self._driver = driver
        self._links = links
        self._news = news
        self._has_workers = has_workers
        self._is_draining = False

    def drain(self) -> None:
        """Takes no requests any more, and says so."""
        self._is_draining = True
        self._driver.drain()
        self._news.tell()

    async def Infer(
        self, request_iterator: AsyncIterator[pb.PlainRequests], context: Context
    ) -> AsyncIterator[pb.PlainAnswers]:
        """Runs all requests of one gateway; see the .proto."""
        del context
        session = _Session(self._driver, self._newest)
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
            yield pb.PlainModels(models=self._merged(), is_draining=self._is_draining, has_workers=self._has_workers)
            await self._news.wait()

    async def Statistics(self, request: pb.PlainStatisticsRequest, context: Context) -> pb.PlainStatistics:
        """Of all models that were ever asked for."""
        del request, context
        return pb.PlainStatistics(
            models=[
                _statistics(model, of, self._driver.num_queued(model))
                for model, of in sorted(self._driver.statistics.items())
            ]
        )

    async def Load(self, request: host_pb.LoadRequest, context: Context) -> host_pb.LoadResponse:
        """On every host."""
        del context
        return (await self._on_all(lambda stub: stub.Load(request)))[0]

    async def Unload(self, request: host_pb.UnloadRequest, context: Context) -> host_pb.UnloadResponse:
        """On every host."""
        del context
        return (await self._on_all(lambda stub: stub.Unload(request)))[0]

    async def Index(self, request: host_pb.IndexRequest, context: Context) -> host_pb.IndexResponse:
        """Of the first host that is up: all have the same models."""
        del context
        return await self._stubs()[0].Index(request)

    def _newest(self, name: str) -> int:
        return max((version for link in self._links for version in _versions(link, name)), default=0)

    def _merged(self) -> list[host_pb.HostedModel]:
        merged: dict[str, host_pb.HostedModel] = {}
        for link in self._links:
            for name, model in link.models.items():
                known = merged.get(name)
                if known is None or (known.state != model.state == host_pb.MODEL_STATE_READY):
                    merged[name] = host_pb.HostedModel()
                    merged[name].CopyFrom(model)
                elif known.state == model.state == host_pb.MODEL_STATE_READY:
                    known.instances += model.instances
        return [merged[name] for name in sorted(merged)]

    def _stubs(self) -> list[host_grpc.ModelHostAsyncStub]:
        stubs = [link.stub for link in self._links if link.stub is not None]
        if not stubs:
            raise Unavailable("no model host is up" if self._links else "no model host is configured")
        return stubs

    async def _on_all(self, call: Callable[[host_grpc.ModelHostAsyncStub], Awaitable[Answer]]) -> list[Answer]:
        return list(await asyncio.gather(*(call(stub) for stub in self._stubs())))


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


def _versions(link: HostLink, name: str) -> Sequence[int]:
    model = link.models.get(name)
    return model.versions if model is not None and model.state == host_pb.MODEL_STATE_READY else ()


def _statistics(model: Version, of: ModelStatistics, queued: int) -> pb.PlainModelStatistics:
    return pb.PlainModelStatistics(
        name=model.name,
        version=model.number,
        last_unix_ms=of.last_unix_ms,
        rows=of.rows,
        batches=of.batches,
        success=_time(of.success),
        fail=_time(of.fail),
        queue=_time(of.queue),
        compute_input=_time(of.compute.input),
        compute_infer=_time(of.compute.infer),
        compute_output=_time(of.compute.output),
        by_rows=[_batches(rows, of.by_rows[rows]) for rows in sorted(of.by_rows)],
        ended=of.ended,
        queued=queued,
    )


def _batches(rows: int, compute: Compute) -> pb.PlainBatchTimes:
    return pb.PlainBatchTimes(
        rows=rows,
        compute_input=_time(compute.input),
        compute_infer=_time(compute.infer),
        compute_output=_time(compute.output),
    )


def _time(total: Total) -> pb.PlainTime:
    return pb.PlainTime(count=total.count, ns=total.ns)
