"""Plain models in the Open Inference Protocol: requests, metadata, configuration, statistics and the repository."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from steploom_batcher.plain.causes import item_error
from steploom_common.errors import (
    Exists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    QueueFull,
    SteploomError,
    Unavailable,
    Violation,
)
from steploom_gateway.config import GatewayConfig
from steploom_gateway.oip.parameters import Value, parameter
from steploom_gateway.oip.regions import Regions, Stretch
from steploom_gateway.oip.repository import Entry, State
from steploom_gateway.plain.model import PlainModel, TensorSpec
from steploom_gateway.plain.request import RequestReader
from steploom_gateway.plain.runner import Runner
from steploom_gateway.plain.statistics import statistics
from steploom_protos.batcher.v1 import plain_pb2 as batcher_pb
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb
from steploom_protos.worker.v1 import plain_pb2 as host_pb

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = pb.ModelMetadataResponse.TensorMetadata
Answer = TypeVar("Answer")

_BUSY_RETRY_S = 0.5
_STATES = {
    host_pb.MODEL_STATE_LOADING: State.LOADING,
    host_pb.MODEL_STATE_READY: State.READY,
    host_pb.MODEL_STATE_UNLOADING: State.UNLOADING,
}


class PlainInference:
    """Args:
    config: bounds.
    runner: of requests.
    regions: shared memory that clients register.
    has_workers: whether there are engine workers beside the model hosts, as far as is known.
    """

    def __init__(
        self, config: GatewayConfig, runner: Runner, regions: Regions, has_workers: Callable[[], bool]
    ) -> None:
        self._config = config
        self._runner = runner
        self._has_workers = has_workers
        self._regions = regions
        self._readers: dict[str, RequestReader] = {}
        self._index: set[str] = set()  # models of the repository that have never been loaded
        self._is_draining = False
        self._idle = asyncio.Event()
        self._num_open = 0
        self._idle.set()

    def __repr__(self) -> str:
        return f"PlainInference({self._runner!r}, open={self._num_open})"

    @property
    def num_open(self) -> int:
        """Requests that are being answered."""
        return self._num_open

    @property
    def is_ready(self) -> bool:
        """Whether a host serves, and requests are taken."""
        return self._runner.is_up and not self._is_draining and any(self._is_served(name) for name in self.names)

    @property
    def is_alone(self) -> bool:
        """Whether there are plain models and nothing else."""
        return self._runner.is_up and not self._has_workers()

    @property
    def names(self) -> Sequence[str]:
        """Of all models that a host has or had."""
        return list(self._runner.models)

    def has(self, name: str) -> bool:
        """Whether a name is that of a plain model."""
        return name in self._runner.models

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether it takes requests."""
        model = self._runner.models[name]
        is_served = version in ("", *map(str, model.versions))
        return self._runner.is_up and model.is_served and is_served and not self._is_draining

    async def infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Runs one request.

        Raises:
            SteploomError: what was asked for cannot be, or the batcher's refusal or failure.
        """
        if self._is_draining:
            raise Unavailable("the gateway is draining")
        if self._num_open >= self._config.max_calls:
            raise QueueFull(f"{self._num_open} requests are open", "gateway.max_calls", _BUSY_RETRY_S)
        self._num_open += 1
        self._idle.clear()
        try:
            return await self._infer(request, context)
        finally:
            self._num_open -= 1
            if not self._num_open:
                self._idle.set()

    def metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Its tensors.

        Raises:
            NotFound: no such version of it.
            Unavailable: it is not loaded.
        """
        model = self._served(name, version)
        return pb.ModelMetadataResponse(
            name=name,
            versions=[version] if version else [str(number) for number in model.versions],
            platform=model.platform,
            inputs=[_metadata(model, spec) for spec in model.inputs],
            outputs=[_metadata(model, spec) for spec in model.outputs],
        )

    def config(self, name: str, version: str) -> config_pb.ModelConfig:
        """As its host has completed it. Raises as `metadata`."""
        return self._served(name, version).config

    async def statistics(self, name: str, version: str) -> list[pb.ModelStatistics]:
        """Of all versions of a model, or of all models; 0 where nothing has been asked for yet.

        Raises:
            NotFound: no such version of it.
            Unavailable: it is not loaded, or the batcher cannot be reached.
        """
        wanted = [(name, number) for number in self._numbers(name, version)] if name else [
            (model.name, number) for model in self._runner.models.values() for number in model.versions
        ]  # fmt: skip
        if not wanted:
            return []
        answer = await self._call(self._runner.statistics())
        known = {(of.name, of.version): of for of in answer.models}
        return [
            statistics(known.get(key) or batcher_pb.PlainModelStatistics(name=key[0], version=key[1])) for key in wanted
        ]

    async def counts(self) -> Sequence[batcher_pb.PlainModelStatistics]:
        """Of every version that is or was served, at 0 from the start; none where there is no such model.

        Raises:
            Unavailable: the queue cannot be reached.
        """
        if not self._runner.models:
            return []
        return list((await self._call(self._runner.statistics())).models)

    def keeps(self, name: str) -> bool:
        """See `repository.Keeper`."""
        return name in self._runner.models or name in self._index

    async def entries(self) -> Sequence[Entry]:
        """See `repository.Keeper`."""
        if not self._runner.models and self._has_workers() and not self._index:
            return []
        try:
            answer = await self._call(self._runner.index())
        except Unavailable as error:
            reason = str(error)
            return [Entry(name, State.UNAVAILABLE, reason, "") for name in self.names]
        self._index = {entry.name for entry in answer.entries}
        return [
            Entry(
                entry.name,
                _STATES.get(entry.state, State.UNAVAILABLE),
                entry.reason,
                str(entry.version) if entry.version else "",
            )
            for entry in answer.entries
        ]

    async def load(self, name: str) -> None:
        """See `repository.Keeper`."""
        await self._call(self._runner.load(host_pb.LoadRequest(name=name)))

    async def unload(self, name: str) -> None:
        """See `repository.Keeper`."""
        if name in self._runner.models and not self._runner.models[name].is_ready:
            return
        await self._call(self._runner.unload(host_pb.UnloadRequest(name=name)))

    def drain(self) -> None:
        """Refuses new requests from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Returns when no request is open."""
        await self._idle.wait()

    async def _infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        name = request.model_name
        model = self._runner.models[name]
        version = self._version(model, request.model_version)
        reader = self._readers.get(name)
        if reader is None or reader.model is not model:
            reader = self._readers[name] = RequestReader(model, self._regions, self._config.max_message_bytes)
        order = reader.read(request) if reader.is_quick(request) else await asyncio.to_thread(reader.read, request)
        done = await self._runner.run(name, version, order, context.time_remaining() or 0.0)
        if done.HasField("error"):
            raise item_error(done.error)
        specs = [model.outputs[place] for place in order.outputs] if order.outputs else model.outputs
        if order.stretches:
            return await asyncio.to_thread(self._into_memory, request, version, specs, done, order.stretches)
        answer = pb.ModelInferResponse(model_name=name, model_version=str(version), id=request.id)
        for spec, tensor in zip(specs, done.outputs, strict=True):
            answer.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=tensor.shape)
            answer.raw_output_contents.append(tensor.data)
        return answer

    def _into_memory(
        self,
        request: pb.ModelInferRequest,
        version: int,
        specs: Sequence[TensorSpec],
        done: host_pb.ItemDone,
        stretches: dict[str, Stretch],
    ) -> pb.ModelInferResponse:
        answer = pb.ModelInferResponse(model_name=request.model_name, model_version=str(version), id=request.id)
        for spec, tensor in zip(specs, done.outputs, strict=True):
            output = answer.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=tensor.shape)
            stretch = stretches.get(spec.name)
            # an entry for every output: clients look by its index, and read it even of one that lies in shared memory
            answer.raw_output_contents.append(b"" if stretch else tensor.data)
            if stretch is None:
                continue
            try:
                self._regions.write(stretch, tensor.data)
            except ValueError as error:
                raise InvalidRequest(Violation(f"outputs.{spec.name}", str(error))) from None
            size = len(tensor.data)
            place: dict[str, Value] = {"region": stretch.region, "offset": stretch.offset, "byte_size": size}
            for key, value in place.items():
                output.parameters[f"shared_memory_{key}"].CopyFrom(parameter(value))
        return answer

    def _is_served(self, name: str) -> bool:
        return self._runner.models[name].is_served

    def _served(self, name: str, version: str) -> PlainModel:
        model = self._runner.models[name]
        self._version(model, version)
        return model

    def _numbers(self, name: str, version: str) -> Sequence[int]:
        model = self._runner.models[name]
        return [self._version(model, version)] if version else model.versions

    def _version(self, model: PlainModel, version: str) -> int:
        """The number of a version that is served; the newest for an empty one."""
        if not model.is_ready:
            doing = "unloaded" if model.state == host_pb.MODEL_STATE_UNLOADING else "loaded"
            raise Unavailable(f"model {model.name} is unavailable: {model.reason or f'it is being {doing}'}")
        if not version:
            return model.versions[-1]
        if not version.isascii() or not version.isdigit() or int(version[:20]) not in model.versions:
            raise NotFound(f"version of {model.name}", version[:100], [str(number) for number in model.versions])
        return int(version)

    async def _call(self, call: Awaitable[Answer]) -> Answer:
        """What a call gives, with a host's errors as this gateway's."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None


def _error(error: grpc.aio.AioRpcError) -> SteploomError:
    details = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.NOT_FOUND:
            return _Missing(details)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return FailedPrecondition(details)
        case grpc.StatusCode.ALREADY_EXISTS:
            return Exists(details)
    return Unavailable(details)


class _Missing(SteploomError):
    """A model that its repository does not have."""

    status = grpc.StatusCode.NOT_FOUND


def _metadata(model: PlainModel, spec: TensorSpec) -> Metadata:
    return Metadata(name=spec.name, datatype=spec.datatype.name, shape=model.whole_dims(spec))
