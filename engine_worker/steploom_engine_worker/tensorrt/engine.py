"""The engine on TensorRT, without torch: plans and kernels that were compiled before, driven through cuda-python.

It behaves as the torch engine on a GPU does, and the worker cannot tell them apart: a tick is one recorded graph of its
bucket, the host waits for the device nowhere within it, and what a tick found out is copied back behind it. There are
three lanes: admissions, encode and decode, denoise; marks keep the order that a job's own stages need.

It serves as soon as the largest graph of each stage is recorded. Plans of other buckets are read, and their graphs
recorded, between ticks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from steploom_common.adapter import rows_with
from steploom_engine_worker.adapter_manifest import adapter_digest
from steploom_engine_worker.adapter_shelf import Shelf
from steploom_engine_worker.description import Described, model_info
from steploom_engine_worker.engine import (
    AdapterVersion,
    Costs,
    Done,
    HostMemory,
    Job,
    MemoryUse,
    ModelInfo,
    Pending,
    Pixels,
    ReadAdapter,
    Stage,
)
from steploom_engine_worker.errors import AdapterRefused, is_fatal
from steploom_engine_worker.loadable import adapter_folder
from steploom_engine_worker.orders import Orders
from steploom_engine_worker.pinned import PinnedMemory
from steploom_engine_worker.readiness import PLAIN, Kind, Readiness, Recording
from steploom_engine_worker.tensorrt.device import CudaError, Device, Event, OutOfDeviceMemory
from steploom_engine_worker.tensorrt.host import Host
from steploom_engine_worker.tensorrt.kernels import Kernels
from steploom_engine_worker.tensorrt.networks import TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER, Networks
from steploom_engine_worker.tensorrt.plan_store import REBUILD, PlanError
from steploom_engine_worker.tensorrt.runtime import TensorRTError
from steploom_engine_worker.tensorrt.slots import Slots
from steploom_engine_worker.tensorrt.tick import (
    DecodeGraph,
    EncodeGraph,
    HostRing,
    Lane,
    StepGraph,
    job_bytes,
    job_memory,
    pack_jobs,
    pack_step,
    step_bytes,
    step_memory,
)

MAX_PENDING = 4

log = logging.getLogger(__name__)


@dataclass
class _Tick:
    """A tick that is under way; see `engine.Pending`."""

    start: Event
    end: Event
    failures: Callable[[], dict[int, str]]
    pictures: Callable[[], list[Pixels]] = field(default=list)
    previews: Mapping[int, Callable[[], Pixels]] = field(default_factory=dict)

    def wait(self) -> Done:
        self.end.wait()
        return Done(self.pictures(), self.failures(), self.end.seconds_since(self.start), self.previews)


class TensorRTEngine:
    """See the module, and `engine.Engine`.

    Args:
        model: what is served.
        device: where.
        networks: the plans of the model.
        kernels: for the type of their edges.
        host: tokens and previews.
        num_slots: jobs at once.
        max_steps: of a job.

    Attributes:
        slots: the jobs' memory.
        buckets: rows or jobs for which there are plans, by stage.

    Raises:
        PlanError: the plans do not fit each other or the model.
        TensorRTError: TensorRT refuses one.
        CudaError: the device cannot be used for it.
    """

    def __init__(
        self,
        model: Described,
        device: Device,
        networks: Networks,
        kernels: Kernels,
        host: Host,
        num_slots: int,
        max_steps: int,
    ) -> None:
        self._description, self._on, self._networks, self._kernels, self._host = model, device, networks, kernels, host
        self._num_slots = num_slots
        self._num_adapters = len(model.adapters)
        most_steps = min(max_steps, model.schedule.num_train_timesteps)
        self._model = model_info(model, most_steps)
        self._shelf = Shelf(model.adapters)
        self._orders = Orders(model, most_steps, self._shelf)
        self._instructions = [""] * num_slots
        self.buckets = buckets_of(networks)
        context = networks.tensor(TEXT_ENCODER, "context")
        text_shape = context.shape[1], context.shape[2]
        if text_shape[0] != host.num_tokens:
            raise PlanError(
                f"the text encoder takes {text_shape[0]} tokens, the host's constants say {host.num_tokens}; {REBUILD}"
            )
        shape, side = model.latent_shape, model.side
        self.slots = Slots(device, num_slots, most_steps, shape, text_shape, side, context.dtype)
        self._admission, self._side, self._main = (Lane(device) for _ in range(3))
        self._marks: list[Event | None] = [None] * num_slots  # where what was last asked for of a slot ends
        most_rows = self.buckets[Stage.DENOISE][-1]
        most_jobs = max(self.buckets[Stage.ENCODE][-1], self.buckets[Stage.DECODE][-1])
        self._step_memory = step_memory(device, self.slots, most_rows, self._num_adapters)
        self._job_memory = job_memory(device, self.slots, most_jobs)
        ring = partial(HostRing, device, MAX_PENDING)
        self._packed_steps = ring((step_bytes(most_rows, self._num_adapters),), np.uint8)
        self._packed_jobs = ring((job_bytes(most_jobs, host.num_tokens),), np.uint8)
        self._flags = ring((2, max(most_rows, most_jobs)), np.uint8)
        self._decoded = ring((self.buckets[Stage.DECODE][-1], side, side, 3), np.uint8)
        self._estimates = ring((min(num_slots, most_rows), *shape), np.float32)
        self._pinned = PinnedMemory(Registered(device))
        self._no_tokens = host.tokens([""])
        self._steps: dict[Recording, StepGraph] = {}
        self._encodes: dict[Recording, EncodeGraph] = {}
        self._decodes: dict[Recording, DecodeGraph] = {}
        self._seconds: dict[Recording, float] = {}  # of one tick
        self._readiness = Readiness(self._kinds(), self._alone())
        self._is_prepared_for = False  # what ticks want is counted
        for recording in self._readiness.needed:
            self._make(recording)
        self._fill_empty_instruction()
        device.synchronise()

    def __repr__(self) -> str:
        return f"TensorRTEngine({self._on}, {self.slots}, {self._readiness})"

    def _kinds(self) -> Mapping[Kind, Sequence[int]]:
        """All buckets of every stage; of equal ones the earlier is the more urgent. There is one form of the UNet: the
        adapters of a row are its gates."""
        return {(stage, PLAIN): self.buckets[stage] for stage in (Stage.DENOISE, Stage.ENCODE, Stage.DECODE)}

    def _alone(self) -> Mapping[Kind, int]:
        """Jobs and rows of a request alone, with the model's default scales."""
        scales = self._model.default_guidance_scale, self._model.default_image_guidance_scale
        rows = min(rows_with(None, *scales), self.buckets[Stage.DENOISE][-1])
        return {(Stage.DENOISE, PLAIN): rows, (Stage.ENCODE, PLAIN): 1, (Stage.DECODE, PLAIN): 1}

    def _make(self, recording: Recording) -> None:
        """A recording, and its cost; on memory that is no job's."""
        stage, _, bucket = recording
        lane = self._lane(stage)
        open_network = partial(self._networks.open, lane=lane)
        around = self.slots, self._kernels, lane, open_network
        graph: StepGraph | EncodeGraph | DecodeGraph
        if stage is Stage.DENOISE:
            graph = StepGraph(bucket, self._step_memory, *around, self._num_adapters)
            self._steps[recording] = graph
        elif stage is Stage.ENCODE:
            graph = EncodeGraph(bucket, self._job_memory, *around, self._no_tokens)
            self._encodes[recording] = graph
        else:
            graph = DecodeGraph(bucket, self._job_memory, *around)
            self._decodes[recording] = graph
        self._seconds[recording] = lane.seconds_of(graph.graph)
        self._readiness.add(recording)

    def _fill_empty_instruction(self) -> None:
        """The states of no instruction, behind those of all slots: an encode graph has just made them, of padding."""
        graph = self._encodes[self._readiness.look_up(Stage.ENCODE, PLAIN, 1)]
        packed = pack_jobs(graph.bucket, [], self._no_tokens, self._packed_jobs.next())
        graph.start(packed)
        text = self.slots.text[self._num_slots]
        self._side.stream.copy(text.address, graph.states.address, text.num_bytes)
        self._side.stream.wait()

    def _lane(self, stage: Stage) -> Lane:
        return self._main if stage is Stage.DENOISE else self._side

    @property
    def name(self) -> str:
        return "tensorrt"

    @property
    def device(self) -> str:
        return f"cuda:{self._on.index}"

    @property
    def max_pending(self) -> int:
        return MAX_PENDING

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def known_costs(self) -> Costs | None:
        return None

    @property
    def memory(self) -> MemoryUse:
        free, total = self._on.memory
        return MemoryUse(total, free, self.slots.num_bytes, self._networks.num_bytes)

    @property
    def progress(self) -> tuple[int, int]:
        return self._readiness.progress

    def prepare(self) -> Costs | None:
        if not self._is_prepared_for:  # until now there was the warm-up alone
            self._is_prepared_for = True
            self._readiness.forget_wanted()
        recording = self._readiness.next()
        if recording is None:
            return None
        try:
            self._make(recording)
        except Exception as error:
            # who has no memory to give, or refuses, has broken nothing, whatever the words
            if is_fatal(error) and not isinstance(error, (OutOfDeviceMemory, TensorRTError)):
                raise
            self._on.synchronise()  # a device that is lost says so
            log.warning("%s is not recorded, larger ones serve in its place: %s", recording, error)
            self._readiness.drop(recording)
            return {}
        log.debug("%s recorded, %.1f ms", recording, self._seconds[recording] * 1e3)
        return self._costs_on(recording)

    def _costs_on(self, recording: Recording) -> Costs:
        """Seconds of the buckets that run on it."""
        stage = recording.stage
        look_up = self._readiness.look_up
        ours = [bucket for bucket in self.buckets[stage] if look_up(stage, PLAIN, bucket) == recording]
        return {(stage, bucket): self._seconds[recording] for bucket in ours}

    def read_adapter(self, name: str) -> ReadAdapter:
        """One that the plans have in them; any other is refused."""
        folder = adapter_folder(self._description.root, name)
        for number, own in enumerate(self._description.adapters):
            if own.name == name and own.digest == adapter_digest(folder):
                return ReadAdapter(AdapterVersion(name, own.digest, own.manifest.traits), own.manifest, number)
        raise AdapterRefused(
            f"adapter {name!r}: TensorRT's plans hold the adapters that they were built with, as these were then; list "
            "it in steploom.json, run `steploom build-engine`, and start the worker again"
        )

    def put_adapter(self, adapter: ReadAdapter) -> None:
        if not self._shelf.holds(adapter.version):
            self._shelf.put(adapter.number, adapter.version, adapter.manifest)
        self._model = replace(self._model, versions=self._shelf.versions)

    def drop_adapter(self, name: str, digest: str) -> None:
        """Jobs are admitted with it no more; what of it is in the plans stays there."""
        self._shelf.drop(name, digest)
        self._model = replace(self._model, versions=self._shelf.versions)

    def admit(self, slot: int, job: Job) -> None:
        order = self._orders.order(job)
        stream = self._admission.stream
        stream.follow(self._marks[slot])  # of a job that nobody waits for any more, perhaps
        self.slots.put_order(slot, order, stream)
        pixels = self.slots.pixels[slot]
        if not self._pinned.start_copy(job.pixels, partial(stream.copy_in, pixels.address)):
            self.slots.put_pixels(slot, job.pixels, stream)
        self._instructions[slot] = job.instruction
        self._marks[slot] = stream.mark()

    def share(self, memory: HostMemory) -> None:
        self._pinned.add(memory)

    def unshare(self, memory: HostMemory) -> None:
        self._pinned.remove(memory)

    def release(self, slot: int) -> None:
        self._instructions[slot] = ""

    def check(self) -> None:
        self._on.synchronise()

    def _begin(self, lane: Lane, slots: Sequence[int]) -> Event:
        """Lets a lane wait for whatever was last asked for of these slots."""
        return lane.begin([self._marks[slot] for slot in slots])

    def _end(self, lane: Lane, slots: Sequence[int]) -> Event:
        """The end of what a lane was asked for of these slots."""
        mark = lane.stream.mark()
        for slot in slots:
            self._marks[slot] = mark
        return mark

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        graph = self._encodes[self._readiness.take(Stage.ENCODE, PLAIN, len(slots))]
        tokens = self._host.tokens([self._instructions[slot] for slot in slots])
        packed = pack_jobs(graph.bucket, slots, tokens, self._packed_jobs.next())
        start = self._begin(self._side, slots)
        graph.start(packed)
        flags = self._flags.next()
        for line, found in zip(flags, (graph.are_finite, graph.are_texts_finite), strict=True):
            self._side.stream.copy_out(line[: len(slots)], found.address)
        end = self._end(self._side, slots)

        def failures() -> dict[int, str]:
            return {
                **_failed(flags[0], slots, "the VAE's encoder"),
                **_failed(flags[1], slots, "the text encoder"),
            }

        return _Tick(start, end, failures)

    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        row_slots = [slots[job] for job in self.slots.rows(slots)[0]]
        graph = self._steps[self._readiness.take(Stage.DENOISE, PLAIN, len(row_slots))]
        packed = pack_step(graph.bucket, self._num_adapters, self.slots, slots, steps, self._packed_steps.next())
        start = self._begin(self._main, slots)
        graph.start(packed)
        flags = self._flags.next()
        self._main.stream.copy_out(flags[0, : len(row_slots)], graph.are_finite.address)
        previews = self._previews(previewed)
        end = self._end(self._main, slots)
        return _Tick(start, end, lambda: _failed(flags[0], row_slots, "the UNet"), previews=previews)

    def _previews(self, slots: Sequence[int]) -> dict[int, Callable[[], Pixels]]:
        """Of what jobs are becoming, copied to the host before the next tick can change it."""
        if not slots:
            return {}
        staged = self._estimates.next()
        for place, slot in enumerate(slots):
            self._main.stream.copy_out(staged[place], self.slots.history[slot].address)
        return {slot: partial(self._host.preview, staged[place]) for place, slot in enumerate(slots)}

    def decode(self, slots: Sequence[int]) -> Done | Pending:
        graph = self._decodes[self._readiness.take(Stage.DECODE, PLAIN, len(slots))]
        packed = pack_jobs(graph.bucket, slots, None, self._packed_jobs.next())
        start = self._begin(self._side, slots)
        graph.start(packed)
        flags, pictures = self._flags.next(), self._decoded.next()
        self._side.stream.copy_out(flags[0, : len(slots)], graph.are_finite.address)
        self._side.stream.copy_out(pictures[: len(slots)], graph.bytes.address)
        end = self._end(self._side, slots)
        return _Tick(
            start,
            end,
            lambda: _failed(flags[0], slots, "the VAE's decoder"),
            lambda: list(pictures[: len(slots)]),
        )


class Registered:
    """What `pinned` asks of a device."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> int:
        """Pins memory."""
        self._device.register(address, num_bytes)
        return 0

    def unregister(self, address: int) -> int:
        """Waits for all that the device is at, and lets the memory go."""
        try:
            self._device.unregister(address)
        except CudaError as error:  # a device that is lost says so where it is used
            return error.code
        return 0


def buckets_of(networks: Networks) -> Mapping[Stage, Sequence[int]]:
    """Rows or jobs of a tick for which there are plans, by stage, rising.

    Raises:
        PlanError: text encoder and VAE encoder share no bucket.
    """
    encode = sorted({*networks.buckets[VAE_ENCODER]} & {*networks.buckets[TEXT_ENCODER]})
    if not encode:
        both = f"{list(networks.buckets[VAE_ENCODER])} and {list(networks.buckets[TEXT_ENCODER])}"
        raise PlanError(f"the VAE's encoder and the text encoder have no bucket in common: {both}; {REBUILD}")
    return {
        Stage.ENCODE: encode,
        Stage.DENOISE: networks.buckets[UNET],
        Stage.DECODE: networks.buckets[VAE_DECODER],
    }


def _failed(are_finite: NDArray[np.uint8], slots: Sequence[int], source: str) -> dict[int, str]:
    """The slots of rows whose values are not finite."""
    reason = f"{source} gave values that are not finite"
    found = are_finite[: len(slots)].tolist()
    return {slot: reason for slot, is_finite in zip(slots, found, strict=True) if not is_finite}
