"""The gRPC service: streams of batches to the host, answers back, and what the host serves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from steploom_common.errors import Exists, InvalidRequest, NotFound, Violation
from steploom_engine_worker.plain.errors import BrokenModel, Busy, UnknownModel
from steploom_engine_worker.plain.host import Host, ModelStatus
from steploom_engine_worker.plain.work import Work
from steploom_protos.worker.v1 import plain_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ModelHost"].full_name

_MAX_OPEN = 4096  # batches of a stream; more are not read before one is answered
_MAX_BYTES = 64 * 2**20  # of answers in a message, from which on none is added

Context = grpc.aio.ServicerContext[Any, Any]


class Answers:
    """Answers of one stream, from the threads of instances to the event loop.

    However many are put before the loop looks, it is woken once, and they go out in one message: the bytes of several
    messages one after another are a message with all of their repeated fields.

    Args:
        host: whose open batches are counted down.
    """

    def __init__(self, host: Host) -> None:
        self.num_open = 0  # batches of this stream that are not answered
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._is_told = False
        self._is_left = False
        self._filled = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def put(self, answer: bytes) -> None:
        """Adds one. On any thread; nothing where the loop is gone."""
        self._waiting.append(answer)
        if not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Whoever waits looks again."""
        self._filled.set()
        if self._is_left:
            while self._waiting:
                self.count(len(self._take()))

    async def next(self) -> list[bytes]:
        """Those that there are by now, after a wait for the first; none where something else has changed."""
        await self._filled.wait()
        self._filled.clear()
        return self._take()

    def count(self, num_answers: int) -> None:
        """So many are answered."""
        self.num_open -= num_answers
        self._host.num_open -= num_answers
        if self.num_open < _MAX_OPEN:
            self._has_room.set()

    async def expect(self, num_answers: int) -> None:
        """So many batches have come. Waits while too many are open."""
        self.num_open += num_answers
        if self.num_open >= _MAX_OPEN:
            self._has_room.clear()
            await self._has_room.wait()

    def leave(self) -> None:
        """Nobody takes any more; what comes is counted alone."""
        self._is_left = True
        self.wake()

    def _take(self) -> list[bytes]:
        self._is_told = False  # before they are taken: one that is put now tells of itself again
        taken, size = [], 0
        while self._waiting and size < _MAX_BYTES:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        if self._waiting:
            self._filled.set()
        return taken


class ModelHostService:
    """Behind the calls.

    Args:
        host: that serves.
        host_id: unique to the process.
    """

    def __init__(self, host: Host, host_id: str) -> None:
        self._host = host
        self._host_id = host_id

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> AsyncIterator[pb.HostDescription]:  # noqa: ARG002
        """What is served, at once and after every change."""
        while True:
            changed = self._host.changed
            yield describe(self._host, self._host_id)
            await changed.wait()

    async def Execute(self, requests: AsyncIterator[pb.ExecuteBatches], context: Context) -> None:
        """Runs batches until the caller ends the stream and all are answered, or the stream breaks."""
        answers = Answers(self._host)
        reader = asyncio.create_task(self._read(requests, answers))
        reader.add_done_callback(lambda _: answers.wake())
        try:
            while answers.num_open or not reader.done():
                if taken := await answers.next():
                    try:
                        await context.write(b"".join(taken))
                    finally:
                        answers.count(len(taken))
            await reader
        finally:
            reader.cancel()
            answers.leave()

    async def _read(self, requests: AsyncIterator[pb.ExecuteBatches], answers: Answers) -> None:
        async for message in requests:
            arrived_ns = time.monotonic_ns()
            for batch in message.batches:
                self._host.submit(Work(batch, answers.put, arrived_ns))
            await answers.expect(len(message.batches))

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:  # noqa: ARG002
        """Loads a model, or loads it anew."""
        config = request.config if request.HasField("config") else None
        with _as_statuses():
            return pb.LoadResponse(model=_hosted(await self._host.load(request.name, config)))

    async def Unload(self, request: pb.UnloadRequest, context: Context) -> pb.UnloadResponse:  # noqa: ARG002
        """Takes a model out of service."""
        with _as_statuses():
            await self._host.unload(request.name)
        return pb.UnloadResponse()

    async def Index(self, request: pb.IndexRequest, context: Context) -> pb.IndexResponse:  # noqa: ARG002
        """Every model of the repository."""
        response = pb.IndexResponse()
        for status in await self._host.index():
            for version in status.versions or (0,):
                response.entries.add(name=status.name, version=version, state=status.state.value, reason=status.reason)
        return response


def add_to_server(service: ModelHostService, server: grpc.aio.Server) -> None:
    """Registers the calls. Answers of Execute are bytes already, so that the generated function does not do."""
    unary: dict[str, tuple[Any, Any, Any]] = {
        "Load": (service.Load, pb.LoadRequest, pb.LoadResponse),
        "Unload": (service.Unload, pb.UnloadRequest, pb.UnloadResponse),
        "Index": (service.Index, pb.IndexRequest, pb.IndexResponse),
    }
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(call, request.FromString, response.SerializeToString)
        for name, (call, request, response) in unary.items()
    }
    handlers["Describe"] = grpc.unary_stream_rpc_method_handler(
        service.Describe, pb.DescribeRequest.FromString, pb.HostDescription.SerializeToString
    )
    handlers["Execute"] = grpc.stream_stream_rpc_method_handler(service.Execute, pb.ExecuteBatches.FromString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@contextmanager
def _as_statuses() -> Iterator[None]:
    """What goes wrong with a load or an unload, as the errors that have a status."""
    try:
        yield
    except UnknownModel as error:
        raise NotFound("model", error.name[:200], error.known) from None
    except BrokenModel as error:
        raise InvalidRequest(Violation("name", str(error))) from None
    except Busy as error:
        raise Exists(str(error)) from None


def describe(host: Host, host_id: str) -> pb.HostDescription:
    """What a host serves now."""
    models = [_hosted(status) for status in host.statuses()]
    return pb.HostDescription(host_id=host_id, models=models, is_draining=host.is_draining)


def _hosted(status: ModelStatus) -> pb.HostedModel:
    return pb.HostedModel(
        name=status.name,
        config=status.config,
        versions=status.versions,
        state=status.state.value,
        reason=status.reason,
        instances=status.num_instances,
        generation=status.generation,
    )
