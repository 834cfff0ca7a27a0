"""An ONNX graph to an engine: one way for tensorrt 8.6, 10 and 11 and for tensorrt_rtx.

Where they differ: from 10 on tensors have the very types of the graph, while 8.6 is allowed half precision and held to
float32 where the graph computes in it; tensorrt_rtx is told for which GPU to build, the others build for the one at
hand; timing caches are of no use to tensorrt_rtx, and progress is shown from 9 on. Needs no torch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from steploom_engine_worker.tensorrt.flavour import Flavour
from steploom_engine_worker.tensorrt.plan_store import TensorSpec, write_whole

_MOST_MESSAGES = 20  # of TensorRT's errors that are kept

Profile = tuple[tuple[str, tuple[int, ...]], ...]  # the shape of each input by its name: the least, the best, the most


class BuildError(RuntimeError):
    """An engine cannot be built; the message holds what TensorRT said."""


class Watcher(Protocol):
    """Sees a build advance. What it raises, as KeyboardInterrupt, ends the build."""

    def start(self, phase: str, parent: str, steps: int) -> None:
        """A phase begins, within another unless `parent` is empty."""

    def advance(self, phase: str) -> None:
        """A step of it is done."""

    def finish(self, phase: str) -> None:
        """It has ended."""


@dataclass(frozen=True)
class BuildSettings:
    """What a build may do; part of the key of its plan."""

    optimization_level: int = 3  # 0 to 5: how long the builder looks for faster kernels
    workspace_mb: int = 0  # of device memory that a layer's kernel may take; 0: all there is
    heuristic: bool = False  # kernels chosen by rule, fewer are timed; only 8.6 has it
    without_libraries: bool = False  # no kernels of cuBLAS and cuDNN, where these are not installed

    def as_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Built:
    """An engine, and what was read back from the network and the profiles that it was built of."""

    plan: bytes
    tensors: tuple[TensorSpec, ...]  # the first axis of each is -1
    profiles: tuple[Profile, ...]
    num_layers: int
    build_s: float
    load_s: float  # of reading the graph


def build(
    flavour: Flavour,
    graph: Path,
    buckets: Sequence[int],
    capability: tuple[int, int],
    settings: BuildSettings | None = None,
    timing_cache: Path | None = None,
    watcher: Watcher | None = None,
    hear: Callable[[str], None] | None = None,
) -> Built:
    """Builds an engine.

    Args:
        flavour: by which.
        graph: an ONNX file whose inputs have the rows in front: any number of them, or the one bucket's.
        buckets: numbers of rows, each an optimization profile of its own where the graph takes any.
        capability: of the GPU that it is for.
        settings: of the builder.
        timing_cache: a file that is read where it exists, and kept.
        watcher: sees the build advance, where the builder tells.
        hear: is given every line of TensorRT's log, the most talkative ones too.

    Raises:
        BuildError: the graph cannot be read or built.
        ValueError: that flavour builds nothing for that GPU, or not with these settings.
    """
    problem = flavour.cannot_target(capability)
    if problem:
        raise ValueError(problem)
    trt = flavour.module
    log = _logger(trt, hear)
    builder = trt.Builder(log)
    if not builder:
        raise BuildError(f"{flavour} gives no builder: {log.said()}")
    start = time.perf_counter()
    network = builder.create_network(_network_flags(flavour))
    parser = _parse(trt, network, log, graph)
    load_s = time.perf_counter() - start
    config = builder.create_builder_config()
    _configure(flavour, config, network, settings or BuildSettings(), capability)
    profiles = _add_profiles(builder, config, network, buckets)
    cache = _use_timing_cache(flavour, config, timing_cache)
    monitor = _monitor(trt, watcher)
    if monitor is not None:
        config.progress_monitor = monitor
    start = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    build_s = time.perf_counter() - start
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    if serialized is None:
        raise BuildError(f"{flavour} builds no engine of {graph.name}: {log.said()}")
    if cache is not None and timing_cache is not None:
        write_whole(timing_cache, bytes(config.get_timing_cache().serialize()))
    num_layers = int(network.num_layers)
    tensors = tuple(_tensors(trt, network))
    del parser  # whose weights the network reads until it is built
    return Built(bytes(serialized), tensors, profiles, num_layers, build_s, load_s)


def _network_flags(flavour: Flavour) -> int:
    flags = flavour.module.NetworkDefinitionCreationFlag
    if flavour.is_strongly_typed:
        strong = getattr(flags, "STRONGLY_TYPED", None)  # a release that knows no other way need not have it
        return 0 if strong is None else 1 << int(strong)
    return 1 << int(flags.EXPLICIT_BATCH)


def _parse(trt: Any, network: Any, log: Any, graph: Path) -> Any:
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)) or not network.num_outputs:
        said = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise BuildError(f"{graph}: cannot be read: {said or log.said()}")
    return parser


def _configure(
    flavour: Flavour, config: Any, network: Any, settings: BuildSettings, capability: tuple[int, int]
) -> None:
    trt = flavour.module
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if settings.heuristic:
        flag = getattr(trt.BuilderFlag, "ENABLE_TACTIC_HEURISTIC", None)
        if flag is None:
            raise ValueError(f"{flavour} has no heuristic for kernels")
        config.set_flag(flag)
    if settings.without_libraries and not flavour.is_rtx:
        config.set_tactic_sources(0)
    if flavour.is_rtx:
        config.num_compute_capabilities = 1
        target = getattr(trt.ComputeCapability, f"SM{capability[0]}{capability[1]}")
        if not config.set_compute_capability(target, 0):
            raise BuildError(f"{flavour} does not take compute capability {capability[0]}.{capability[1]}")
    if not flavour.is_strongly_typed:
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        _keep_convolutions(trt, network, _keep_float32(trt, network))


def _keep_float32(trt: Any, network: Any) -> set[str]:
    """What the graph computes of float32 inputs stays so until it is cast; returns the names of its tensors.

    Half precision would lose a timestep's phases. 8.6 tells float32 of every tensor between layers, that of a cast to
    half precision too: where such a chain ends is seen by the cast alone, whose type must not be set to another.
    """
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    wide = {item.name for item in inputs if item.dtype == trt.float32}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        is_cast = layer.type == trt.LayerType.CAST
        if is_cast or not wide & _read(layer) or any(item.dtype != trt.float32 for item in outputs):
            continue
        wide |= {item.name for item in outputs}
        layer.precision = trt.float32
        for index in range(layer.num_outputs):
            layer.set_output_type(index, trt.float32)
    return wide


def _keep_convolutions(trt: Any, network: Any, wide: set[str]) -> None:
    """Convolutions of half precision are tried in that alone: their kernels take most of a build's time."""
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.CONVOLUTION and not wide & _read(layer):
            layer.precision = trt.float16


def _read(layer: Any) -> set[str]:
    """The names of a layer's inputs."""
    return {item.name for item in map(layer.get_input, range(layer.num_inputs)) if item is not None}


def _add_profiles(builder: Any, config: Any, network: Any, buckets: Sequence[int]) -> tuple[Profile, ...]:
    """A profile a bucket, where the graph takes any number of rows; and the shapes of inputs in each, read back."""
    inputs = [network.get_input(number) for number in range(network.num_inputs)]
    shapes = {item.name: tuple(item.shape) for item in inputs}
    if all(shape[0] >= 0 for shape in shapes.values()):
        rows = {shape[0] for shape in shapes.values()}
        if rows != set(buckets):
            raise ValueError(f"the graph has {sorted(rows)} rows, an engine of it cannot be for {list(buckets)}")
        return (tuple(shapes.items()),)
    read: list[Profile] = []
    for bucket in buckets:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, *[(bucket, *shape[1:])] * 3)
        if config.add_optimization_profile(profile) != len(read):
            raise BuildError(f"no optimization profile for {bucket} rows can be added")
        read.append(tuple((name, tuple(profile.get_shape(name)[0])) for name in shapes))
    return tuple(read)


def _use_timing_cache(flavour: Flavour, config: Any, file: Path | None) -> Any:
    """The cache that the builder reads and adds to; None: it takes none."""
    if file is None or flavour.is_rtx:
        return None
    kept = file.read_bytes() if file.exists() else b""
    with _quiet_deprecations():
        cache = config.create_timing_cache(kept)
        if not config.set_timing_cache(cache, False) and kept:  # of another release or GPU
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
    return cache


@contextmanager
def _quiet_deprecations() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _tensors(trt: Any, network: Any) -> Iterator[TensorSpec]:
    """The inputs and outputs of a network."""
    for count, get, is_input in (
        (network.num_inputs, network.get_input, True),
        (network.num_outputs, network.get_output, False),
    ):
        for number in range(count):
            item = get(number)
            yield TensorSpec(item.name, _type_name(trt, item.dtype), (-1, *tuple(item.shape)[1:]), is_input)


def _type_name(trt: Any, dtype: Any) -> str:
    names = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32", "INT32": "int32"}
    for key, name in names.items():
        if getattr(trt.DataType, key, None) == dtype:
            return name
    raise BuildError(f"the graph has an input or output of type {dtype}, which no engine is driven with")


def _logger(trt: Any, hear: Callable[[str], None] | None) -> Any:
    """Keeps what TensorRT says of errors, for the exception that comes of them."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if hear is not None:
                hear(text)
            if severity <= trt.ILogger.ERROR and len(self.errors) < _MOST_MESSAGES:
                self.errors.append(text)

        def said(self) -> str:
            return "; ".join(dict.fromkeys(self.errors)) or "it does not say why"

    return Logger()


def _monitor(trt: Any, watcher: Watcher | None) -> Any:
    """The builder's view of a watcher; None where it tells nothing."""
    if watcher is None or not hasattr(trt, "IProgressMonitor"):
        return None
    seen = watcher

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell(lambda: seen.start(phase_name, parent_phase or "", num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            self._tell(lambda: seen.advance(phase_name))
            return self.error is None  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            self._tell(lambda: seen.finish(phase_name))

        def _tell(self, tell: Callable[[], None]) -> None:
            if self.error is None:
                try:
                    tell()
                except BaseException as error:  # it cannot pass through the builder
                    self.error = error

    return Monitor()
