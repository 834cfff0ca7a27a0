"""A batcher without scheduler and workers: it inverts pictures, and misbehaves on command.

For tests of the gateway and of its clients over real sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from steploom_common.adapter import NONE
from steploom_common.arena import ArenaViews, Pixels, RegionRef
from steploom_common.errors import JobCancelled, SteploomError
from steploom_common.rpc import INTERNAL_OPTIONS, ErrorInterceptor, bind
from steploom_gateway.catalogue import Model
from steploom_protos.batcher.v1 import batcher_pb2, batcher_pb2_grpc
from steploom_protos.v1 import image_pb2
from steploom_protos.worker.v1 import worker_pb2

Context = grpc.aio.ServicerContext[Any, Any]
Event = batcher_pb2.JobEvent

MOMENTS = ("called", "admitted", "started", "stepped", "finished")

_GARBAGE = 77  # what a worker that is told too late writes into a picture


@dataclass
class Script:
    """How the next jobs go."""

    steps: int = 2  # of a job that names none
    refuse: SteploomError | None = None  # before admission
    fail: SteploomError | None = None  # after the first step
    hold_at: str = ""  # one of MOMENTS: wait there until `resume`, or the end of the job
    writes_late: bool = False  # a cancelled job's region is in use until `release`, and written to then
    end_early: bool = False  # end well, without a picture
    short_preview: bool = False  # previews lack a byte
    size_off: int = 0  # pixels by which the picture is too high


@dataclass
class _Job:
    is_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    is_free: asyncio.Event = field(default_factory=asyncio.Event)


class FakeBatcher(batcher_pb2_grpc.BatcherServicer):
    """A Batcher service; `start` and `stop` run it on an address of its own.

    Args:
        address: unix:/path or host:port.
        arena_dir: the only folder in which regions may lie.
        model: what it says that its worker serves; None: no worker has been up yet.
    """

    def __init__(self, address: str, arena_dir: Path, model: Model | None = None) -> None:
        self.address = address
        self.script = Script()
        self.model = model
        self.tiers = ("free", "pro")
        self.is_worker_up = True
        self.is_draining = False
        self.metrics = ""  # what it says to have counted
        self.unloaded: set[str] = set()  # adapters
        self.refuse_adapters: SteploomError | None = None  # of calls that load or unload them
        self.requests: list[batcher_pb2.SubmitRequest] = []  # all that came
        self.metadata: list[dict[str, str | bytes]] = []  # of their calls
        self.num_cancelled = 0
        self.num_finished = 0
        self.num_steps = 0  # of all jobs
        self.num_held = 0  # jobs that wait at the moment at which the script holds
        self.resume = asyncio.Event()
        self.release = asyncio.Event()
        self.reached = asyncio.Event()  # the moment at which the script holds, by one job at least
        self.credentials: grpc.ServerCredentials | None = None  # of TLS, from the next start on
        self.port = 0  # once started
        self._jobs: dict[str, _Job] = {}
        self._views = ArenaViews(arena_dir)
        self._releases: set[asyncio.Task[None]] = set()
        self._server: grpc.aio.Server | None = None

    @property
    def num_live(self) -> int:
        """Jobs whose regions are in use."""
        return len(self._jobs)

    def play(self, **script: Any) -> None:
        """Changes the script, for jobs that come from now on."""
        self.script = Script(**script)
        for event in (self.resume, self.release, self.reached):
            event.clear()

    async def start(self) -> None:
        """Listens."""
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=INTERNAL_OPTIONS)
        batcher_pb2_grpc.add_BatcherServicer_to_server(self, self._server)
        self.port = bind(self._server, self.address, self.credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Drops everything at once, as a killed process does."""
        if self._server:
            await self._server.stop(None)
        for task in self._releases:
            task.cancel()
        await asyncio.gather(*self._releases, return_exceptions=True)
        self._jobs.clear()

    async def Submit(
        self, request: batcher_pb2.SubmitRequest, context: Context
    ) -> AsyncGenerator[batcher_pb2.JobEvent]:
        """Inverts the picture."""
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        script = self.script
        if script.refuse:
            raise script.refuse
        job = self._jobs[request.job_id] = _Job()
        has_ended = False
        try:
            async for event in self._events(request, job, script):
                yield event
            has_ended = True
        finally:
            if has_ended:
                self._free(request.job_id)
            else:
                self._cancelled(request, script.writes_late)

    async def Cancel(self, request: batcher_pb2.CancelRequest, context: Context) -> batcher_pb2.CancelResponse:
        """Ends a job; returns when its regions are free."""
        job = self._jobs.get(request.job_id)
        if job:
            job.is_cancelled.set()
            await job.is_free.wait()
        return batcher_pb2.CancelResponse(was_alive=job is not None)

    async def Status(self, request: batcher_pb2.StatusRequest, context: Context) -> batcher_pb2.StatusResponse:
        """One worker, and the tiers."""
        status = batcher_pb2.StatusResponse(
            tiers=[
                batcher_pb2.StatusResponse.Tier(name=name, weight=weight) for weight, name in enumerate(self.tiers, 1)
            ],
            workers=[batcher_pb2.StatusResponse.WorkerStatus(is_up=self.is_worker_up, slots=8, stages=self._stages())],
            is_draining=self.is_draining,
        )
        if self.model:
            status.model.CopyFrom(_model_info(self.model))
            status.adapters.extend(
                batcher_pb2.AdapterStatus(name=name, state=batcher_pb2.ADAPTER_STATE_READY)
                for name in self.model.adapters
            )
        status.adapters.extend(
            batcher_pb2.AdapterStatus(name=name, state=batcher_pb2.ADAPTER_STATE_UNAVAILABLE, reason="unloaded")
            for name in self.unloaded
        )
        return status

    async def LoadAdapter(self, request: batcher_pb2.AdapterRequest, context: Context) -> batcher_pb2.AdapterResponse:
        """Has it from now on, unless it is told to refuse."""
        if self.refuse_adapters:
            raise self.refuse_adapters
        assert self.model
        assert request.model == self.model.name
        kept = [name for name in self.model.adapters if name != request.name]
        self.model = replace(self.model, adapters=(*kept, request.name))
        self.unloaded.discard(request.name)
        return batcher_pb2.AdapterResponse()

    async def UnloadAdapter(self, request: batcher_pb2.AdapterRequest, context: Context) -> batcher_pb2.AdapterResponse:
        """Has it no more, unless it is told to refuse."""
        if self.refuse_adapters:
            raise self.refuse_adapters
        assert self.model
        kept = tuple(name for name in self.model.adapters if name != request.name)
        self.model = replace(self.model, adapters=kept)
        self.unloaded.add(request.name)
        return batcher_pb2.AdapterResponse()

    async def Metrics(self, request: batcher_pb2.MetricsRequest, context: Context) -> batcher_pb2.MetricsResponse:
        """What it was given to say."""
        return batcher_pb2.MetricsResponse(text=self.metrics)

    async def Ticks(self, request: batcher_pb2.TicksRequest, context: Context) -> batcher_pb2.TicksResponse:
        """It has none."""
        return batcher_pb2.TicksResponse()

    async def Drain(self, request: batcher_pb2.DrainRequest, context: Context) -> batcher_pb2.DrainResponse:
        """Says that it drains; waits for nothing."""
        self.is_draining = True
        return batcher_pb2.DrainResponse(unfinished=self.num_live)

    async def _events(
        self, request: batcher_pb2.SubmitRequest, job: _Job, script: Script
    ) -> AsyncGenerator[batcher_pb2.JobEvent]:
        steps = request.steps or script.steps
        await self._moment("called", job, script)
        tier, model = request.tier or "pro", self.model.name if self.model else ""
        adapter = "" if request.adapter == NONE else request.adapter
        yield Event(admitted=Event.Admitted(predicted_s=0.25, steps=steps, tier=tier, model=model, adapter=adapter))
        await self._moment("admitted", job, script)
        if not request.without_progress:
            yield Event(started=Event.Started())
        await self._moment("started", job, script)
        for step in range(1, steps + 1):
            if not request.without_progress:
                yield Event(step=self._step(request, step, steps, script.short_preview))
            await self._moment("stepped", job, script)
            if script.fail:
                raise script.fail
            self.num_steps += 1
        if not script.end_early:
            self.num_finished += 1
            yield Event(finished=self._finished(request, steps, script.size_off))
        await self._moment("finished", job, script)

    def _stages(self) -> list[batcher_pb2.StatusResponse.StageUse]:
        """As of a worker that runs each job alone, with three rows a step."""
        use, jobs, steps = batcher_pb2.StatusResponse.StageUse, self.num_finished, self.num_steps
        return [
            use(stage=worker_pb2.STAGE_ENCODE, ticks=jobs, rows=jobs),
            use(stage=worker_pb2.STAGE_DENOISE, ticks=steps, rows=3 * steps),
            use(stage=worker_pb2.STAGE_DECODE, ticks=jobs, rows=jobs),
        ]

    async def _moment(self, name: str, job: _Job, script: Script) -> None:
        if script.hold_at != name:
            return
        waits = [asyncio.create_task(event.wait()) for event in (self.resume, job.is_cancelled)]
        self.num_held += 1
        self.reached.set()
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.num_held -= 1
            for wait in waits:
                wait.cancel()
        if job.is_cancelled.is_set():
            raise JobCancelled("cancelled")

    def _step(
        self, request: batcher_pb2.SubmitRequest, step: int, steps: int, is_short: bool
    ) -> batcher_pb2.JobEvent.Step:
        event = Event.Step(step=step, steps=steps)
        if request.preview_every and step % request.preview_every == 0:
            event.preview.CopyFrom(_inline(255 - self._picture(request)[::2, ::2]))
            if is_short:
                event.preview.inline = event.preview.inline[:-1]
        return event

    def _finished(self, request: batcher_pb2.SubmitRequest, steps: int, size_off: int) -> batcher_pb2.JobEvent.Finished:
        drawn = 255 - self._picture(request)
        timings = image_pb2.Timings(queue_s=0.01, encode_s=0.02, denoise_s=0.03, decode_s=0.04, ticks=steps + 2)
        timings.mean_rows_per_tick = 3.0
        if not request.HasField("output"):
            pixels = _inline(drawn)
        else:
            self._output(request)[:] = drawn
            pixels = worker_pb2.Pixels(height=drawn.shape[0], width=drawn.shape[1], region=request.output)
        pixels.height += size_off
        return Event.Finished(pixels=pixels, timings=timings)

    def _picture(self, request: batcher_pb2.SubmitRequest) -> Pixels:
        pixels = request.pixels
        if pixels.WhichOneof("place") == "inline":
            return np.frombuffer(pixels.inline, np.uint8).reshape(pixels.height, pixels.width, 3)
        return self._views.picture(_region(pixels.region), pixels.height, pixels.width)

    def _output(self, request: batcher_pb2.SubmitRequest) -> Pixels:
        return self._views.picture(_region(request.output), request.pixels.height, request.pixels.width)

    def _cancelled(self, request: batcher_pb2.SubmitRequest, writes_late: bool) -> None:
        self.num_cancelled += 1
        if not writes_late:
            self._free(request.job_id)
            return
        task = asyncio.create_task(self._write_late(request))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _write_late(self, request: batcher_pb2.SubmitRequest) -> None:
        """A decode that was under way when the job was cancelled."""
        await self.release.wait()
        if request.HasField("output"):
            self._output(request)[:] = _GARBAGE
        self._free(request.job_id)

    def _free(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job:
            job.is_free.set()


def serving_model(side: int = 32) -> Model:
    """A small model with one adapter."""
    return Model("fake", side, side, 50, ("turbo",), (4, side // 8, side // 8))


def _model_info(model: Model) -> worker_pb2.ModelInfo:
    return worker_pb2.ModelInfo(
        name=model.name,
        height=model.height,
        width=model.width,
        max_steps=model.max_steps,
        latent_shape=model.latent_shape,
        adapters=[worker_pb2.Adapter(name=name) for name in model.adapters],
    )


def _inline(pixels: Pixels) -> worker_pb2.Pixels:
    return worker_pb2.Pixels(height=pixels.shape[0], width=pixels.shape[1], inline=pixels.tobytes())


def _region(region: worker_pb2.Region) -> RegionRef:
    return RegionRef(region.path, region.offset, region.size, region.lease)
