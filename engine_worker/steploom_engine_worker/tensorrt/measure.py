"""`python -m steploom_engine_worker.tensorrt.measure ENGINES`: plans as graphs, how fast, and how near to torch.

Each plan runs as the worker runs it: on memory of its own, recorded in a CUDA graph; the UNet also within its whole
tick, with our kernels around it. It needs TensorRT, cuda-python and numpy, and no model. What torch makes of the same
inputs comes from `python -m steploom_engine_worker.export.references`, where torch is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steploom_common.guidance import branch_weights
from steploom_engine_worker.rows import NO_ADAPTER
from steploom_engine_worker.tensorrt.arrays import ITEM_BYTES, DeviceArray, allocate
from steploom_engine_worker.tensorrt.device import CudaError, Device, Graph
from steploom_engine_worker.tensorrt.kernels import Kernels
from steploom_engine_worker.tensorrt.machine import CannotServe, Finders, find_machine
from steploom_engine_worker.tensorrt.networks import UNET, Networks
from steploom_engine_worker.tensorrt.plan_store import PlanError, PlanStore
from steploom_engine_worker.tensorrt.runtime import Runtime, TensorRTError
from steploom_engine_worker.tensorrt.slots import NUM_COEFFICIENTS, Slots
from steploom_engine_worker.tensorrt.tick import Lane, StepGraph, pack_step, step_bytes, step_memory
from steploom_kernels.launch_recipe import RecipeError

TOLERANCE = 1e-2  # of half precision: the relative error that a plan may have against torch
REPEATS = 20

_SIDE = 16  # pixels of the slots' pictures, which no denoise tick looks at
_SCALES = {0: (7.5, 1.5), 1: (1.0, 1.0), 2: (2.0, 2.0)}  # guidance of a job of three rows, of one and of two

Array = NDArray[Any]
References = Mapping[str, Array]  # float32, or int32, by the names that `key` gives


def key(network: str, rows: int, tensor: str) -> str:
    """The name of an input or output among references."""
    return f"{network}.{rows}.{tensor}"


@dataclass(frozen=True)
class Figure:
    """What was measured of a network for a number of rows."""

    network: str
    rows: int
    seconds: float  # of a pass
    tick_seconds: float | None  # of the whole tick around it; None: not measured
    error: float | None  # relative, against torch; None: there is no reference

    @property
    def is_right(self) -> bool:
        """Whether it gives what torch gives, as far as is known."""
        return self.error is None or self.error <= TOLERANCE

    def __str__(self) -> str:
        tick = "" if self.tick_seconds is None else f", whole tick {self.tick_seconds * 1e3:.3f} ms"
        error = "no reference" if self.error is None else f"off by {self.error:.1e} of what torch gives"
        each = self.seconds / self.rows * 1e3
        wrong = "" if self.is_right else f", may be {TOLERANCE:.0e}: WRONG"
        return (
            f"{self.network}, {self.rows} rows: {self.seconds * 1e3:.3f} ms, {each:.3f} ms a row{tick}; {error}{wrong}"
        )


def measure(
    networks: Networks,
    kernels: Kernels | None,
    device: Device,
    references: References,
    repeats: int = REPEATS,
    only: Sequence[str] = (),
) -> Iterator[Figure]:
    """Every bucket of every network, or of some alone, from the largest: what is first takes the memory for all.

    Args:
        networks: to measure.
        kernels: around the UNet; None: it is measured by itself alone.
        device: where.
        references: inputs and outputs by `key`; a network that has none runs on inputs of no meaning.
        repeats: replays that are timed.
        only: names of networks; none: all.

    Raises:
        TensorRTError: TensorRT refuses a plan.
        CudaError: the device fails.
    """
    lane = Lane(device)
    for name, buckets in networks.buckets.items():
        if only and name not in only:
            continue
        for rows in reversed(buckets):
            seconds, error = _pass(networks, name, rows, lane, references, repeats)
            tick = None if kernels is None or name != UNET else _tick(networks, kernels, rows, lane, repeats)
            yield Figure(name, rows, seconds, tick, error)


def _pass(
    networks: Networks, name: str, rows: int, lane: Lane, references: References, repeats: int
) -> tuple[float, float | None]:
    """Seconds and error of a network, as a graph."""
    specs = networks.tensors(name)
    arrays = {spec.name: allocate(lane.device, (rows, *spec.shape[1:]), spec.dtype) for spec in specs}
    execution = networks.open(name, rows, arrays, lane)
    for spec in specs:
        if spec.is_input:
            given = references.get(key(name, rows, spec.name))
            values = _meaningless(spec.name, arrays[spec.name]) if given is None else given
            lane.stream.copy_in(arrays[spec.name].address, _packed(values, arrays[spec.name]))
    (made,) = (spec.name for spec in specs if not spec.is_input)
    graph = lane.record(execution.run)
    lane.stream.fill(arrays[made].address, 0xFF, arrays[made].num_bytes)  # not-a-numbers: the graph must write it all
    graph.launch(lane.stream)
    found = _read(arrays[made], lane)
    expected = references.get(key(name, rows, made))
    error = None if expected is None else _relative_error(found, expected)
    if expected is None and not np.isfinite(found).all():
        raise TensorRTError(f"{name} for {rows} rows gives values that are not finite")
    return _seconds(graph, lane, repeats), error


def _tick(networks: Networks, kernels: Kernels, rows: int, lane: Lane, repeats: int) -> float:
    """Seconds of a denoise tick of so many rows of guided jobs, as a graph."""
    sample, context = networks.tensor(UNET, "sample"), networks.tensor(UNET, "context")
    gates = [spec.shape[1] for spec in networks.tensors(UNET) if spec.name == "gates"]
    num_adapters = gates[0] if gates else 0
    _, height, width, channels = sample.shape
    parts = [3] * (rows // 3) + [rows % 3] * bool(rows % 3)
    text_shape = context.shape[1], context.shape[2]
    slots = Slots(lane.device, len(parts), 1, (channels // 2, height, width), text_shape, _SIDE, context.dtype)
    for slot, count in enumerate(parts):
        scales = _SCALES[count % 3]
        table = SimpleNamespace(
            timesteps=np.array([500.0]), coefficients=np.ones((1, NUM_COEFFICIENTS)), initial_scale=1.0
        )
        order: Any = SimpleNamespace(
            table=table, weights=branch_weights(*scales), adapter=NO_ADAPTER, guidance_scale=scales[0],
            image_guidance_scale=scales[1], seed=slot,
        )  # fmt: skip
        slots.put_order(slot, order, lane.stream)
    memory = step_memory(lane.device, slots, rows, num_adapters)
    graph = StepGraph(rows, memory, slots, kernels, lane, partial(networks.open, lane=lane), num_adapters)
    jobs = list(range(len(parts)))
    packed = np.zeros(step_bytes(rows, num_adapters), np.uint8)
    graph.start(pack_step(rows, num_adapters, slots, jobs, [0] * len(jobs), packed))
    lane.stream.wait()
    return _seconds(graph.graph, lane, repeats)


def _seconds(graph: Graph, lane: Lane, repeats: int) -> float:
    """Of one replay: the mean of many, one behind the other."""
    graph.launch(lane.stream)
    start = lane.stream.mark()
    for _ in range(repeats):
        graph.launch(lane.stream)
    end = lane.stream.mark()
    end.wait()
    return end.seconds_since(start) / repeats


def _meaningless(name: str, array: DeviceArray) -> Array:
    """Values that a network may be given: what they are changes no time."""
    generator = np.random.default_rng(0)
    if array.dtype == "int32":
        return np.zeros(array.shape, np.int32)
    if name == "timesteps":
        return np.linspace(999.0, 1.0, array.shape[0], dtype=np.float32)
    if name == "gates":
        return np.zeros(array.shape, np.float32)
    if name == "scales":
        return np.full(array.shape, 2.0, np.float32)
    return np.clip(generator.standard_normal(array.shape, np.float32), -3.0, 3.0)


def _packed(values: Array, array: DeviceArray) -> Array:
    """Values in the type of an array; numpy has no bfloat16, so its bits are made here, rounded to nearest."""
    if values.shape != array.shape:
        raise ValueError(f"a reference is {list(values.shape)}, must be {list(array.shape)}")
    if array.dtype != "bfloat16":
        return np.ascontiguousarray(values.astype(array.dtype))
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.ascontiguousarray((rounded >> np.uint32(16)).astype(np.uint16))


def _read(array: DeviceArray, lane: Lane) -> Array:
    """An array of the device, as float32."""
    dtype = np.uint16 if array.dtype == "bfloat16" else np.dtype(array.dtype)
    found: Array = np.zeros(array.shape, dtype)
    assert found.nbytes == array.num_bytes == found.size * ITEM_BYTES[array.dtype]
    lane.stream.copy_out(found, array.address)
    lane.stream.wait()
    if array.dtype == "bfloat16":
        return (found.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return found.astype(np.float32)


def _relative_error(found: Array, expected: Array) -> float:
    """Norm of the difference by norm of what is expected; not finite where a value is not."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    error = float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))
    return error if np.isfinite(error) else float("inf")


def main(arguments: Sequence[str] | None = None, finders: Finders | None = None) -> int:
    """Entry point; returns 0, 1 where a network is wrong or fails, 2 where machine or folder cannot be used."""
    given = _parser().parse_args(arguments)
    try:
        machine = find_machine(given.engines, given.device, finders)
        networks = Networks(Runtime(machine.flavour.module, machine.device), machine.store, are_all_needed=False)
        kernels = None if given.no_kernels else _kernels(machine.device, machine.store, networks)
        references = dict(np.load(given.references)) if given.references else {}
    except (CannotServe, PlanError, RecipeError, OSError, CudaError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, CudaError) else 2
    print(f"{machine.flavour} on {machine.device}", flush=True)
    figures = []
    try:
        for figure in measure(networks, kernels, machine.device, references, given.repeats, given.only or ()):
            figures.append(figure)
            print(figure, flush=True)
            if given.json:
                given.json.write_text(json.dumps([asdict(item) for item in figures], indent=1) + "\n")
    except (TensorRTError, CudaError, PlanError, RecipeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if all(figure.is_right for figure in figures) else 1


def _kernels(device: Device, store: PlanStore, networks: Networks) -> Kernels | None:
    if not networks.buckets[UNET]:
        return None
    if not store.kernels.exists():
        print(f"{store.kernels}: holds no kernels; whole ticks are not measured", file=sys.stderr)
        return None
    return Kernels(device, store.kernels, networks.tensor(UNET, "sample").dtype)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure", description="Measures the engines of a folder on this machine's GPU."
    )
    parser.add_argument("engines", type=Path, help="folder that `steploom build-engine` filled")
    parser.add_argument("--references", type=Path, help="what torch makes of the same inputs, of export.references")
    parser.add_argument("--only", action="append", help="this network alone; may be given again")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="replays that are timed")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    parser.add_argument("--no-kernels", action="store_true", help="networks by themselves: no whole tick")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
