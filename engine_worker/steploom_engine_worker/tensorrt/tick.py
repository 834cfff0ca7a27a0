"""The stages of a tick as graphs: our kernels and TensorRT's networks, recorded once in one stream, without torch.

A tick is one copy of small integers to the device, and one graph. Graphs of a lane never run at once, so all of its
buckets work on the same memory, that of the largest: a smaller one takes the beginning of each array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steploom_engine_worker.rows import NO_ADAPTER, PADDING, pack_rows
from steploom_engine_worker.tensorrt.arrays import DeviceArray, allocate, part
from steploom_engine_worker.tensorrt.device import Device, Event, Graph
from steploom_engine_worker.tensorrt.kernels import Kernels
from steploom_engine_worker.tensorrt.runtime import ALIGNMENT, Execution, Scratch
from steploom_engine_worker.tensorrt.slots import Slots

HostArray = NDArray[Any]


class Lane:
    """A stream, and the memory of what runs in it."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.stream()
        self.scratch = Scratch(device)

    def record(self, run: Callable[[], None]) -> Graph:
        """What `run` does, as a graph: after two runs of it, in which libraries make what they make once."""
        run()
        run()
        self.stream.wait()
        return self.device.record(self.stream, run)

    def seconds_of(self, graph: Graph) -> float:
        """Of a graph, once: its first run is slower and not counted."""
        graph.launch(self.stream)
        start = self.stream.mark()
        graph.launch(self.stream)
        end = self.stream.mark()
        end.wait()
        return end.seconds_since(start)

    def begin(self, marks: Sequence[Event | None]) -> Event:
        """Lets the lane wait for points of others; the point after that."""
        for mark in {id(mark): mark for mark in marks}.values():
            self.stream.follow(mark)
        return self.stream.mark()


class HostRing:
    """Arrays on the host that a device reads or writes while the next tick is prepared: each is used in turn.

    Args:
        device: whose copies shall not wait for the host.
        depth: ticks that may be under way.
        shape: of an array.
        dtype: of an array.
    """

    def __init__(self, device: Device, depth: int, shape: Sequence[int], dtype: Any) -> None:
        self._arrays = [device.pinned(shape, dtype) for _ in range(depth + 1)]
        self._turn = 0

    def next(self) -> HostArray:
        """The array that was used longest ago."""
        self._turn = (self._turn + 1) % len(self._arrays)
        return self._arrays[self._turn]


@dataclass(frozen=True)
class Rows:
    """What the UNet reads, by row."""

    sample: DeviceArray  # [rows, h, w, 2 * channels]
    timesteps: DeviceArray  # float32 [rows]
    adapters: DeviceArray  # int32 [rows]
    gates: DeviceArray  # float32 [rows]
    scales: DeviceArray  # float32 [rows, 2]
    context: DeviceArray  # [rows, tokens, width]

    def first(self, rows: int) -> Rows:
        """Of the first rows."""
        return replace(self, **{name: item.first(rows) for name, item in vars(self).items()})


@dataclass(frozen=True)
class StepMemory:
    """What denoise ticks work on."""

    packed: DeviceArray  # uint8: see `pack_step`
    rows: Rows
    prediction: DeviceArray  # [rows, h, w, channels]
    are_finite: DeviceArray  # uint8 [rows]


def step_memory(device: Device, slots: Slots, most_rows: int, num_adapters: int) -> StepMemory:
    """Memory for ticks of up to so many rows."""
    channels, height, width = slots.latents.shape[1:]
    dtype = slots.text.dtype

    def zeros(*shape: int, dtype: str) -> DeviceArray:
        return allocate(device, (most_rows, *shape), dtype)

    rows = Rows(
        sample=zeros(height, width, 2 * channels, dtype=dtype),
        timesteps=zeros(dtype="float32"),
        adapters=zeros(dtype="int32"),
        gates=zeros(dtype="float32"),
        scales=zeros(2, dtype="float32"),
        context=zeros(*slots.text.shape[1:], dtype=dtype),
    )
    packed = allocate(device, (step_bytes(most_rows, num_adapters),), "uint8")
    return StepMemory(packed, rows, zeros(height, width, channels, dtype=dtype), zeros(dtype="uint8"))


def step_bytes(rows: int, num_adapters: int) -> int:
    """Of what a denoise tick of a bucket is told."""
    return _gates_at(rows) + 4 * rows * num_adapters


def _gates_at(rows: int) -> int:
    return -(-32 * rows // ALIGNMENT) * ALIGNMENT


def pack_step(
    bucket: int, num_adapters: int, slots: Slots, jobs: Sequence[int], steps: Sequence[int], out: HostArray
) -> HostArray:
    """What a denoise tick is told: `rows.pack_rows`, then the gate of each row and adapter, float32 [rows, adapters].

    Args:
        bucket: rows.
        num_adapters: of the model.
        slots: the jobs' memory.
        jobs: the slot of each.
        steps: the step of each, from 0.
        out: bytes, at least as many as it takes.

    Returns:
        Those bytes of `out` that it takes.
    """
    packed = pack_rows(bucket, slots, jobs, steps)
    taken: HostArray = out[: step_bytes(bucket, num_adapters)]
    taken[: packed.nbytes] = packed.view(np.uint8)
    if num_adapters:
        gates = taken[_gates_at(bucket) :].view(np.float32).reshape(bucket, num_adapters)
        gates[:] = 0.0
        for row, slot in enumerate(packed[:bucket]):
            if slot != PADDING and slots.adapters[slot] != NO_ADAPTER:
                gates[row, slots.adapters[slot]] = 1.0
    return taken


# given a network's name, a bucket and the arrays of its tensors by name, what runs it on them
Open = Callable[[str, int, Mapping[str, DeviceArray]], Execution]


class StepGraph:
    """A denoise tick of a bucket of rows.

    Args:
        bucket: rows.
        memory: of all buckets.
        slots: the jobs' memory.
        kernels: around the network.
        lane: where it runs.
        open_network: makes the network's execution.
        num_adapters: of the model.
    """

    def __init__(
        self,
        bucket: int,
        memory: StepMemory,
        slots: Slots,
        kernels: Kernels,
        lane: Lane,
        open_network: Open,
        num_adapters: int,
    ) -> None:
        self.bucket = bucket
        self.are_finite = memory.are_finite.first(bucket)
        self._packed, self._slots, self._kernels, self._lane = memory.packed, slots, kernels, lane
        self._rows, self._prediction = memory.rows.first(bucket), memory.prediction.first(bucket)
        gates = part(memory.packed, _gates_at(bucket), (bucket, num_adapters), "float32")
        self._unet = open_network(
            "unet",
            bucket,
            {
                "sample": self._rows.sample,
                "timesteps": self._rows.timesteps,
                "context": self._rows.context,
                "gates": gates,
                "scales": self._rows.scales,
                "prediction": self._prediction,
            },
        )
        padding = pack_step(bucket, num_adapters, slots, [], [], np.zeros(memory.packed.num_bytes, np.uint8))
        lane.stream.copy_in(self._packed.address, padding)
        self.graph = lane.record(self._run)

    def start(self, packed: HostArray) -> None:
        """Asks for a tick; `packed` is the host's, as `pack_step` makes it."""
        self._lane.stream.copy_in(self._packed.address, packed)
        self.graph.launch(self._lane.stream)

    def _run(self) -> None:
        stream, rows = self._lane.stream, self.bucket
        lines = [part(self._packed, 4 * rows * index, (rows,), "int32") for index in range(5)]
        job_rows = part(self._packed, 20 * rows, (rows, 3), "int32")
        row_slots, row_branches, row_steps, job_slots, job_steps = lines
        self._kernels.gather_tick(stream, self._slots, row_slots, row_branches, row_steps, self._rows)
        self._unet.run()
        self._kernels.are_finite(stream, self._prediction, self.are_finite)
        self._kernels.step_slots(stream, self._prediction, job_rows, job_slots, job_steps, self._slots)


@dataclass(frozen=True)
class JobMemory:
    """What encode and decode ticks work on."""

    packed: DeviceArray  # uint8: see `pack_jobs`
    pictures: DeviceArray  # [jobs, side, side, 3], as numbers
    latents: DeviceArray  # [jobs, h, w, channels]
    states: DeviceArray  # [jobs, tokens, width]
    are_finite: DeviceArray  # uint8 [jobs], of pictures or latents
    are_texts_finite: DeviceArray  # uint8 [jobs]
    bytes: DeviceArray  # uint8 [jobs, side, side, 3]


def job_memory(device: Device, slots: Slots, most_jobs: int) -> JobMemory:
    """Memory for ticks of up to so many jobs."""
    channels, height, width = slots.latents.shape[1:]
    dtype = slots.text.dtype

    def zeros(*shape: int, dtype: str) -> DeviceArray:
        return allocate(device, (most_jobs, *shape), dtype)

    return JobMemory(
        packed=allocate(device, (job_bytes(most_jobs, slots.text.shape[1]),), "uint8"),
        pictures=zeros(*slots.pixels.shape[1:], dtype=dtype),
        latents=zeros(height, width, channels, dtype=dtype),
        states=zeros(*slots.text.shape[1:], dtype=dtype),
        are_finite=zeros(dtype="uint8"),
        are_texts_finite=zeros(dtype="uint8"),
        bytes=zeros(*slots.pixels.shape[1:], dtype="uint8"),
    )


def job_bytes(jobs: int, num_tokens: int) -> int:
    """Of what a tick of a bucket of jobs is told."""
    return _tokens_at(jobs) + 4 * jobs * num_tokens


def _tokens_at(jobs: int) -> int:
    return -(-4 * jobs // ALIGNMENT) * ALIGNMENT


def pack_jobs(bucket: int, jobs: Sequence[int], tokens: NDArray[np.int32] | None, out: HostArray) -> HostArray:
    """What an encode or decode tick is told: the slot of each job, int32, then its tokens, int32 [jobs, tokens].

    Args:
        bucket: jobs; those beyond the given ones are padding, with the tokens of the first.
        jobs: the slot of each.
        tokens: [jobs, tokens] of each; None of decode, which reads none.
        out: bytes, at least as many as it takes.

    Returns:
        Those bytes of `out` that it takes.
    """
    taken: HostArray = out[: _tokens_at(bucket) if tokens is None else job_bytes(bucket, tokens.shape[1])]
    slots = taken[: 4 * bucket].view(np.int32)
    slots[:] = PADDING
    slots[: len(jobs)] = jobs
    if tokens is not None:
        places = taken[_tokens_at(bucket) :].view(np.int32).reshape(bucket, -1)
        places[:] = tokens[0]
        places[: len(tokens)] = tokens
    return taken


class EncodeGraph:
    """Picture, text and initial noise of a bucket of jobs into their slots. For arguments see `StepGraph`.

    Args:
        no_tokens: of an instruction, int32 [1, tokens]: what it runs on while it is recorded.
    """

    def __init__(
        self,
        bucket: int,
        memory: JobMemory,
        slots: Slots,
        kernels: Kernels,
        lane: Lane,
        open_network: Open,
        no_tokens: NDArray[np.int32],
    ) -> None:
        self.bucket = bucket
        self.are_finite, self.are_texts_finite = (
            item.first(bucket) for item in (memory.are_finite, memory.are_texts_finite)
        )
        self.states = memory.states.first(bucket)
        self._packed, self._slots, self._kernels, self._lane = memory.packed, slots, kernels, lane
        self._pictures, self._latents = memory.pictures.first(bucket), memory.latents.first(bucket)
        self._job_slots = part(memory.packed, 0, (bucket,), "int32")
        tokens = part(memory.packed, _tokens_at(bucket), (bucket, no_tokens.shape[1]), "int32")
        self._encoder = open_network("vae_encoder", bucket, {"pictures": self._pictures, "latents": self._latents})
        self._text = open_network("text_encoder", bucket, {"tokens": tokens, "context": self.states})
        padding = pack_jobs(bucket, [], no_tokens, np.zeros(memory.packed.num_bytes, np.uint8))
        lane.stream.copy_in(self._packed.address, padding)
        self.graph = lane.record(self._run)

    def start(self, packed: HostArray) -> None:
        """Asks for a tick; `packed` is the host's, as `pack_jobs` makes it."""
        self._lane.stream.copy_in(self._packed.address, packed)
        self.graph.launch(self._lane.stream)

    def _run(self) -> None:
        stream, kernels = self._lane.stream, self._kernels
        kernels.pixels_in(stream, self._slots, self._job_slots, self._pictures)
        self._encoder.run()
        kernels.are_finite(stream, self._latents, self.are_finite)
        kernels.start_slots(stream, self._latents, self._job_slots, self._slots)
        self._text.run()
        kernels.are_finite(stream, self.states, self.are_texts_finite)
        kernels.put_text(stream, self.states, self._job_slots, self._slots)


class DecodeGraph:
    """The pictures of a bucket of jobs. For arguments see `StepGraph`.

    Attributes:
        bytes: uint8 [bucket, side, side, 3], after a tick.
    """

    def __init__(
        self, bucket: int, memory: JobMemory, slots: Slots, kernels: Kernels, lane: Lane, open_network: Open
    ) -> None:
        self.bucket = bucket
        self.are_finite, self.bytes = memory.are_finite.first(bucket), memory.bytes.first(bucket)
        self._packed, self._slots, self._kernels, self._lane = memory.packed, slots, kernels, lane
        self._latents, self._pictures = memory.latents.first(bucket), memory.pictures.first(bucket)
        self._job_slots = part(memory.packed, 0, (bucket,), "int32")
        self._decoder = open_network("vae_decoder", bucket, {"latents": self._latents, "pictures": self._pictures})
        padding = pack_jobs(bucket, [], None, np.zeros(memory.packed.num_bytes, np.uint8))
        lane.stream.copy_in(self._packed.address, padding)
        self.graph = lane.record(self._run)

    def start(self, packed: HostArray) -> None:
        """Asks for a tick; `packed` is the host's, as `pack_jobs` makes it."""
        self._lane.stream.copy_in(self._packed.address, packed)
        self.graph.launch(self._lane.stream)

    def _run(self) -> None:
        stream, kernels = self._lane.stream, self._kernels
        kernels.gather_latents(stream, self._slots, self._job_slots, self._latents)
        self._decoder.run()
        kernels.are_finite(stream, self._pictures, self.are_finite)
        kernels.pixels_out(stream, self._pictures, self.bytes)
