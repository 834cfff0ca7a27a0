"""From a model's files to a program: by the format that its backend stands for."""

from __future__ import annotations

from steploom_engine_worker.plain.errors import BrokenModel
from steploom_engine_worker.plain.model_config import PYTHON
from steploom_engine_worker.plain.program import Origin, Program
from steploom_engine_worker.plain.python_program import PythonProgram, forget_module
from steploom_engine_worker.plain.spec import Placement


def load_program(origin: Origin, placement: Placement) -> Program:
    """Reads a model into memory. Blocks.

    Raises:
        BrokenModel: it cannot be loaded.
    """
    if origin.backend == PYTHON:
        return PythonProgram(origin, placement)
    try:
        from steploom_engine_worker.plain.torch_program import load_torch_program  # torch takes seconds and memory
    except ImportError as error:
        raise BrokenModel(origin.backend, f"needs torch, which cannot be loaded: {error}") from error
    return load_torch_program(origin, placement)


def forget(origin: Origin) -> None:
    """Lets go what instances have shared; none is left."""
    if origin.backend == PYTHON:
        forget_module(origin.module_name)
