"""The fake worker behind a real `Worker` service: for tests of the whole way through sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from steploom_batcher.fake_worker import FakeWorker
from steploom_batcher.messages import (
    AdapterChanged,
    AdapterVersion,
    Admit,
    Command,
    DropAdapter,
    Free,
    LoadAdapter,
    Payload,
    Ready,
    TickReport,
)
from steploom_batcher.types import Entry, Key, Stage, Tick
from steploom_batcher.worker_wire import (
    model_to_wire,
    picture_from_wire,
    picture_to_wire,
    region_from_wire,
    versions_to_wire,
)
from steploom_common.rpc import INTERNAL_OPTIONS, bind
from steploom_protos.worker.v1 import worker_pb2 as pb
from steploom_protos.worker.v1 import worker_pb2_grpc

_NO_KEY = Key("", ())  # a tick on the wire has none


class FakeWorkerService(worker_pb2_grpc.WorkerServicer):
    """One `FakeWorker` a stream, one stream at a time."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        self.worker: FakeWorker | None = None  # of the stream that is open
        self.num_streams = 0  # since start
        self.folder: dict[str, tuple[AdapterVersion | str, float]] = {}  # see `FakeWorker`

    async def Drive(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.Command], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Report]:
        """See the .proto."""
        if self.worker is not None:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "another batcher drives this worker")
        self.num_streams += 1
        reports: asyncio.Queue[TickReport | AdapterChanged] = asyncio.Queue()
        held, folder = self._ready.model.held, self.folder
        worker = self.worker = FakeWorker(self._ready.costs, reports.put_nowait, held, folder)
        reader = asyncio.create_task(_obey(worker, request_iterator))
        try:
            yield _ready_to_wire(self._ready)
            while True:
                yield _report_to_wire(await reports.get())
        finally:
            self.worker = None
            worker.crash()
            reader.cancel()


async def serve_fake_worker(address: str, service: FakeWorkerService) -> grpc.aio.Server:
    """A running server; stop it with grace None to see a worker die."""
    server = grpc.aio.server(options=INTERNAL_OPTIONS)
    worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
    bind(server, address)
    await server.start()
    return server


async def _obey(worker: FakeWorker, commands: AsyncIterator[pb.Command]) -> None:
    async for command in commands:
        worker.send([_command_from_wire(part) for part in (command, *command.more)])


def _command_from_wire(command: pb.Command) -> Command:
    match command.WhichOneof("command"):
        case "admit":
            return Admit(command.admit.job_id, command.admit.slot, _payload(command.admit))
        case "release":
            return Free(command.release.slot)
        case "load_adapter":
            load = command.load_adapter
            return LoadAdapter(load.change_id, load.name, load.at_once)
        case "drop_adapter":
            drop = command.drop_adapter
            return DropAdapter(drop.change_id, drop.name, drop.digest)
        case _:
            return _tick(command.tick)


def _payload(admit: pb.Admit) -> Payload:
    return Payload(
        instruction=admit.instruction,
        picture=picture_from_wire(admit.pixels),
        output=region_from_wire(admit.output) if admit.HasField("output") else None,
        steps=admit.steps,
        guidance_scale=admit.guidance_scale,
        image_guidance_scale=admit.image_guidance_scale,
        seed=admit.seed,
        sampler=admit.sampler,
        preview_every=admit.preview_every,
        adapter=admit.adapter,
        adapter_digest=admit.adapter_digest,
    )


def _tick(tick: pb.Tick) -> Tick:
    steps = tick.steps or [0] * len(tick.slots)
    entries = tuple(Entry("", slot, step) for slot, step in zip(tick.slots, steps, strict=True))
    return Tick(tick.tick_id, "", Stage(tick.stage), _NO_KEY, entries, 0, tick.bucket, 0.0)


def _report_to_wire(report: TickReport | AdapterChanged) -> pb.Report:
    if isinstance(report, AdapterChanged):
        changed = pb.AdapterChanged(
            change_id=report.change_id,
            error=report.error,
            is_missing=report.is_missing,
            digest=report.digest,
            adapters=versions_to_wire(report.versions),
        )
        return pb.Report(adapter_changed=changed)
    pixels = [pb.SlotPixels(slot=slot, pixels=picture_to_wire(picture)) for slot, picture in report.pictures]
    outcome = report.outcome
    failures = [pb.SlotFailure(slot=slot, error=error) for slot, error in outcome.failures.items()]
    done = pb.TickDone(
        tick_id=report.tick_id,
        status=outcome.status,  # type: ignore[arg-type]
        seconds=outcome.seconds,
        error=outcome.error,
        pixels=pixels,
        failures=failures,
    )
    return pb.Report(tick_done=done)


def _ready_to_wire(ready: Ready) -> pb.Report:
    costs = [
        pb.BucketCost(stage=stage, bucket=bucket, seconds=seconds)  # type: ignore[arg-type]
        for stage, table in ready.costs.items()
        for bucket, seconds in table.items()
    ]
    return pb.Report(
        ready=pb.Ready(
            worker_id=ready.worker_id,
            engine=ready.engine,
            device=ready.device,
            slots=ready.num_slots,
            model=model_to_wire(ready.model),
            costs=costs,
            memory=pb.Memory(
                total_bytes=ready.memory.total,
                free_bytes=ready.memory.free,
                slots_bytes=ready.memory.slots,
                weights_bytes=ready.memory.weights,
            ),
        )
    )
