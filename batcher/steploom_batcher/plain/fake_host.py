"""A model host without models, for tests: it answers inputs, after as long as a test says, or fails as it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from steploom_common.rpc import INTERNAL_OPTIONS, bind
from steploom_protos.inference import model_config_pb2
from steploom_protos.worker.v1 import plain_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2_grpc

POISON = b"poison"  # an input that begins so makes its batch fail
INVALID = b"invalid"  # an input that begins so is refused by itself
DEADLY = b"deadly"  # an input that begins so makes the host close its streams


def identity_config(name: str = "identity", max_batch_size: int = 8, **fields: Any) -> model_config_pb2.ModelConfig:
    """Of a model with one tensor in, and the same out."""
    kinds: dict[str, Any] = {"data_type": model_config_pb2.TYPE_UINT8, "dims": [-1]}
    return model_config_pb2.ModelConfig(
        **{
            "name": name,
            "max_batch_size": max_batch_size,
            "input": [model_config_pb2.ModelInput(name="INPUT0", **kinds)],
            "output": [model_config_pb2.ModelOutput(name="OUTPUT0", **kinds)],
            "dynamic_batching": model_config_pb2.ModelDynamicBatching() if max_batch_size else None,
            **fields,
        }
    )


class FakeHost(plain_pb2_grpc.ModelHostServicer):
    """Args:
    configs: of its models.
    instances: of each.
    """

    def __init__(self, configs: Sequence[model_config_pb2.ModelConfig], instances: int = 1) -> None:
        self.configs = {config.name: config for config in configs}
        self.loaded = set(self.configs)
        self.never_loaded: set[str] = set()  # in the repository, and not told of
        self.instances = instances
        self.batches: list[pb.Batch] = []  # as they came
        self.delay_s = 0.0  # that each batch takes
        self.may_run = asyncio.Event()  # else batches wait
        self.may_run.set()
        self.is_draining = False
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    @property
    def num_running(self) -> int:
        """Batches that have come, in all."""
        return len(self.batches)

    async def start(self, address: str) -> None:
        """Listens."""
        self._server = grpc.aio.server(options=INTERNAL_OPTIONS)
        plain_pb2_grpc.add_ModelHostServicer_to_server(self, self._server)
        bind(self._server, address)
        await self._server.start()

    async def stop(self) -> None:
        """Dies."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def change(self) -> None:
        """What it serves is told anew."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> AsyncIterator[pb.HostDescription]:
        """See the .proto."""
        while True:
            changed = self._changed
            models = [self._hosted(name) for name in sorted(self.configs) if name not in self.never_loaded]
            yield pb.HostDescription(host_id="fake", models=models, is_draining=self.is_draining)
            await changed.wait()

    async def Execute(
        self, request_iterator: AsyncIterator[pb.ExecuteBatches], context: Any
    ) -> AsyncIterator[pb.ExecutedBatches]:
        """See the .proto."""
        done: asyncio.Queue[pb.BatchDone | None] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()

        async def read() -> None:
            async for message in request_iterator:
                for batch in message.batches:
                    self.batches.append(batch)
                    tasks.add(asyncio.create_task(self._run(batch, done)))

        reader = asyncio.create_task(read())
        try:
            while (end := await done.get()) is not None:
                yield pb.ExecutedBatches(done=[end])
        finally:
            for task in (reader, *tasks):
                task.cancel()

    async def Load(self, request: pb.LoadRequest, context: Any) -> pb.LoadResponse:
        """See the .proto."""
        if request.name not in self.configs:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"the repository has no model {request.name!r}")
        self.loaded.add(request.name)
        self.never_loaded.discard(request.name)
        self.change()
        return pb.LoadResponse(model=self._hosted(request.name))

    async def Unload(self, request: pb.UnloadRequest, context: Any) -> pb.UnloadResponse:
        """See the .proto."""
        if request.name not in self.loaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{request.name} is not loaded")
        self.loaded.discard(request.name)
        self.change()
        return pb.UnloadResponse()

    async def Index(self, request: pb.IndexRequest, context: Any) -> pb.IndexResponse:
        """See the .proto."""
        entries = [
            pb.IndexResponse.Entry(name=model.name, version=1, state=model.state, reason=model.reason)
            for model in map(self._hosted, sorted(self.configs))
        ]
        return pb.IndexResponse(entries=entries)

    def _hosted(self, name: str) -> pb.HostedModel:
        is_ready = name in self.loaded
        return pb.HostedModel(
            name=name,
            config=self.configs[name],
            versions=[1] if is_ready else [],
            state=pb.MODEL_STATE_READY if is_ready else pb.MODEL_STATE_UNAVAILABLE,
            reason="" if is_ready else "unloaded",
            instances=self.instances,
            generation=1,
        )

    async def _run(self, batch: pb.Batch, done: asyncio.Queue[pb.BatchDone | None]) -> None:
        await self.may_run.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        firsts = [item.inputs[0].data for item in batch.items]
        end = pb.BatchDone(
            batch_id=batch.batch_id,
            compute_input_ns=1000,
            compute_infer_ns=2000,
            compute_output_ns=3000,
            start_unix_ns=time.time_ns(),
        )
        if any(data.startswith(DEADLY) for data in firsts):
            done.put_nowait(None)
            return
        if any(data.startswith(POISON) for data in firsts):
            end.error.kind, end.error.message = pb.ERROR_KIND_FAILED, "the model failed"
            end.error.error_id = "abc123"
        else:
            end.items.extend(_answer(item) for item in batch.items)
        done.put_nowait(end)


def _answer(item: pb.Item) -> pb.ItemDone:
    if item.inputs[0].data.startswith(INVALID):
        return pb.ItemDone(error=pb.ItemError(kind=pb.ERROR_KIND_INVALID, message="INPUT0 is not as it must be"))
    return pb.ItemDone(outputs=item.inputs)
