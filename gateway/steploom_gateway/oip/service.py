"""GRPCInferenceService: each call of the Open Inference Protocol, in front of the same edits as ImageService."""

# ruff: noqa: ARG002 - many calls look at their name alone

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from importlib import metadata as packages
from typing import Any

import grpc.aio

from steploom_common.errors import InvalidRequest, NotFound, SteploomError, Unavailable, Unsupported
from steploom_common.logs import about
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.caller import current_caller
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.config import GatewayConfig
from steploom_gateway.oip import log_levels, models
from steploom_gateway.oip.answers import Answers, failed, streamed
from steploom_gateway.oip.names import SERVER, STAGES, VERSION, check_model, check_whole
from steploom_gateway.oip.orders import Wanted, read_order, renamed
from steploom_gateway.oip.pipeline import Pipeline
from steploom_gateway.oip.regions import Regions
from steploom_gateway.oip.repository import Repository
from steploom_gateway.oip.statistics import statistics
from steploom_gateway.oip.stream import interleaved
from steploom_gateway.plain.inference import PlainInference
from steploom_gateway.service import Asked, ImageService, retry_id_of
from steploom_gateway.supervisor import Supervisor
from steploom_gateway.tally import Tally
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import grpc_service_pb2_grpc
from steploom_protos.v1 import image_pb2

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_EXTENSIONS = ("statistics", "model_configuration", "schedule_policy", "parameters", "logging")
_MAX_PER_STREAM = 256  # requests of one stream that are open at once; further ones are not read before one has ended


class InferenceService(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Args:
    config: what may be asked for.
    batcher: what it serves.
    images: through which edits run.
    tally: of what has been served.
    regions: shared memory that clients register.
    plain: models beside the pipeline; a name that is one of theirs is never the pipeline's.
    """

    def __init__(
        self,
        config: GatewayConfig,
        batcher: BatcherClient,
        images: ImageService,
        tally: Tally,
        regions: Regions,
        plain: PlainInference,
    ) -> None:
        self._config = config
        self._batcher = batcher
        self._images = images
        self._tally = tally
        self._regions = regions
        self._plain = plain
        self._pipeline = Pipeline(batcher, images, Supervisor(config.supervisor))
        self._repository = Repository((self._pipeline, plain), config.remote_model_control)

    def __repr__(self) -> str:
        return f"InferenceService({self._images!r}, {self._plain!r}, {self._regions!r})"

    @property
    def is_ready(self) -> bool:
        """Whether a request that comes now is likely to be taken: an edit, where there are engine workers."""
        return self._images.is_ready or (self._plain.is_alone and self._plain.is_ready)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """An answer is a sign of life."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """As the health check says."""
        return pb.ServerReadyResponse(ready=self.is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """The server is ready, and the model exists."""
        if self._plain.has(request.name):
            return pb.ModelReadyResponse(ready=self._plain.is_model_ready(request.name, request.version))
        is_ready = request.version in ("", VERSION) and self._pipeline.is_ready(request.name)
        return pb.ModelReadyResponse(ready=is_ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name, version, and what of the protocol's extensions there is."""
        shared = ("system_shared_memory",) if self._regions.is_enabled else ()
        repository = ("model_repository",) if self._config.remote_model_control else ()
        return pb.ServerMetadataResponse(
            name=SERVER, version=packages.version(SERVER), extensions=[*_EXTENSIONS, *shared, *repository]
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The pipeline's tensors, or a step's, or a plain model's."""
        if self._plain.has(request.name):
            return self._plain.metadata(request.name, request.version)
        catalogue = self._catalogue(request.name)
        return models.metadata(catalogue.model, check_model(catalogue, request.name, request.version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """The pipeline as an ensemble, or one of its steps, or a plain model."""
        if self._plain.has(request.name):
            return pb.ModelConfigResponse(config=self._plain.config(request.name, request.version))
        catalogue = self._catalogue(request.name)
        stage = check_model(catalogue, request.name, request.version)
        return pb.ModelConfigResponse(config=models.config(catalogue, stage))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Of one model, or of the pipeline and its steps and all plain models."""
        if self._plain.has(request.name):
            return pb.ModelStatisticsResponse(model_stats=await self._plain.statistics(request.name, request.version))
        plain = await self._plain.statistics("", "") if not request.name and self._plain.is_ready else []
        if not request.name and self._plain.is_alone:
            return pb.ModelStatisticsResponse(model_stats=plain)
        await self._batcher.latest()
        catalogue = self._catalogue(request.name)
        stages = [check_model(catalogue, request.name, request.version)] if request.name else ["", *STAGES]
        pipeline = [statistics(catalogue, self._tally, stage) for stage in stages]
        return pb.ModelStatisticsResponse(model_stats=[*pipeline, *plain])

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One picture, without progress; or what a plain model makes of its tensors."""
        if self._plain.has(request.model_name):
            return await self._plain.infer(request, context)
        last = pb.ModelInferResponse()
        async with aclosing(self._answers(request, context, is_stream=False)) as answers:
            async for answer, _ in answers:
                last = answer
        return last

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Pictures with their progress; requests run side by side."""

        def answer(request: pb.ModelInferRequest) -> AsyncGenerator[pb.ModelStreamInferResponse]:
            return self._streamed(request, context)

        async with aclosing(interleaved(request_iterator, answer, _MAX_PER_STREAM)) as answers:
            async for part in answers:
                yield part

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """What every keeper has; of a diffusion pipeline nothing before a worker has been up."""
        return await self._repository.index(request)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """As the keeper of the name does it; answered when it serves."""
        await self._repository.load(request)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """As the keeper of the name does it; answered when no new request gets it."""
        await self._repository.unload(request)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        """One region, or all."""
        answer = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions.listed(request.name):
            status = pb.SystemSharedMemoryStatusResponse.RegionStatus(
                name=region.name, key=region.key, offset=region.offset, byte_size=region.size
            )
            answer.regions[region.name].CopyFrom(status)
        return answer

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Opens it, where that is enabled."""
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """One region, or all; nothing where there is none."""
        self._regions.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        """There is none."""
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Refused."""
        raise Unsupported("pictures are sized on the CPU: memory of a device cannot be registered")

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Nothing to forget."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        """Off, and cannot be turned on here."""
        if request.model_name and not self._plain.has(request.model_name):
            check_model(self._catalogue(request.model_name), request.model_name, "")
        for name, setting in request.settings.items():
            if name != "trace_level" or list(setting.value) not in ([], ["OFF"]):
                raise Unsupported("this protocol's traces do not exist here; trace_level is OFF")
        answer = pb.TraceSettingResponse()
        answer.settings["trace_level"].value.append("OFF")
        return answer

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        """Of this gateway."""
        log_levels.change(request.settings, self._config.remote_log_settings)
        return log_levels.log_settings()

    async def _streamed(
        self, request: pb.ModelInferRequest, context: Context
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """The answers to one request of a stream; an error is one of them."""
        model_name, request_id = request.model_name, request.id
        try:
            with current_caller().place():
                if self._plain.has(model_name):
                    yield streamed(await self._plain.infer(request, context), True)
                    return
                async with aclosing(self._answers(request, context, is_stream=True)) as answers:
                    async for answer, is_final in answers:
                        yield streamed(answer, is_final)
        except SteploomError as error:
            yield failed(model_name, request_id, error)
        except Exception as error:
            error_id = secrets.token_hex(6)
            log.error("error id %s", error_id, exc_info=error, extra=about(error_id=error_id))
            yield failed(model_name, request_id, SteploomError(f"internal error; error id {error_id}"))

    async def _answers(
        self, request: pb.ModelInferRequest, context: Context, is_stream: bool
    ) -> AsyncGenerator[tuple[pb.ModelInferResponse, bool]]:
        """The answers to one request, and whether each is the last."""
        if self._plain.is_alone:
            raise NotFound("model", request.model_name[:100], self._plain.names)
        order = _Order(self._config, self._regions, request)
        method = "ModelStreamInfer" if is_stream else "ModelInfer"
        try:
            # Triton's ids only name requests: one that is to be known when it comes again is given with the call
            retry_id = "" if is_stream else retry_id_of(context)
            async with aclosing(self._images.run(order.read, context, method, is_stream, retry_id)) as events:
                async for event in events:
                    is_final = event.HasField("done")
                    if is_final or (is_stream and order.wanted.has_progress):
                        yield await order.answer(event), is_final
        except InvalidRequest as error:
            raise renamed(error) from None

    def _catalogue(self, name: str = "") -> Catalogue:
        if self._batcher.catalogue is None:
            if name and self._plain.is_alone:
                raise NotFound("model", name[:100], self._plain.names)
            raise Unavailable("no worker has been up yet")
        return self._batcher.catalogue


class _Order:
    """One request on its way."""

    def __init__(self, config: GatewayConfig, regions: Regions, request: pb.ModelInferRequest) -> None:
        self._config = config
        self._regions = regions
        self._request = request
        self.wanted = Wanted({}, has_progress=False)  # once it is read

    async def read(self, catalogue: Catalogue) -> Asked:
        """See `read_order`."""
        check_whole(catalogue, self._request.model_name, self._request.model_version)
        asked, self.wanted = await asyncio.to_thread(
            read_order, self._request, catalogue, self._regions, self._config.max_message_bytes
        )
        return asked

    async def answer(self, event: image_pb2.EditEvent) -> pb.ModelInferResponse:
        """What the caller gets of an event."""
        answers = Answers(self._request.model_name, self._request.id, self.wanted, self._regions)
        if event.HasField("done"):
            return await asyncio.to_thread(answers.done, event.done)
        return answers.progress(event)
