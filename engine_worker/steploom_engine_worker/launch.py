"""From settings to a running engine."""

from __future__ import annotations

from importlib import import_module

from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Costs, Engine
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.warmup import warm_up


def build_engine(config: WorkerConfig) -> tuple[Engine, Costs]:
    """The engine that the settings name, warm, and what its buckets cost.

    Raises:
        ModelError: the model directory is wrong.
        ConfigError: the device or the type is not there, or engines that were to be built before.
    """
    if config.engine == "tensorrt":
        from steploom_engine_worker.tensorrt.load import build_tensorrt_engine

        return build_tensorrt_engine(config)
    engine = _cold_engine(config)
    return engine, warm_up(engine, config)


def check_machine(config: WorkerConfig) -> None:
    """Asks this machine whether a worker of these settings would come up, as far as is seen in a moment.

    Raises:
        ConfigError: it would not; says what to install or to run.
    """
    if config.engine == "tensorrt":
        from steploom_engine_worker.tensorrt.load import check_tensorrt

        check_tensorrt(config)


def import_engine(config: WorkerConfig) -> None:
    """Imports what the engine of these settings is made of; `build_engine` finds it loaded."""
    if config.engine == "tensorrt":
        import_module("steploom_engine_worker.tensorrt.load")
    elif config.engine == "torch":
        is_cuda = config.device.startswith("cuda")
        import_module(f"steploom_engine_worker.{'graph_engine' if is_cuda else 'torch_engine'}")


def _cold_engine(config: WorkerConfig) -> Engine:
    if config.engine == "fake":
        return FakeEngine(config)
    # torch takes seconds to import: only where it is used
    if config.device.startswith("cuda"):
        from steploom_engine_worker.graph_engine import load_graph_engine

        return load_graph_engine(config)
    from steploom_engine_worker.torch_engine import load_torch_engine

    return load_torch_engine(config)
