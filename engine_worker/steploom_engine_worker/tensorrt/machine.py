"""What an engine without torch needs of a machine: a GPU, cuda-python, TensorRT, and plans that fit both and the model.

All of it is asked before anything is started; the first that is missing is told, with what to install or to run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steploom_engine_worker.tensorrt.device import Device, NoCuda, load_driver
from steploom_engine_worker.tensorrt.flavour import NAMES, Flavour, NoTensorRT, find_flavour
from steploom_engine_worker.tensorrt.plan_store import FOLDER, REBUILD, PlanError, PlanStore, foreign, open_store

_CUDA = re.compile(r"cuda(?::(\d+))?")


class CannotServe(RuntimeError):
    """This machine cannot run the engine; the message says what to install or to run."""


@dataclass(frozen=True)
class Finders:
    """How the parts of a machine are looked for."""

    driver: Callable[[], Any] = load_driver  # raises NoCuda
    flavour: Callable[[Sequence[str]], Flavour] = find_flavour  # of these names; raises NoTensorRT


@dataclass(frozen=True)
class Machine:
    """All that is needed."""

    device: Device
    flavour: Flavour
    store: PlanStore


def engines_folder(root: Path, setting: str) -> Path:
    """Where the plans of a model are: in its directory, unless the setting names a folder."""
    return Path(setting) if setting else root / FOLDER


def device_index(name: str) -> int:
    """The number of a device that is named as torch names it; one that names no GPU stands for the first."""
    found = _CUDA.fullmatch(name)
    return int(found.group(1) or 0) if found else 0


def find_machine(folder: Path, index: int, finders: Finders | None = None) -> Machine:
    """The parts, each of which fits the others; whether they fit a model is not looked at.

    Args:
        folder: of the plans.
        index: of the device.
        finders: how they are looked for; None: as on a real machine.

    Raises:
        CannotServe: one is missing or does not fit.
        CudaError: the device has failed.
    """
    finders = finders or Finders()
    try:
        names = _flavours(folder)
        flavour = finders.flavour(names or NAMES)
        device = Device(finders.driver(), index)
        store = open_store(folder)
    except (NoTensorRT, NoCuda, PlanError) as error:
        raise CannotServe(str(error)) from None
    if not names:
        raise CannotServe(f"{folder}: holds no engines; {REBUILD}")
    problem = flavour.cannot_target(device.capability)
    if problem:
        raise CannotServe(problem)
    return Machine(device, flavour, store)


def _flavours(folder: Path) -> tuple[str, ...]:
    """What the plans of a folder were built by; none where there are none, or nobody can read what is there."""
    try:
        return tuple(dict.fromkeys(plan.flavour for plan in open_store(folder).plans))
    except PlanError:
        return ()


def find_problem(folder: Path, index: int, finders: Finders | None = None) -> str:
    """Why a worker would not come up on this machine, in words; empty where it would, as far as is seen without a
    look at model and plans.

    Raises:
        CudaError: the device has failed, or somebody else has its memory: neither is the machine's fault.
    """
    try:
        machine = find_machine(folder, index, finders)
    except CannotServe as error:
        return str(error)
    flavour, capability = machine.flavour, machine.device.capability
    for plan in machine.store.plans:
        problem = foreign(plan, flavour.name, flavour.version, capability)
        if problem:
            return f"the engine of {plan} {problem}; {REBUILD}"
    return ""
