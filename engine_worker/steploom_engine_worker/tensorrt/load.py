"""From settings to an engine without torch, on a machine that has all that it needs."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

from steploom_common.settings import ConfigError, replace
from steploom_engine_worker.capacity import slots_that_fit
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.description import Description, describe
from steploom_engine_worker.engine import Costs, Engine
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model_files import model_root
from steploom_engine_worker.tensorrt.engine import TensorRTEngine
from steploom_engine_worker.tensorrt.host import read_host
from steploom_engine_worker.tensorrt.kernels import Kernels
from steploom_engine_worker.tensorrt.machine import (
    CannotServe,
    Finders,
    Machine,
    device_index,
    engines_folder,
    find_machine,
    find_problem,
)
from steploom_engine_worker.tensorrt.networks import TEXT_ENCODER, Networks
from steploom_engine_worker.tensorrt.plan_store import REBUILD, PlanError
from steploom_engine_worker.tensorrt.runtime import Runtime, TensorRTError
from steploom_engine_worker.tensorrt.slots import slot_bytes
from steploom_engine_worker.warmup import warm_up
from steploom_kernels.launch_recipe import RecipeError

log = logging.getLogger(__name__)


def build_tensorrt_engine(config: WorkerConfig, finders: Finders | None = None) -> tuple[Engine, Costs]:
    """The engine, warm, and what the buckets cost for which there are plans. For more see `load_tensorrt_engine`."""
    engine = load_tensorrt_engine(config, finders)
    built = {f"{stage.name.lower()}_buckets": tuple(buckets) for stage, buckets in engine.buckets.items()}
    return engine, warm_up(engine, replace(config, **built))


def check_tensorrt(config: WorkerConfig, finders: Finders | None = None) -> None:
    """Asks this machine for all that the engine needs but the model and the plans themselves.

    Raises:
        ConfigError: something is missing or does not fit; says what to install or to run.
        CudaError: the device has failed.
    """
    problem = find_problem(
        engines_folder(model_root(config.model), config.engines), device_index(config.device), finders
    )
    if problem:
        raise ConfigError("worker.engine", f"is 'tensorrt', but {problem}")


def load_tensorrt_engine(config: WorkerConfig, finders: Finders | None = None) -> TensorRTEngine:
    """The engine that the settings describe, with as many graphs as it needs to serve.

    Args:
        config: the settings.
        finders: how the parts of the machine are looked for; None: as on a real one.

    Raises:
        ModelError: the model directory is wrong.
        ConfigError: this machine, or what was built, cannot run it; says what to install or to run.
        CudaError: the device has failed.
    """
    begin = time.perf_counter()
    root = model_root(config.model)
    try:
        folder = engines_folder(root, config.engines)
        with ThreadPoolExecutor(1) as beside:  # weights are hashed while TensorRT is loaded
            model = beside.submit(describe, root)
            machine = find_machine(folder, device_index(config.device), finders)
        engine = _load(config, machine, model.result())
    except (CannotServe, PlanError, TensorRTError) as error:
        raise ConfigError("worker.engine", f"is 'tensorrt', but {error}") from error
    except RecipeError as error:
        raise ConfigError("worker.engine", f"is 'tensorrt', but {folder / 'kernels'}: {error}; {REBUILD}") from error
    while config.record_all and engine.prepare() is not None:
        pass
    megabytes, seconds = engine.slots.num_bytes / 1e6, time.perf_counter() - begin
    log.info(
        "%s, %s: %d slots, %.0f MB; %d of %d buckets recorded in %.1f s",
        machine.flavour, machine.device.name, engine.num_slots, megabytes, *engine.progress, seconds,
    )  # fmt: skip
    return engine


def _load(config: WorkerConfig, machine: Machine, model: Description) -> TensorRTEngine:
    store, device, flavour = machine.store, machine.device, machine.flavour
    store.check(model.digest, flavour.name, flavour.version, device.capability)
    if store.adapters != tuple(item.name for item in model.adapters):
        raise PlanError(f"{store.folder}: the engines are for the adapters {list(store.adapters)}; {REBUILD}")
    if model.latent_shape[0] != 4:
        raise ModelError(model.files.root, f"has {model.latent_shape[0]} latent channels, the kernels are built for 4")
    networks = Networks(Runtime(flavour.module, device), store)
    context = networks.tensor(TEXT_ENCODER, "context")
    kernels = Kernels(device, store.kernels, context.dtype)
    text_shape, steps = (context.shape[1], context.shape[2]), min(config.max_steps, model.schedule.num_train_timesteps)
    each = slot_bytes(steps, model.latent_shape, text_shape, model.side, context.dtype)
    num_slots = config.slots or slots_that_fit(device.memory[0], each)
    return TensorRTEngine(model, device, networks, kernels, read_host(store.folder), num_slots, config.max_steps)
