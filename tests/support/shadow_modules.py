"""Modules that stand before the installed ones in a child process: a GPU and TensorRT, as fakes or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# A worker that loads one of these has failed at being without.
HEAVY = ("torch", "transformers", "diffusers", "triton")

_MISSING = 'raise ModuleNotFoundError("No module named {name!r}", name={name!r})\n'
_DRIVER = """
import sys
from steploom_engine_worker.tensorrt.fake.driver import FakeDriver
from steploom_engine_worker.tensorrt.fake.driver import Code
sys.modules[__name__] = FakeDriver(capability={capability!r}, num_devices={num_devices!r})
for name, code in {faults!r}.items():
    sys.modules[__name__].fail(name, Code(code))
"""
_TENSORRT = """
import sys
from importlib import import_module
from steploom_engine_worker.tensorrt.fake.trt import FakeTensorRT
driver = import_module("cuda.bindings.driver") if {has_cuda} else None
sys.modules[__name__] = FakeTensorRT(driver, {version!r})
"""


def shadows(
    folder: Path,
    version: str | None = "10.9.0",
    has_cuda: bool = True,
    num_devices: int = 1,
    capability: tuple[int, int] = (9, 0),
    faults: Mapping[str, int] | None = None,
) -> Mapping[str, str]:
    """The environment of a process that finds them.

    Args:
        folder: for the modules.
        version: of TensorRT; None: it is not installed.
        has_cuda: whether cuda-python is installed.
        num_devices: how many GPUs there are.
        capability: theirs.
        faults: CUresult of a call by its name, once.
    """
    modules = {name: _MISSING.format(name=name) for name in (*HEAVY, "tensorrt_rtx")}
    modules["tensorrt"] = (
        _MISSING.format(name="tensorrt") if version is None else _TENSORRT.format(version=version, has_cuda=has_cuda)
    )
    modules["cuda"] = "" if has_cuda else _MISSING.format(name="cuda")
    for name, text in modules.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(text)
    if has_cuda:
        bindings = folder / "cuda" / "bindings"
        bindings.mkdir()
        (bindings / "__init__.py").write_text("")
        (bindings / "driver.py").write_text(
            _DRIVER.format(capability=capability, num_devices=num_devices, faults=dict(faults or {}))
        )
    return {**os.environ, "PYTHONPATH": str(folder)}
