"""The Worker service's messages to and from plain data: the batcher's edge towards its workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields

from steploom_batcher.messages import (
    AdapterChanged,
    AdapterVersion,
    Admit,
    Command,
    DropAdapter,
    Free,
    Leaving,
    LoadAdapter,
    Memory,
    Model,
    Picture,
    Preparation,
    Prepared,
    Preparing,
    Ready,
    Report,
    TickReport,
)
from steploom_batcher.types import Outcome, Stage, StageCosts, Status, Tick
from steploom_common.adapter import RESERVED_NAMES, AdapterTraits
from steploom_common.arena import RegionRef
from steploom_common.settings import ConfigError
from steploom_protos.worker.v1 import worker_pb2 as pb


class ProtocolError(Exception):
    """The worker said what it must not say."""


def commands_to_wire(commands: Sequence[Command]) -> pb.Command:
    """Commands in order, as one message of the stream."""
    message = _command(commands[0])
    message.more.extend(_command(command) for command in commands[1:])
    return message


def _command(command: Command) -> pb.Command:
    if isinstance(command, Tick):
        return pb.Command(tick=_tick(command))
    if isinstance(command, Free):
        return pb.Command(release=pb.Release(slot=command.slot))
    if isinstance(command, Admit):
        return pb.Command(admit=_admit(command))
    if isinstance(command, LoadAdapter):
        load = pb.LoadAdapter(change_id=command.change_id, name=command.name, at_once=command.at_once)
        return pb.Command(load_adapter=load)
    assert isinstance(command, DropAdapter)
    drop = pb.DropAdapter(change_id=command.change_id, name=command.name, digest=command.digest)
    return pb.Command(drop_adapter=drop)


def _tick(tick: Tick) -> pb.Tick:
    is_denoise = tick.stage is Stage.DENOISE
    return pb.Tick(
        tick_id=tick.tick_id,
        stage=tick.stage,  # type: ignore[arg-type]
        bucket=tick.bucket,
        slots=[entry.slot for entry in tick.entries],
        steps=[entry.step for entry in tick.entries] if is_denoise else (),
    )


def _admit(admit: Admit) -> pb.Admit:
    payload = admit.payload
    return pb.Admit(
        job_id=admit.job_id,
        slot=admit.slot,
        traceparent=admit.traceparent,
        instruction=payload.instruction,
        pixels=picture_to_wire(payload.picture),
        output=region_to_wire(payload.output) if payload.output is not None else None,
        steps=payload.steps,
        guidance_scale=payload.guidance_scale,
        image_guidance_scale=payload.image_guidance_scale,
        seed=payload.seed,
        sampler=payload.sampler,  # type: ignore[arg-type]
        preview_every=payload.preview_every,
        adapter=payload.adapter,
        adapter_digest=payload.adapter_digest,
    )


def report_from_wire(report: pb.Report) -> Report:
    """Whatever a worker says behind its first words.

    Raises:
        ProtocolError: it is nothing of that.
    """
    match report.WhichOneof("report"):
        case "prepared":
            prepared = report.prepared
            return Prepared(_costs(prepared.costs), _progress(prepared.progress), _memory(prepared.memory))
        case "leaving":
            return Leaving()
        case "preparing":
            return Preparing()
        case "adapter_changed":
            return _adapter_changed(report.adapter_changed)
    return tick_from_wire(report)


def tick_from_wire(report: pb.Report) -> TickReport:
    """A tick's end.

    Raises:
        ProtocolError: it is something else, or a tick that failed as a whole and names jobs that fail.
    """
    if report.WhichOneof("report") != "tick_done":
        raise ProtocolError(f"expected tick_done, got {report.WhichOneof('report') or 'an empty report'}")
    done = report.tick_done
    try:
        status = Status(done.status)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    if done.failures and status is not Status.OK:
        raise ProtocolError(f"tick {done.tick_id} is {status.name} as a whole, and names jobs of it that fail")
    failures = {item.slot: item.error for item in done.failures}
    outcome = Outcome(status, done.seconds, done.error, failures, done.idle_s)
    pictures = tuple((item.slot, picture_from_wire(item.pixels)) for item in done.pixels) if done.pixels else ()
    return TickReport(done.tick_id, outcome, pictures, done.start_unix_s)


def ready_from_wire(report: pb.Report) -> Ready:
    """A worker's first words.

    Raises:
        ProtocolError: it is something else, or what it announces cannot be worked with.
    """
    if report.WhichOneof("report") != "ready":
        raise ProtocolError(f"expected ready, got {report.WhichOneof('report') or 'an empty report'}")
    ready = report.ready
    costs = _costs(ready.costs)
    missing = [stage.name.lower() for stage in Stage if not costs.get(stage)]
    if missing:
        raise ProtocolError(f"the worker announces no bucket for {', '.join(missing)}")
    if ready.slots == 0:
        raise ProtocolError("the worker announces no slots")
    model, progress, memory = model_from_wire(ready.model), _progress(ready.progress), _memory(ready.memory)
    return Ready(ready.worker_id, ready.engine, ready.device, ready.slots, model, costs, progress, memory)


def _adapter_changed(changed: pb.AdapterChanged) -> AdapterChanged:
    return AdapterChanged(
        change_id=changed.change_id,
        versions=tuple(_versions(changed.adapters)),
        memory=_memory(changed.memory),
        digest=changed.digest,
        error=changed.error,
        is_missing=changed.is_missing,
    )


def _costs(costs: Iterable[pb.BucketCost]) -> StageCosts:
    found: dict[Stage, dict[int, float]] = defaultdict(dict)
    for cost in costs:
        found[Stage(cost.stage)][cost.bucket] = cost.seconds
    return dict(found)


def _memory(memory: pb.Memory) -> Memory:
    return Memory(memory.total_bytes, memory.free_bytes, memory.slots_bytes, memory.weights_bytes)


def _progress(progress: pb.Progress) -> Preparation:
    return Preparation(progress.done, progress.total)


def model_from_wire(model: pb.ModelInfo) -> Model:
    """What a worker serves.

    Raises:
        ProtocolError: an adapter's name is reserved, or its bounds are none.
    """
    versions = tuple(_versions(model.adapters))
    return Model(
        name=model.name,
        height=model.height,
        width=model.width,
        max_steps=model.max_steps,
        guidance_scale=model.default_guidance_scale,
        image_guidance_scale=model.default_image_guidance_scale,
        sampler=model.default_sampler,
        adapters={item.name: item.traits for item in versions},
        latent_shape=tuple(model.latent_shape),
        digest=model.digest,
        versions=versions,
    )


def _versions(adapters: Iterable[pb.Adapter]) -> Iterator[AdapterVersion]:
    for adapter in adapters:
        if adapter.name in RESERVED_NAMES:
            raise ProtocolError(f"the worker announces an adapter by the reserved name {adapter.name!r}")
        try:
            traits = AdapterTraits(**{item.name: getattr(adapter, item.name) for item in fields(AdapterTraits)})
        except ConfigError as error:
            raise ProtocolError(f"the worker announces adapter {adapter.name!r}, whose {error}") from None
        yield AdapterVersion(adapter.name, adapter.digest, traits)


def model_to_wire(model: Model) -> pb.ModelInfo:
    """The inverse of `model_from_wire`."""
    return pb.ModelInfo(
        name=model.name,
        height=model.height,
        width=model.width,
        max_steps=model.max_steps,
        default_guidance_scale=model.guidance_scale,
        default_image_guidance_scale=model.image_guidance_scale,
        default_sampler=model.sampler,  # type: ignore[arg-type]
        adapters=versions_to_wire(model.held),
        latent_shape=model.latent_shape,
        digest=model.digest,
    )


def versions_to_wire(versions: Iterable[AdapterVersion]) -> list[pb.Adapter]:
    """Adapters that a model has, or a worker."""
    return [pb.Adapter(name=item.name, digest=item.digest, **asdict(item.traits)) for item in versions]


def picture_from_wire(pixels: pb.Pixels) -> Picture:
    """Pixels in the message, or where they lie."""
    if pixels.WhichOneof("place") == "region":
        return Picture(pixels.height, pixels.width, region_from_wire(pixels.region))
    return Picture(pixels.height, pixels.width, pixels.inline)


def picture_to_wire(picture: Picture) -> pb.Pixels:
    """The inverse of `picture_from_wire`."""
    if isinstance(picture.place, RegionRef):
        return pb.Pixels(height=picture.height, width=picture.width, region=region_to_wire(picture.place))
    return pb.Pixels(height=picture.height, width=picture.width, inline=picture.place)


def region_from_wire(region: pb.Region) -> RegionRef:
    """A stretch of shared memory."""
    return RegionRef(region.path, region.offset, region.size, region.lease)


def region_to_wire(region: RegionRef) -> pb.Region:
    """The inverse of `region_from_wire`."""
    return pb.Region(path=region.path, offset=region.offset, size=region.size, lease=region.lease)
