"""From a model directory to a folder of engines: exports, checks, builds what is missing, and keeps a manifest.

A plan that is there, whole, and was built from the same by the same is kept; any other is built again, and the reason
told. The manifest is written after every engine, so that a build which is broken off goes on where it was.
"""

from __future__ import annotations

import dataclasses
import fcntl
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from steploom_engine_worker.calibration import input_scales
from steploom_engine_worker.export.check import FP8_TOLERANCE, TOLERANCES, check
from steploom_engine_worker.export.companions import OLDEST_GPU, write_companions
from steploom_engine_worker.export.fp8 import quantise
from steploom_engine_worker.export.networks import NETWORKS, UNET, VAE_DECODER, network
from steploom_engine_worker.export.onnx_graph import ExportError, Graph, export
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.tensorrt.builder import BuildSettings, Profile, Watcher, build
from steploom_engine_worker.tensorrt.flavour import Flavour
from steploom_engine_worker.tensorrt.plan_store import (
    Plan,
    PlanError,
    PlanStore,
    TensorSpec,
    add_file,
    foreign,
    key_of,
    open_store,
)
from steploom_kernels.fp8 import LOWEST_CAPABILITY

REVISION = 1  # of what graphs are exported as: engines of an older one are built again

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float16}
TYPE_NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.int32: "int32",
}


class EngineBuildError(RuntimeError):
    """An engine was built that is not what was asked for."""


@dataclass(frozen=True)
class Request:
    """Which engines are to be there."""

    model: Path  # a model directory
    folder: Path  # of the engines
    capability: tuple[int, int]  # of the GPU that they are for
    precision: str = "fp16"  # one of plan_store.PRECISIONS
    unet_buckets: Sequence[int] = (1, 3, 6, 12)
    encode_buckets: Sequence[int] = (1, 4)  # of the VAE's encoder and of the text encoder
    decode_buckets: Sequence[int] = (1, 4)
    networks: Sequence[str] = NETWORKS  # those alone are built
    is_shared: bool = False  # one engine a network with a profile a bucket, rather than one a bucket
    is_checked: bool = True  # graphs are held against torch
    has_companions: bool = True  # what a worker needs beside the engines is written too
    settings: BuildSettings = field(default_factory=BuildSettings)

    def buckets(self, name: str) -> list[tuple[int, ...]]:
        """Of each engine of a network."""
        wanted = {UNET: self.unet_buckets, VAE_DECODER: self.decode_buckets}.get(name, self.encode_buckets)
        return [tuple(wanted)] if self.is_shared else [(bucket,) for bucket in wanted]


class Reporter(Protocol):
    """Is told what happens."""

    def kept(self, plan: Plan) -> None:
        """An engine need not be built."""

    def dropped(self, what: str, reason: str) -> None:
        """Engines that are there are of no use."""

    def compiled(self) -> None:
        """The Triton kernels were."""

    def exported(self, graph: Graph, seconds: float) -> None:
        """A network is a graph."""

    def checked(self, name: str, error: float) -> None:
        """A graph gives what torch gives, but for a relative error."""

    def building(self, name: str, buckets: tuple[int, ...]) -> Watcher:
        """An engine is about to be built."""

    def built(self, plan: Plan) -> None:
        """It was, and is in its place."""


def build_engines(request: Request, flavour: Flavour, reporter: Reporter) -> PlanStore:
    """Sees to it that all engines of a request are there.

    Raises:
        ModelError: the model directory is wrong.
        ValueError: the flavour cannot do what is asked for, or another build is at work in the folder.
        ExportError: a network cannot be exported, or its graph is not what torch gives.
        aot.ExportError: kernels cannot be compiled.
        BuildError: TensorRT fails.
    """
    problem = flavour.cannot_target(request.capability)
    if not problem and request.capability < OLDEST_GPU:
        problem = "compute capability {}.{} is too old, must be {}.{} or later".format(*request.capability, *OLDEST_GPU)
    if not problem and request.precision == "fp8" and request.capability < LOWEST_CAPABILITY:
        problem = "compute capability {}.{} has no floats of 8 bits".format(*request.capability)
    if not problem and request.precision not in flavour.precisions:
        problem = f"{flavour} builds {' and '.join(flavour.precisions)}, not {request.precision}"
    if problem:
        raise ValueError(problem)
    request.folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(request.folder), tempfile.TemporaryDirectory(dir=request.folder, prefix=".graphs-") as scratch:
        return _Build(request, flavour, reporter, Path(scratch)).run()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Nobody else builds into the folder meanwhile: the manifest has one writer.

    Raises:
        ValueError: somebody does.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another build is at work there") from None
        yield


class _Build:
    """One run."""

    def __init__(self, request: Request, flavour: Flavour, reporter: Reporter, scratch: Path) -> None:
        self._request, self._flavour, self._reporter, self._scratch = request, flavour, reporter, scratch
        self._model = load_model(request.model, _DTYPES[request.precision])

    def run(self) -> PlanStore:
        store = self._old_store()
        if self._request.has_companions:
            self._write_companions(store)
        for name in self._request.networks:
            missing = []
            for buckets in self._request.buckets(name):
                plan = self._usable(store, name, buckets)
                if plan is None:
                    missing.append(buckets)
                else:
                    self._reporter.kept(plan)
            if missing:
                for plan in self._built(name, missing):
                    store = store.with_plan(plan)
                    store.write()
                    self._reporter.built(plan)
        store = self._without_others(store)
        store.write()
        return store

    def _write_companions(self, store: PlanStore) -> None:
        request = self._request
        if write_companions(store.folder, store.kernels, self._exact, request.precision, request.capability):
            self._reporter.compiled()

    def _old_store(self) -> PlanStore:
        """What the folder holds of this model in this precision."""
        request, model = self._request, self._model
        adapters = tuple(item.name for item in model.adapters)
        empty = PlanStore(request.folder, model.digest, request.precision, adapters)
        try:
            old = open_store(request.folder)
        except PlanError as error:
            if any(request.folder.glob("*.plan")):
                self._reporter.dropped("what is there", str(error))
            return empty
        if not old.plans or dataclasses.replace(old, plans=()) == empty:
            return dataclasses.replace(empty, plans=old.plans)
        reason = "the model is another" if old.model_digest != model.digest else f"they are in {old.precision}"
        self._reporter.dropped(f"{len(old.plans)} engines", reason)
        return empty

    def _usable(self, store: PlanStore, name: str, buckets: tuple[int, ...]) -> Plan | None:
        for plan in store.of(name):
            if plan.buckets != buckets:
                continue
            reason = foreign(plan, self._flavour.name, self._flavour.version, self._request.capability)
            if not reason and plan.key != self._key(name, buckets):
                reason = "was built with other settings"
            try:
                if not reason:
                    store.read(plan)
                    return plan
            except PlanError as error:
                reason = str(error)
            self._reporter.dropped(f"the engine of {plan}", reason)
        return None

    def _without_others(self, store: PlanStore) -> PlanStore:
        """Engines of the networks in question for buckets that nobody wants any more are given up."""
        wanted = {(name, buckets) for name in self._request.networks for buckets in self._request.buckets(name)}
        kept = []
        for plan in store.plans:
            if plan.network in self._request.networks and (plan.network, plan.buckets) not in wanted:
                self._reporter.dropped(f"the engine of {plan}", "no such bucket is asked for")
            else:
                kept.append(plan)
        return dataclasses.replace(store, plans=tuple(kept))

    def _key(self, name: str, buckets: tuple[int, ...]) -> str:
        request = self._request
        return key_of(
            model=self._model.digest,
            network=name,
            buckets=buckets,
            precision=request.precision,
            flavour=[self._flavour.name, self._flavour.version],
            capability=request.capability,
            settings=request.settings.as_dict(),
            revision=REVISION,
        )

    def _built(self, name: str, wanted: Sequence[tuple[int, ...]]) -> Iterator[Plan]:
        graph = self._graph(name)
        for buckets in wanted:
            rows = buckets[0] if len(buckets) == 1 else None
            file = graph.save(self._scratch / f"{name}.onnx", rows)
            watcher = self._reporter.building(name, buckets)
            built = build(
                self._flavour, file, buckets, self._request.capability, self._request.settings,
                self._timing_cache, watcher,
            )  # fmt: skip
            _require(graph, buckets, built.tensors, built.profiles)
            yield Plan(
                network=name,
                buckets=buckets,
                file=add_file(self._request.folder, built.plan),
                num_bytes=len(built.plan),
                tensors=built.tensors,
                flavour=self._flavour.name,
                version=self._flavour.version,
                capability=self._request.capability,
                key=self._key(name, buckets),
                settings=self._request.settings.as_dict(),
                num_nodes=(graph.nodes_before, graph.nodes_after),
                num_layers=built.num_layers,
                build_s=round(built.build_s, 3),
            )
            self._tidy()

    def _graph(self, name: str) -> Graph:
        """A network's graph, held against torch."""
        begin = time.perf_counter()
        graph = export(network(self._model, name))
        tolerance = 0.0
        if self._request.precision == "fp8" and name == UNET:
            tolerance = FP8_TOLERANCE
            if not quantise(graph.model, self._input_scales()):
                raise ExportError("the UNet has no linear map that can be multiplied in floats of 8 bits")
        self._reporter.exported(graph, time.perf_counter() - begin)
        if self._request.is_checked:
            exact = network(self._exact, name)
            # ONNX Runtime has no bfloat16 on a CPU: the same operations are checked in float32
            checked = graph if graph.network.outputs[0].dtype in TOLERANCES else export(exact)
            file = checked.save(self._scratch / f"{name}.onnx")
            self._reporter.checked(name, check(file, checked.network, exact, tolerance=tolerance))
            self._tidy()
        return graph

    def _input_scales(self) -> dict[str, float]:
        """Of the UNet's linear maps, seen on jobs of its own: on a GPU where torch has one, as they take their time."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        return input_scales(load_model(self._request.model, dtype), device, dtype)

    @cached_property
    def _exact(self) -> Model:
        return load_model(self._request.model, torch.float32)

    @property
    def _timing_cache(self) -> Path:
        """Of this TensorRT on this GPU."""
        major, minor = self._request.capability
        return self._request.folder / f"timing-{self._flavour.name}-{self._flavour.version}-sm{major}{minor}.cache"

    def _tidy(self) -> None:
        for part in self._scratch.iterdir():
            part.unlink()


def _require(
    graph: Graph, buckets: tuple[int, ...], tensors: Sequence[TensorSpec], profiles: Sequence[Profile]
) -> None:
    """Holds what the builder was given, as it says, against what the network is.

    Raises:
        EngineBuildError: names what differs.
    """
    network = graph.network
    ports = [(port, True) for port in network.inputs] + [(port, False) for port in network.outputs]
    wanted = {TensorSpec(port.name, TYPE_NAMES[port.dtype], (-1, *port.shape), is_input) for port, is_input in ports}
    if wanted != set(tensors):
        odd = sorted(str(item) for item in wanted ^ set(tensors))
        raise EngineBuildError(f"{network.name}: the engine's inputs and outputs differ: {'; '.join(odd)}")
    shapes = [{port.name: (bucket, *port.shape) for port in network.inputs} for bucket in buckets]
    if shapes != [dict(profile) for profile in profiles]:
        raise EngineBuildError(f"{network.name}: the engine's profiles are {list(profiles)}, must be {shapes}")
