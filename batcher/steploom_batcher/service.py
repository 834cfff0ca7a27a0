"""The Batcher service: requests become plain data here, are checked and filled with defaults, and run by the driver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import grpc.aio

from steploom_batcher.adapter_offers import AdapterStatus
from steploom_batcher.adapters import choose_adapter
from steploom_batcher.causes import refusal_error
from steploom_batcher.config import BatcherConfig
from steploom_batcher.driver import Driver, key_of
from steploom_batcher.messages import Begun, Done, Event, Memory, Model, Payload, Picture, Progress, Ready
from steploom_batcher.metrics import BatcherMetrics, current
from steploom_batcher.recent_ticks import RanTick, RecentTicks
from steploom_batcher.traces import JobTraces
from steploom_batcher.types import JobSpec, Refused, WorkerStats
from steploom_batcher.worker_link import WorkerLink
from steploom_batcher.worker_wire import model_to_wire, picture_from_wire, picture_to_wire, region_from_wire
from steploom_common.adapter import rows_with
from steploom_common.arena import RegionRef
from steploom_common.errors import InvalidRequest, NotFound, Unavailable, Violation
from steploom_common.logs import concerns, ids_of
from steploom_common.tracing import traceparent_in
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.v1 import image_pb2
from steploom_protos.worker.v1 import worker_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_ANSWER_S = 0.05  # of a Drain call's time, kept for the answer
_STARTED = pb.JobEvent(started=pb.JobEvent.Started())


class BatcherService(batcher_pb2_grpc.BatcherServicer):
    """Args:
    config: tiers and their defaults.
    driver: runs the jobs.
    links: for Status and Metrics.
    metrics: what is counted.
    traces: of jobs whose requests are traced.
    recent: the latest ticks.
    unix_time: seconds since the epoch.
    """

    def __init__(
        self,
        config: BatcherConfig,
        driver: Driver,
        links: Sequence[WorkerLink],
        metrics: BatcherMetrics,
        traces: JobTraces,
        recent: RecentTicks,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._driver = driver
        self._links = links
        self._metrics = metrics
        self._traces = traces
        self._recent = recent
        self._unix_time = unix_time
        self._adapter_tasks: set[asyncio.Task[None]] = set()  # that load and unload

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> AsyncIterator[pb.JobEvent]:
        """Runs one job; see the .proto."""
        model = self._model(request)
        traceparent = traceparent_in(context.invocation_metadata())
        concerns(**ids_of(request.job_id, traceparent))
        spec, payload = self._job(request, model, traceparent)
        answer = self._driver.submit(spec, payload, not request.without_progress)
        if isinstance(answer, Refused):
            raise refusal_error(answer, spec)
        admitted, feed = answer
        clock = asyncio.get_running_loop().time
        admitted_at = clock()
        self._metrics.admitted(spec.tier, spec.deadline - admitted_at - admitted.predicted_s)
        self._traces.begin(spec, context.invocation_metadata())
        self._recent.begin(spec)

        def abandon() -> None:
            self._traces.end(spec.job_id)
            self._recent.end(spec.job_id)
            if not feed.has_ended:
                self._driver.cancel(spec.job_id)

        # a call that is cancelled while a message is on its way does not run this generator to its end
        context.add_done_callback(lambda _: abandon())  # type: ignore[arg-type]
        try:
            yield pb.JobEvent(
                admitted=pb.JobEvent.Admitted(
                    predicted_s=admitted.predicted_s,
                    steps=spec.steps,
                    tier=spec.tier,
                    model=model.name,
                    adapter=payload.adapter,
                )
            )
            async for event in feed.events():
                if isinstance(event, Done):
                    self._metrics.finished(spec.tier, clock() - admitted_at, admitted.predicted_s)
                yield _event_to_wire(event)
        finally:
            abandon()

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """Ends a job; returns when no worker holds it."""
        del context
        feed = self._driver.cancel(request.job_id)
        if feed is None:
            return pb.CancelResponse(was_alive=False)
        await feed.ended()
        return pb.CancelResponse(was_alive=True)

    async def LoadAdapter(self, request: pb.AdapterRequest, context: Context) -> pb.AdapterResponse:
        """Loads an adapter into every worker; goes on where the caller does not wait."""
        del context
        await self._change(self._driver.adapters.load(self._model(request).name, request.name))
        return pb.AdapterResponse()

    async def UnloadAdapter(self, request: pb.AdapterRequest, context: Context) -> pb.AdapterResponse:
        """Offers an adapter no more."""
        del context
        await self._change(self._driver.adapters.unload(self._model(request).name, request.name))
        return pb.AdapterResponse()

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(change)
        self._adapter_tasks.add(task)
        task.add_done_callback(self._adapter_ended)
        await asyncio.shield(task)

    def _adapter_ended(self, task: asyncio.Task[None]) -> None:
        self._adapter_tasks.discard(task)
        if not task.cancelled():
            task.exception()  # has been told, or nobody waits for it

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        """Stops admission and waits for the jobs that live."""
        del request
        self._driver.drain()
        remaining = context.time_remaining()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._driver.idle(), None if remaining is None else max(0.0, remaining - _ANSWER_S))
        return pb.DrainResponse(unfinished=self._driver.num_jobs)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        """What is up, queued and running now."""
        del request, context
        stats = self._driver.statistics()
        models = list(self._driver.models.values())
        return pb.StatusResponse(
            model=model_to_wire(models[0]) if models else None,
            tiers=[
                pb.StatusResponse.Tier(
                    name=name,
                    queued=tier.queued,
                    running=tier.running,
                    max_queued=tier.max_queued,
                    weight=self._config.tiers[name].weight,
                )
                for name, tier in stats.tiers.items()
            ],
            workers=[_worker_status(link, stats.workers.get(link.name)) for link in self._links],
            ticks=sum(stats.ticks.values()),
            rows=stats.denoise_rows,
            mean_rows_per_tick=stats.mean_rows_per_tick,
            finished=stats.finished,
            failed=stats.failed,
            cancelled=stats.cancelled,
            refused=stats.refused,
            is_draining=self._driver.is_draining,
            policy=self._config.policy,
            submitted=stats.submitted,
            padding_rows=stats.padding_rows,
            expired=stats.expired,
            batcher_cpu_s=time.process_time(),
            adapters=[_adapter_status(item) for item in self._driver.adapters.statuses(models[0].name)]
            if models
            else (),
        )

    async def Metrics(self, request: pb.MetricsRequest, context: Context) -> pb.MetricsResponse:
        """What has been counted; written off the loop, which has ticks to plan."""
        del request, context
        families = current(self._driver.statistics(), self._links, self._driver.is_draining)
        return pb.MetricsResponse(text=await asyncio.to_thread(self._metrics.text, families))

    async def Ticks(self, request: pb.TicksRequest, context: Context) -> pb.TicksResponse:
        """The latest ticks."""
        del context
        ticks, last, lost = self._recent.since(request.after)
        return pb.TicksResponse(ticks=map(_ran_tick, ticks), last=last, lost=lost)

    def _model(self, request: pb.SubmitRequest | pb.AdapterRequest) -> Model:
        models = self._driver.models
        if not models:
            raise Unavailable("no worker has been up yet")
        if not request.model:
            return next(iter(models.values()))
        if request.model not in models:
            raise NotFound("model", request.model, list(models))
        return models[request.model]

    def _job(self, request: pb.SubmitRequest, model: Model, traceparent: str) -> tuple[JobSpec, Payload]:
        tier_name = request.tier or self._config.default_tier
        tier = self._config.tiers.get(tier_name)
        if tier is None:
            raise NotFound("tier", tier_name, list(self._config.tiers))
        steps = request.steps or tier.steps
        scales = (
            request.guidance_scale or model.guidance_scale,
            request.image_guidance_scale or model.image_guidance_scale,
        )
        adapter = choose_adapter(request.adapter, tier.adapter, model.adapters, steps, *scales)
        payload = Payload(
            instruction=request.instruction,
            picture=picture_from_wire(request.pixels),
            output=region_from_wire(request.output) if request.HasField("output") else None,
            steps=steps,
            guidance_scale=scales[0],
            image_guidance_scale=scales[1],
            seed=request.seed,
            sampler=request.sampler or model.sampler,
            preview_every=request.preview_every,
            adapter=adapter,
            adapter_digest=self._driver.adapters.digest(model.name, adapter),
        )
        self._check(request.job_id, payload, model)
        spec = JobSpec(
            job_id=request.job_id,
            key=key_of(model),
            tier=tier_name,
            steps=steps,
            rows=rows_with(model.adapters.get(adapter), *scales),
            deadline=self._deadline(request.deadline_unix_s, tier.deadline_s),
            caller=request.caller,
            traceparent=traceparent,
        )
        return spec, payload

    def _check(self, job_id: str, payload: Payload, model: Model) -> None:
        size = payload.picture.height, payload.picture.width
        if size != (model.height, model.width):  # the gateway sizes pictures by the model that it last heard of
            wanted = f"{model.height}x{model.width}"
            raise Unavailable(f"the model has changed: the picture is {size[0]}x{size[1]}, must be {wanted}")
        violations = []
        if not job_id:
            violations.append(Violation("job_id", "is empty"))
        elif self._driver.has_job(job_id):
            violations.append(Violation("job_id", f"{job_id!r} is that of a job that lives"))
        if payload.steps > model.max_steps:
            violations.append(
                Violation("steps", f"is {payload.steps}, must be at most {model.max_steps} for {model.name}")
            )
        if payload.sampler not in image_pb2.Sampler.values():
            violations.append(Violation("sampler", f"{payload.sampler} does not exist"))
        problem = _picture_problem(payload.picture)
        if problem:
            violations.append(Violation("pixels", problem))
        if violations:
            raise InvalidRequest(*violations)

    def _deadline(self, deadline_unix_s: float, default_s: float) -> float:
        """On the loop's clock: the only place where the two clocks meet."""
        left_s = deadline_unix_s - self._unix_time() if deadline_unix_s else default_s
        return asyncio.get_running_loop().time() + left_s


def _adapter_status(status: AdapterStatus) -> pb.AdapterStatus:
    return pb.AdapterStatus(name=status.name, state=int(status.state), reason=status.reason)  # type: ignore[arg-type]


def _worker_status(link: WorkerLink, worker: WorkerStats | None) -> pb.StatusResponse.WorkerStatus:
    return pb.StatusResponse.WorkerStatus(
        address=link.address,
        is_up=link.is_up,
        is_leaving=link.is_leaving,
        slots=worker.num_slots if worker else 0,
        slots_used=worker.slots_used if worker else 0,
        ticks_in_flight=worker.ticks_in_flight if worker else 0,
        engine=link.ready.engine if link.ready else "",
        last_error=link.last_error,
        stages=[
            pb.StatusResponse.StageUse(
                stage=stage,  # type: ignore[arg-type]
                ticks=use.ticks,
                busy_s=use.busy_s,
                rows=use.rows,
                padding=use.padding,
            )
            for stage, use in link.use.stages.items()
        ],
        denoise_gaps=[
            pb.StatusResponse.GapBucket(at_most_s=bound, count=count) for bound, count in link.use.gaps.items()
        ],
        progress=_progress(link.ready) if link.ready else None,
        memory=_memory(link.ready.memory) if link.ready else None,
        idle_s=link.use.idle_s,
        costs=[
            worker_pb2.BucketCost(stage=stage, bucket=bucket, seconds=seconds)  # type: ignore[arg-type]
            for stage, table in (worker.costs if worker else {}).items()
            for bucket, seconds in table.items()
        ],
    )


def _ran_tick(ran: RanTick) -> pb.TicksResponse.RanTick:
    return pb.TicksResponse.RanTick(
        worker=ran.worker,
        stage=ran.tick.stage,  # type: ignore[arg-type]
        status=ran.status,  # type: ignore[arg-type]
        start_unix_s=ran.start_unix_s,
        seconds=ran.seconds,
        rows=ran.tick.rows,
        bucket=ran.tick.bucket,
        parts=(pb.TicksResponse.Part(job_id=part.job_id, rows=part.rows, step=part.step) for part in ran.parts),
    )


def _memory(memory: Memory) -> worker_pb2.Memory:
    return worker_pb2.Memory(
        total_bytes=memory.total, free_bytes=memory.free, slots_bytes=memory.slots, weights_bytes=memory.weights
    )


def _progress(ready: Ready) -> worker_pb2.Progress:
    return worker_pb2.Progress(done=ready.progress.done, total=ready.progress.total)


def _picture_problem(picture: Picture) -> str | None:
    size = picture.height * picture.width * 3
    given = picture.place.size if isinstance(picture.place, RegionRef) else len(picture.place)
    return f"has {given} bytes, must have {size}" if given < size else None


def _event_to_wire(event: Event) -> pb.JobEvent:
    match event:
        case Progress():
            preview = picture_to_wire(event.preview) if event.preview is not None else None
            return pb.JobEvent(step=pb.JobEvent.Step(step=event.step, steps=event.steps, preview=preview))
        case Begun():
            return _STARTED
        case Done():
            return _finished(event)


def _finished(event: Done) -> pb.JobEvent:
    usage = event.usage
    timings = image_pb2.Timings(
        queue_s=usage.queue_s,
        encode_s=usage.encode_s,
        denoise_s=usage.denoise_s,
        decode_s=usage.decode_s,
        ticks=usage.ticks,
        mean_rows_per_tick=usage.mean_rows_per_tick,
    )
    return pb.JobEvent(finished=pb.JobEvent.Finished(pixels=picture_to_wire(event.picture), timings=timings))
