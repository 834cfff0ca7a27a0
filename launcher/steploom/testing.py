"""A gateway without a model behind it, for tests of the SDK and of programs that use it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image

from steploom_common.adapter import NONE
from steploom_common.errors import SteploomError
from steploom_common.rpc import ErrorInterceptor, bind
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceServicer, add_ImageServiceServicer_to_server

Context = grpc.aio.ServicerContext[Any, Any]

_PILLOW_NAMES = {pb.IMAGE_FORMAT_JPEG: "JPEG", pb.IMAGE_FORMAT_WEBP: "WEBP"}
_SIDE = 8  # pixels of every answer


class FakeGateway(ImageServiceServicer):
    """Answers every request with a small grey picture, or with `error`.

    Args:
        error: what to answer with instead of a picture.
        steps: denoising steps of a request that names none.
        step_s: seconds a step takes.
    """

    def __init__(self, error: SteploomError | None = None, steps: int = 3, step_s: float = 0.0) -> None:
        self.error = error
        self.steps = steps
        self.step_s = step_s
        self.address = ""  # once it listens
        self.requests: list[pb.EditRequest] = []
        self.authorizations: list[str] = []  # of each of them; empty: none
        self.cancelled = threading.Event()  # a stream has ended before its time

    async def Edit(self, request: pb.EditRequest, context: Context) -> pb.EditResponse:  # noqa: N802
        """See image.proto."""
        async for event in self.EditStream(request, context):
            if event.HasField("done"):
                return event.done
        raise AssertionError("the last event is done")

    async def EditStream(self, request: pb.EditRequest, context: Context) -> AsyncIterator[pb.EditEvent]:  # noqa: N802
        """See image.proto."""
        self.requests.append(request)
        self.authorizations.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
        if self.error is not None:
            raise self.error
        steps = request.steps or self.steps
        try:
            yield pb.EditEvent(queued=pb.EditEvent.Queued(request_id="fake-1", predicted_s=0.5))
            yield pb.EditEvent(started=pb.EditEvent.Started())
            for step in range(1, steps + 1):
                await asyncio.sleep(self.step_s)
                yield pb.EditEvent(step=_step(request, step, steps))
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        yield pb.EditEvent(done=_response(request, steps))


@contextmanager
def serving(gateway: FakeGateway, credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeGateway]:
    """Serves `gateway` on a free port of this host, from a thread of its own; with TLS where credentials are given."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-gateway")
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(_serve(gateway, credentials), loop).result(10.0)
        yield gateway
        asyncio.run_coroutine_threadsafe(server.stop(0.2), loop).result(10.0)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10.0)
        loop.close()


async def _serve(gateway: FakeGateway, credentials: grpc.ServerCredentials | None) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_ImageServiceServicer_to_server(gateway, server)
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    gateway.address = f"127.0.0.1:{bind(server, '127.0.0.1:0', credentials)}"
    await server.start()
    return server


def _step(request: pb.EditRequest, step: int, steps: int) -> pb.EditEvent.Step:
    event = pb.EditEvent.Step(step=step, steps=steps)
    if request.preview_every and step % request.preview_every == 0:
        event.preview.encoded = _picture(pb.IMAGE_FORMAT_PNG).encoded
    return event


def _response(request: pb.EditRequest, steps: int) -> pb.EditResponse:
    format = request.output_format or pb.IMAGE_FORMAT_PNG
    return pb.EditResponse(
        image=_picture(format),
        format=format,
        height=_SIDE,
        width=_SIDE,
        seed=request.seed if request.HasField("seed") else 42,
        timings=pb.Timings(queue_s=0.001, denoise_s=0.01, total_s=0.02, ticks=steps + 2, mean_rows_per_tick=3.0),
        request_id=request.request_id or "fake-1",
        model=request.model or "fake",
        tier=request.tier or "pro",
        adapter="" if request.adapter == NONE else request.adapter,
    )


def _picture(format: pb.ImageFormat) -> pb.Image:
    grey = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128))
    if format == pb.IMAGE_FORMAT_RAW:
        return pb.Image(tensor=pb.RawImage(data=grey.tobytes(), height=_SIDE, width=_SIDE))
    buffer = io.BytesIO()
    grey.save(buffer, _PILLOW_NAMES.get(format, "PNG"))
    return pb.Image(encoded=buffer.getvalue())
