"""A queue that several gateways share, in the batcher: one stream for all requests, and what is served.

What is ready at a turn of the loop goes out in one message; what comes while that is on its way goes into the next. No
request waits for another by the clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import grpc
import grpc.aio

from steploom_batcher.plain.causes import refusal_error
from steploom_batcher.plain.types import Cause, Refused
from steploom_common.errors import Unavailable
from steploom_common.internal import Internal
from steploom_gateway.plain.model import PlainModel
from steploom_gateway.plain.request import PlainOrder
from steploom_gateway.plain.runner import updated
from steploom_protos.batcher.v1 import plain_pb2 as pb
from steploom_protos.batcher.v1 import plain_pb2_grpc
from steploom_protos.worker.v1 import plain_pb2 as host_pb

log = logging.getLogger(__name__)

InferCall = grpc.aio.StreamStreamCall[pb.PlainRequests, pb.PlainAnswers]

_CAUSES = {
    pb.PlainRefusal.QUEUE_FULL: Cause.QUEUE_FULL,
    pb.PlainRefusal.TIMEOUT: Cause.TIMEOUT,
    pb.PlainRefusal.INVALID: Cause.TOO_LARGE,
    pb.PlainRefusal.CANCELLED: Cause.CANCELLED,
}

_MAX_REQUESTS = 1024  # in a message
_MAX_BYTES = 64 * 2**20  # in a message, from which on no request is added
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0
_ABSENT_RETRY_S = 10.0  # of a batcher that has no plain side


class SharedQueue:
    """See `runner.Runner`.

    Args:
        address: of the batcher.
        internal: how it is reached.
        on_change: told after each change of what is served.
    """

    def __init__(self, address: str, internal: Internal, on_change: Callable[[], None]) -> None:
        self.models: dict[str, PlainModel] = {}
        self.is_up = False  # the batcher answers, and takes requests
        self._is_draining = False
        self._address = address
        self._internal = internal
        self._on_change = on_change
        self._open: dict[int, asyncio.Future[host_pb.ItemDone]] = {}
        self._num_sent = 0
        self._outbox: list[pb.PlainRequests] = [pb.PlainRequests()]
        self._outbox_bytes = 0  # of the last message of the outbox
        self._filled = asyncio.Event()
        self._stub: plain_pb2_grpc.PlainBatcherAsyncStub | None = None
        self._task = asyncio.create_task(self._keep_up(), name="plain models")

    def __repr__(self) -> str:
        return f"SharedQueue({self._address}, models={len(self.models)}, open={len(self._open)})"

    @property
    def num_open(self) -> int:
        """See `Runner`."""
        return len(self._open)

    async def run(self, model: str, version: int, order: PlainOrder, left_s: float) -> host_pb.ItemDone:
        """See `Runner`."""
        if not self.is_up:
            raise Unavailable("the batcher of plain models cannot be reached")
        self._num_sent += 1
        number = self._num_sent
        layout = order.layout
        message = self._last_message(order.num_bytes).requests.add(
            id=number, model=model, version=version, rows=layout.rows, key=layout.key, left_s=left_s
        )
        message.priority, message.timeout_us = order.priority, order.timeout_us
        order.write(message.item)
        self._filled.set()
        future: asyncio.Future[host_pb.ItemDone] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        try:
            return await future
        except asyncio.CancelledError:
            self._last_message(0).cancelled.append(number)
            self._filled.set()
            raise

    async def statistics(self) -> pb.PlainStatistics:
        """See `Runner`."""
        return await self._reached().Statistics(pb.PlainStatisticsRequest())

    async def load(self, request: host_pb.LoadRequest) -> None:
        """See `Runner`."""
        await self._reached().Load(request)

    async def unload(self, request: host_pb.UnloadRequest) -> None:
        """See `Runner`."""
        await self._reached().Unload(request)

    async def index(self) -> host_pb.IndexResponse:
        """See `Runner`."""
        return await self._reached().Index(host_pb.IndexRequest())

    def drain(self) -> None:
        """See `Runner`: the batcher goes on with other gateways' requests."""
        self.is_up = False
        self._is_draining = True

    async def close(self) -> None:
        """Ends the streams; requests that are open fail."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def _reached(self) -> plain_pb2_grpc.PlainBatcherAsyncStub:
        if self._stub is None:
            raise Unavailable("the batcher of plain models cannot be reached")
        return self._stub

    def _last_message(self, num_bytes: int) -> pb.PlainRequests:
        last = self._outbox[-1]
        if len(last.requests) >= _MAX_REQUESTS or self._outbox_bytes > _MAX_BYTES:
            last = pb.PlainRequests()
            self._outbox.append(last)
            self._outbox_bytes = 0
        self._outbox_bytes += num_bytes
        return last

    async def _keep_up(self) -> None:
        retry_s, last_problem = _FIRST_RETRY_S, ""
        while True:
            try:
                async with self._internal.channel(self._address) as channel:
                    self._stub = plain_pb2_grpc.PlainBatcherStub(channel)
                    await self._talk(self._stub)
                problem = "the stream has ended"
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name}: {error.details()}"
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    retry_s = _ABSENT_RETRY_S
            finally:
                was_up = self._lost()
            if was_up or problem != last_problem:
                log.info("plain models: the batcher at %s cannot be reached: %s", self._address, problem)
            retry_s = _FIRST_RETRY_S if was_up else retry_s
            last_problem = problem
            await asyncio.sleep(retry_s)
            retry_s = min(_LAST_RETRY_S, 2 * retry_s)

    async def _talk(self, stub: plain_pb2_grpc.PlainBatcherAsyncStub) -> None:
        """Reads and writes until one of them raises or ends."""
        served = stub.Models(pb.PlainModelsRequest())
        requests = stub.Infer()
        tasks: list[asyncio.Task[None]] = []
        try:
            first = await served.read()
            if not isinstance(first, pb.PlainModels):
                return
            self._take(first)
            parts = (self._follow(served), self._read(requests), self._write(requests))
            tasks = [asyncio.create_task(part) for part in parts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            served.cancel()
            requests.cancel()

    async def _follow(self, call: grpc.aio.UnaryStreamCall[pb.PlainModelsRequest, pb.PlainModels]) -> None:
        while isinstance(message := await call.read(), pb.PlainModels):
            self._take(message)

    def _take(self, message: pb.PlainModels) -> None:
        self.models = updated(self.models, message.models)
        self.is_up = not (message.is_draining or self._is_draining)
        self._on_change()

    async def _read(self, call: InferCall) -> None:
        while isinstance(message := await call.read(), pb.PlainAnswers):
            for answer in message.answers:
                future = self._open.pop(answer.id, None)
                if future is None or future.done():
                    continue
                if answer.HasField("done"):
                    future.set_result(answer.done)
                else:
                    future.set_exception(refusal_error(_refused(answer.refused)))

    async def _write(self, call: InferCall) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                message = self._outbox.pop(0)
                if not self._outbox:
                    self._outbox.append(pb.PlainRequests())
                    self._outbox_bytes = 0
                if not (message.requests or message.cancelled):
                    break
                await call.write(message)

    def _lost(self) -> bool:
        """Ends all that is open; whether it was up."""
        was_up, self.is_up, self._stub = self.is_up, False, None
        self._outbox, self._outbox_bytes = [pb.PlainRequests()], 0
        still_open, self._open = self._open, {}
        for future in still_open.values():
            if not future.done():
                future.set_exception(Unavailable("the batcher was lost with this request"))
        if was_up:
            self._on_change()
        return was_up


def _refused(refused: pb.PlainRefusal) -> Refused:
    return Refused(_CAUSES.get(refused.kind, Cause.NO_MODEL), refused.message, refused.retry_after_s)
