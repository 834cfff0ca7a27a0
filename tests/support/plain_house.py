"""A model host in the test's own loop, and repositories of small models for it."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from steploom_common.rpc import Shutdown
from steploom_engine_worker.plain.config import HostConfig
from steploom_engine_worker.plain.server import HostServer
from steploom_protos.worker.v1 import plain_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2_grpc

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE_S = 120.0  # for anything to happen

ONE_INPUT = """
    input [ { name: "x", data_type: TYPE_FP32, dims: [ -1 ] } ]
    output [ { name: "y", data_type: TYPE_FP32, dims: [ -1 ] } ]
"""
DOUBLE = """
    class Model:
        def __init__(self, config, folder):
            pass

        def infer(self, inputs, parameters):
            return {"y": inputs["x"] * 2}
"""


def write_model(
    repository: Path,
    name: str,
    code: str = DOUBLE,
    config: str = ONE_INPUT,
    version: int = 1,
    max_batch_size: int = 8,
) -> Path:
    """A Python class in a repository; returns its folder."""
    folder = repository / name
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    text = f'backend: "python"\nmax_batch_size: {max_batch_size}\n{config}'
    (folder / "config.pbtxt").write_text(text)
    (folder / str(version) / "model.py").write_text(textwrap.dedent(code))
    return folder


def item(*arrays: Any, request_id: str = "r", parameters: Mapping[str, Any] | None = None, **changes: Any) -> pb.Item:
    """A request of arrays of numbers."""
    made = pb.Item(request_id=request_id, inputs=[tensor(array) for array in arrays], **changes)
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in (parameters or {}).items():
        setattr(made.parameters[name], kinds[type(value)], value)
    return made


def tensor(array: Any) -> pb.Tensor:
    """Numbers, of 32 bits where they are a list."""
    numbers = array if isinstance(array, np.ndarray) else np.array(array, np.float32)
    return pb.Tensor(shape=numbers.shape, data=numbers.tobytes())


def numbers(done: pb.ItemDone | pb.Tensor, dtype: Any = np.float32) -> list[Any]:
    """The first output of an item."""
    output = done.outputs[0] if isinstance(done, pb.ItemDone) else done
    return np.frombuffer(output.data, dtype).reshape(output.shape).tolist()  # type: ignore[no-any-return]


class House:
    """A running host, and one stream to it.

    Args:
        channel: to it.
        shutdown: ends it.
        serving: its life.
    """

    def __init__(self, channel: grpc.aio.Channel, shutdown: Shutdown, serving: asyncio.Task[None]) -> None:
        self.serving = serving
        self.channel = channel
        self.shutdown = shutdown
        self.stub: plain_pb2_grpc.ModelHostAsyncStub = plain_pb2_grpc.ModelHostStub(channel)
        self._call = self.stub.Execute()
        self._done: dict[int, pb.BatchDone] = {}
        self._last_id = 0
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()

    async def send(self, model: str, *items: pb.Item, version: int = 0) -> int:
        """Sends a batch; returns its id."""
        return (await self.send_all([(model, items)], version))[0]

    async def send_all(self, batches: Sequence[tuple[str, Sequence[pb.Item]]], version: int = 0) -> list[int]:
        """Sends several batches in one message."""
        message = pb.ExecuteBatches()
        for model, items in batches:
            self._last_id += 1
            message.batches.add(batch_id=self._last_id, model=model, version=version, items=items)
        async with self._writing:
            await self._call.write(message)
        return [batch.batch_id for batch in message.batches]

    async def answer(self, batch_id: int) -> pb.BatchDone:
        """Waits for the end of a batch."""
        async with asyncio.timeout(PATIENCE_S), self._reading:
            while batch_id not in self._done:
                message = await self._call.read()
                assert isinstance(message, pb.ExecutedBatches), "the stream has ended"
                for done in message.done:
                    assert done.batch_id not in self._done, "answered twice"
                    self._done[done.batch_id] = done
        return self._done[batch_id]

    async def run(self, model: str, *items: pb.Item, version: int = 0) -> pb.BatchDone:
        """Sends a batch and waits for its end."""
        return await self.answer(await self.send(model, *items, version=version))

    async def load(self, name: str, **fields: Any) -> pb.HostedModel:
        """Loads a model."""
        response = await self.stub.Load(pb.LoadRequest(name=name, **fields), timeout=PATIENCE_S)
        return response.model

    async def unload(self, name: str) -> None:
        """Unloads a model."""
        await self.stub.Unload(pb.UnloadRequest(name=name), timeout=PATIENCE_S)

    async def models(self) -> dict[str, pb.HostedModel]:
        """What is served now."""
        call = self.stub.Describe(pb.DescribeRequest())
        try:
            description = await call.read()
            assert isinstance(description, pb.HostDescription)
            return {model.name: model for model in description.models}
        finally:
            call.cancel()

    async def until(self, is_so: Callable[[pb.HostDescription], bool]) -> pb.HostDescription:
        """Waits for a description that is so."""
        call = self.stub.Describe(pb.DescribeRequest())
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for description in call:
                    if is_so(description):
                        return description
        finally:
            call.cancel()
        raise AssertionError("the descriptions have ended")


def are_loaded(description: pb.HostDescription) -> bool:
    """Whether every model has been loaded, well or not."""
    return bool(description.models) and all(
        model.state in (pb.MODEL_STATE_READY, pb.MODEL_STATE_UNAVAILABLE) for model in description.models
    )


@asynccontextmanager
async def open_house(repository: Path, folder: Path, load: Sequence[str] = (), **settings: Any) -> AsyncIterator[House]:
    """A host that serves `repository` on a socket in `folder`, once all its models are loaded."""
    address = f"unix:{folder / 'models.sock'}"
    shutdown = Shutdown()
    server = HostServer(address, "host", HostConfig(repository=str(repository), load=tuple(load), **settings))
    serving = asyncio.create_task(server.run(shutdown))
    has_models = await asyncio.to_thread(server._repository.names)
    try:
        async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            await asyncio.wait_for(channel.channel_ready(), PATIENCE_S)
            house = House(channel, shutdown, serving)
            if has_models:
                await house.until(are_loaded)
            yield house
    finally:
        shutdown.signal()
        shutdown.signal()  # a model that still runs is not waited for
        await serving
