"""The connection to one model host: kept up for ever, each loss answered by a new try after a back-off."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import grpc
import grpc.aio

from steploom_batcher.plain.driver import PlainDriver, Report
from steploom_batcher.plain.settings import BatchSettings, read_settings
from steploom_batcher.plain.statistics import Times
from steploom_batcher.plain.types import Batch, Version
from steploom_batcher.worker_link import Backoff
from steploom_common.internal import Internal
from steploom_protos.worker.v1 import plain_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2_grpc

log = logging.getLogger(__name__)

_CLOSED = "closed"  # by ourselves
_MAX_BATCHES = 32  # in a message: tensors may travel in them, and a message has a bound
_MAX_BYTES = 64 * 2**20  # in a message, from which on no batch is added

ExecuteCall = grpc.aio.StreamStreamCall[pb.ExecuteBatches, pb.ExecutedBatches]


class HostLink:
    """Args:
    address: of the host; also its name towards the scheduler, so that a restarted process is the same host.
    driver: hears of everything.
    backoff: pauses between tries.
    internal: how it is reached.
    batch_timeout_s: a host that owes the end of any batch for longer counts as lost.
    on_change: hears when what it serves has changed.
    """

    def __init__(
        self,
        address: str,
        driver: PlainDriver,
        backoff: Backoff,
        internal: Internal,
        batch_timeout_s: float,
        on_change: Callable[[], None],
    ) -> None:
        self.address = address
        self.models: dict[str, pb.HostedModel] = {}  # as it last said, by name; without instances while it is away
        self.is_up = False
        self.last_error = "not reached yet"  # empty while up
        self.stub: plain_pb2_grpc.ModelHostAsyncStub | None = None  # while up
        self._driver = driver
        self._backoff = backoff
        self._internal = internal
        self._batch_timeout_s = batch_timeout_s
        self._on_change = on_change
        self._outbox: deque[tuple[Batch, Sequence[pb.Item]]] = deque()
        self._filled = asyncio.Event()
        self._num_owed = 0
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"HostLink({self.address}, {'up' if self.is_up else self.last_error})"

    def start(self) -> None:
        """Begins to dial."""
        self._task = asyncio.create_task(self._keep_up(), name=f"model host {self.address}")

    async def close(self) -> None:
        """Ends the streams and the tries."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def send(self, batch: Batch, items: Sequence[pb.Item]) -> None:
        """See `driver.Link`."""
        if not self._num_owed:
            self._heard_at = asyncio.get_running_loop().time()
        self._num_owed += 1
        self._outbox.append((batch, items))
        self._filled.set()

    async def _keep_up(self) -> None:
        while True:
            error = await self._run_session()
            if error != self.last_error:
                log.warning("model host %s cannot be reached: %s", self.address, error)
            self.last_error = error
            await asyncio.sleep(self._backoff.next_s())

    async def _run_session(self) -> str:
        """From dialling to the loss; returns why it ended."""
        error = _CLOSED
        try:
            # no shared subchannels: gRPC's own back-off of the last try must not delay this one
            async with self._internal.channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = plain_pb2_grpc.ModelHostStub(channel)
                await self._talk(stub)
        except grpc.aio.AioRpcError as problem:
            error = f"{problem.code().name}: {problem.details()}"
        except (ConnectionError, ValueError) as problem:
            error = str(problem)
        except Exception as problem:
            log.exception("model host %s: the session is given up", self.address)
            error = repr(problem)
        finally:
            self._lost(error)
        return error

    def _lost(self, error: str) -> None:
        was_up, self.is_up, self.stub = self.is_up, False, None
        for model in self.models.values():
            model.instances = 0
        self._outbox.clear()
        self._num_owed = 0
        if was_up:
            self.last_error = error
            if error != _CLOSED:
                log.warning("model host %s is lost: %s", self.address, error)
            self._driver.host_lost(self.address)
            self._on_change()

    async def _talk(self, stub: plain_pb2_grpc.ModelHostAsyncStub) -> None:
        """Reads, writes and watches until one of them raises."""
        descriptions = stub.Describe(pb.DescribeRequest())
        batches = stub.Execute()
        tasks: list[asyncio.Task[None]] = []
        try:
            first = await descriptions.read()
            if not isinstance(first, pb.HostDescription):
                raise ConnectionError("the host closed the stream before it said what it serves")
            self.stub, self.is_up, self.last_error = stub, True, ""
            self._backoff.reset()
            self._driver.host_up(self.address, self)
            self._describe(first)
            log.info("model host %s is up with %d models", self.address, len(first.models))
            parts = (self._follow(descriptions), self._read(batches), self._write(batches), self._watch())
            tasks = [asyncio.create_task(part, name=self.address) for part in parts]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            descriptions.cancel()
            batches.cancel()

    async def _follow(self, call: grpc.aio.UnaryStreamCall[pb.DescribeRequest, pb.HostDescription]) -> None:
        while isinstance(description := await call.read(), pb.HostDescription):
            self._describe(description)
        raise ConnectionError("the host closed the stream")

    def _describe(self, description: pb.HostDescription) -> None:
        offers: dict[Version, tuple[BatchSettings, int]] = {}
        self.models = {model.name: self._latest(model) for model in description.models}
        for model in description.models:
            if model.state != pb.MODEL_STATE_READY:
                continue
            try:
                settings = read_settings(model.config)
            except ValueError as error:
                log.warning("model %s of %s cannot be served: %s", model.name, self.address, error)
                model.state, model.reason = pb.MODEL_STATE_UNAVAILABLE, str(error)
                continue
            for version in model.versions:
                offers[Version(model.name, version)] = settings, model.instances
        if description.is_draining:
            self._driver.host_leaves(self.address)
            self._on_change()
            return
        self._driver.host_serves(self.address, offers, "model {model} is unloaded")
        self._on_change()

    def _latest(self, model: pb.HostedModel) -> pb.HostedModel:
        """One that is loaded again after a loss is known as it was: requests for it wait."""
        known = self.models.get(model.name)
        is_awaited = known is not None and known.state == pb.MODEL_STATE_READY and not known.instances
        return known if known is not None and is_awaited and model.state == pb.MODEL_STATE_LOADING else model

    async def _read(self, call: ExecuteCall) -> None:
        clock = asyncio.get_running_loop().time
        while isinstance(message := await call.read(), pb.ExecutedBatches):
            self._heard_at = clock()
            self._num_owed -= len(message.done)
            self._driver.reported([_report(done) for done in message.done])
        raise ConnectionError("the host closed the stream")

    async def _write(self, call: ExecuteCall) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                await call.write(self._message())  # what comes meanwhile goes into the next message

    def _message(self) -> pb.ExecuteBatches:
        message = pb.ExecuteBatches()
        num_bytes = 0
        while self._outbox and len(message.batches) < _MAX_BATCHES and num_bytes < _MAX_BYTES:
            batch, items = self._outbox.popleft()
            sent = message.batches.add(batch_id=batch.batch_id, model=batch.model.name, version=batch.model.number)
            sent.items.extend(items)
            num_bytes += sum(len(tensor.data) for item in items for tensor in item.inputs)
        return message

    async def _watch(self) -> None:
        """Keepalive sees a dead process; this sees one that hangs."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._batch_timeout_s / 4)
            if self._num_owed and clock() - self._heard_at > self._batch_timeout_s:
                raise ConnectionError(f"no answer to a batch for {self._batch_timeout_s:g} s")


def _report(done: pb.BatchDone) -> Report:
    return Report(
        done.batch_id,
        done.items,
        done.error if done.HasField("error") else None,
        Times(done.wait_ns, done.compute_input_ns, done.compute_infer_ns, done.compute_output_ns),
    )
