"""The gRPC service: protobuf messages to commands, reports to protobuf messages, one stream at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

import grpc
import grpc.aio

from steploom_common.arena import RegionRef
from steploom_engine_worker.commands import (
    AdapterChanged,
    Admit,
    Command,
    DropAdapter,
    Leaving,
    LoadAdapter,
    News,
    Picture,
    Prepared,
    Preparing,
    Ready,
    Release,
    Tick,
    TickDone,
)
from steploom_engine_worker.engine import AdapterVersion, Costs, MemoryUse, ModelInfo, Stage
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.worker import Session, SessionTaken, Worker, WorkerLeaving
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[worker_pb2.Command, worker_pb2.Report]
_Reports = asyncio.Queue[TickDone | News | None]  # None: the end

# How long a command waits before the next try where the worker's queue is full.
_FULL_WAIT_S = 0.005


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Lets one batcher at a time drive the worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tell_end: Callable[[], None] = _nobody  # ends the stream that is open
        worker.ended.add_done_callback(lambda _: self._tell_end())  # once: a future keeps its callbacks for ever

    async def Drive(  # type: ignore[override]
        self, request_iterator: AsyncIterator[worker_pb2.Command], context: Context
    ) -> None:
        """Obeys until the batcher ends the stream, the stream breaks, or the worker ends."""
        loop = asyncio.get_running_loop()
        reports: _Reports = asyncio.Queue()
        try:
            session = self._worker.open_session(
                lambda done: _post(loop, reports, done), lambda news: _post(loop, reports, news)
            )
        except SessionTaken as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except WorkerLeaving as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        reader = asyncio.create_task(self._read(request_iterator, session))
        reader.add_done_callback(lambda _: reports.put_nowait(None))
        self._tell_end = lambda: _post(loop, reports, None)
        if self._worker.ended.done():
            self._tell_end()
        try:
            await self._answer(reports, context)
        finally:
            reader.cancel()
            self._tell_end = _nobody
            self._worker.close_session(session)
        if self._worker.ended.done():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker has ended")

    async def _answer(self, reports: _Reports, context: Context) -> None:
        try:
            await asyncio.wrap_future(self._worker.ready)
        except Exception as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the worker could not start: {error}")
        await context.write(report_ready(self._worker.offer))
        while (report := await reports.get()) is not None:
            await context.write(report_tick(report) if isinstance(report, TickDone) else report_news(report))

    async def _read(self, requests: AsyncIterator[worker_pb2.Command], session: Session) -> None:
        async for message in requests:
            try:
                commands = [parse_command(part) for part in (message, *message.more)]
            except ValueError as error:
                log.error("the stream ends, a command is wrong: %s", error)
                return
            for command in commands:
                while not self._worker.submit(session, command):  # noqa: ASYNC110 - the other side is a thread
                    await asyncio.sleep(_FULL_WAIT_S)


def _nobody() -> None:
    """No stream is open."""


def _post(loop: asyncio.AbstractEventLoop, reports: _Reports, report: TickDone | News | None) -> None:
    """From a thread of the worker to the loop; nothing where the loop is gone."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(reports.put_nowait, report)


def parse_command(message: worker_pb2.Command) -> Command:
    """The command of a message.

    Raises:
        ValueError: it has none, or one of an unknown stage or sampler.
    """
    kind = message.WhichOneof("command")
    if kind == "admit":
        return _admit(message.admit)
    if kind == "tick":
        tick = message.tick
        return Tick(tick.tick_id, Stage(tick.stage), tuple(tick.slots), tuple(tick.steps))
    if kind == "release":
        return Release(message.release.slot)
    if kind == "load_adapter":
        load = message.load_adapter
        return LoadAdapter(load.change_id, load.name, load.at_once)
    if kind == "drop_adapter":
        drop = message.drop_adapter
        return DropAdapter(drop.change_id, drop.name, drop.digest)
    raise ValueError("it is empty")


def _admit(admit: worker_pb2.Admit) -> Admit:
    return Admit(
        job_id=admit.job_id,
        slot=admit.slot,
        instruction=admit.instruction,
        picture=_picture(admit.pixels),
        output=_region(admit.output) if admit.HasField("output") else None,
        steps=admit.steps,
        guidance_scale=admit.guidance_scale,
        image_guidance_scale=admit.image_guidance_scale,
        seed=admit.seed,
        sampler=Sampler(admit.sampler) if admit.sampler else None,
        preview_every=admit.preview_every,
        adapter=admit.adapter,
        traceparent=admit.traceparent,
        adapter_digest=admit.adapter_digest,
    )


def _picture(pixels: worker_pb2.Pixels) -> Picture:
    region = _region(pixels.region) if pixels.HasField("region") else None
    return Picture(pixels.height, pixels.width, pixels.inline, region)


def _region(region: worker_pb2.Region) -> RegionRef:
    return RegionRef(region.path, region.offset, region.size, region.lease)


def report_ready(ready: Ready) -> worker_pb2.Report:
    """The first message of a stream."""
    return worker_pb2.Report(
        ready=worker_pb2.Ready(
            worker_id=ready.worker_id,
            engine=ready.engine,
            device=ready.device,
            slots=ready.slots,
            model=_model(ready.model),
            costs=_costs(ready.costs),
            progress=_progress(ready.progress),
            memory=_memory(ready.memory),
        )
    )


def report_news(news: News) -> worker_pb2.Report:
    """What is told beside the ends of ticks."""
    match news:
        case Leaving():
            return worker_pb2.Report(leaving=worker_pb2.Leaving())
        case Preparing():
            return worker_pb2.Report(preparing=worker_pb2.Preparing())
        case Prepared():
            costs, progress = _costs(news.costs), _progress(news.progress)
            prepared = worker_pb2.Prepared(costs=costs, progress=progress, memory=_memory(news.memory))
            return worker_pb2.Report(prepared=prepared)
        case AdapterChanged():
            changed = worker_pb2.AdapterChanged(
                change_id=news.change_id,
                error=news.error,
                is_missing=news.is_missing,
                digest=news.digest,
                adapters=[_adapter(version) for version in news.versions],
                memory=_memory(news.memory),
            )
            return worker_pb2.Report(adapter_changed=changed)


def _costs(costs: Costs) -> list[worker_pb2.BucketCost]:
    return [
        worker_pb2.BucketCost(stage=int(stage), bucket=bucket, seconds=seconds)  # type: ignore[arg-type]
        for (stage, bucket), seconds in costs.items()
    ]


def _memory(memory: MemoryUse) -> worker_pb2.Memory:
    return worker_pb2.Memory(
        total_bytes=memory.total, free_bytes=memory.free, slots_bytes=memory.slots, weights_bytes=memory.weights
    )


def _progress(progress: tuple[int, int]) -> worker_pb2.Progress:
    done, total = progress
    return worker_pb2.Progress(done=done, total=total)


def _model(model: ModelInfo) -> worker_pb2.ModelInfo:
    return worker_pb2.ModelInfo(
        name=model.name,
        height=model.height,
        width=model.width,
        max_steps=model.max_steps,
        default_guidance_scale=model.default_guidance_scale,
        default_image_guidance_scale=model.default_image_guidance_scale,
        default_sampler=int(model.default_sampler),  # type: ignore[arg-type]
        adapters=[_adapter(version) for version in model.versions],
        latent_shape=model.latent_shape,
        digest=model.digest,
    )


def _adapter(version: AdapterVersion) -> worker_pb2.Adapter:
    return worker_pb2.Adapter(name=version.name, digest=version.digest, **asdict(version.traits))


def report_tick(done: TickDone) -> worker_pb2.Report:
    """The answer to a tick."""
    pictures = [worker_pb2.SlotPixels(slot=item.slot, pixels=_pixels(item.picture)) for item in done.pictures]
    failures = [worker_pb2.SlotFailure(slot=slot, error=error) for slot, error in done.failures.items()]
    return worker_pb2.Report(
        tick_done=worker_pb2.TickDone(
            tick_id=done.tick_id,
            status=int(done.status),  # type: ignore[arg-type]
            seconds=done.seconds,
            error=done.error,
            pixels=pictures,
            start_unix_s=done.start_unix_s,
            failures=failures,
            idle_s=done.idle_s,
        )
    )


def _pixels(picture: Picture) -> worker_pb2.Pixels:
    if picture.region is None:
        return worker_pb2.Pixels(height=picture.height, width=picture.width, inline=picture.data)
    region = worker_pb2.Region(path=picture.region.path, offset=picture.region.offset, size=picture.region.size)
    return worker_pb2.Pixels(height=picture.height, width=picture.width, region=region)
