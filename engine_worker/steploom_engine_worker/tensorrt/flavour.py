"""Which TensorRT is installed: `tensorrt` (8.6, 10 and 11) or `tensorrt_rtx`, and what it cannot do here.

All of them have the same Python interface under two names. Needs no torch; TensorRT is loaded only when looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
NAMES = (TENSORRT, RTX)  # as they are looked for

OLDEST = (8, 6)

INSTALL = {
    TENSORRT: 'pip install "tensorrt>=10"',
    RTX: "pip install tensorrt-rtx-cu13",
}
_HINT = (
    f"install one: `{INSTALL[TENSORRT]}` for any NVIDIA GPU, "
    f"or `{INSTALL[RTX]}` for GeForce and RTX GPUs and for building without a GPU"
)


class NoTensorRT(RuntimeError):
    """No TensorRT can be used here; the message says what to install."""


@dataclass(frozen=True)
class Flavour:
    """A TensorRT that was loaded."""

    name: str  # one of NAMES
    version: str  # as it says
    module: Any

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def is_rtx(self) -> bool:
        """Whether it compiles for the GPU only where it runs, so that engines are built without one."""
        return self.name == RTX

    @property
    def is_strongly_typed(self) -> bool:
        """Whether tensors have the types that the graph gives them, rather than such as the builder finds fastest."""
        return self.is_rtx or self.release >= (10, 0)

    @property
    def precisions(self) -> Sequence[str]:
        """Those of `plan_store.PRECISIONS` that it builds."""
        return ("fp16", "bf16", "fp8") if self.is_strongly_typed else ("fp16",)

    def cannot_target(self, capability: tuple[int, int]) -> str:
        """Why engines cannot be built for, or run on, GPUs of a compute capability, in words; empty where they can."""
        if not self.is_rtx:
            return ""
        known = self.targets()
        if capability in known:
            return ""
        listed = ", ".join(f"{major}.{minor}" for major, minor in known)
        return (
            f"{self} does not support compute capability {capability[0]}.{capability[1]}, only {listed}: "
            f"{INSTALL[TENSORRT]}"
        )

    def targets(self) -> list[tuple[int, int]]:
        """The compute capabilities that tensorrt_rtx knows, rising."""
        names = [name for name in dir(self.module.ComputeCapability) if name.startswith("SM")]
        return sorted((int(name[2:-1]), int(name[-1])) for name in names)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_flavour(names: Sequence[str] = NAMES, load: Callable[[str], ModuleType] = import_module) -> Flavour:
    """The first that can be loaded.

    Args:
        names: those to look for, in this order.
        load: imports a module.

    Raises:
        NoTensorRT: none can, or it is too old.
    """
    problems = []
    for name in names:
        try:
            module = load(name)
            found = Flavour(name, str(module.__version__), module)
            if found.release >= OLDEST or found.is_rtx:
                return found
            problems.append(f"{found} is too old, must be 8.6 or later")
        except ModuleNotFoundError as error:
            missing = f", which it needs: {error.name}" if error.name and error.name.split(".")[0] != name else ""
            problems.append(f"{name} is not installed{missing}")
        except Exception as error:  # libraries that do not load raise whatever they like
            problems.append(f"{name} does not load: {error}")
    raise NoTensorRT(f"no TensorRT can be used: {'; '.join(problems)}; {_HINT}")
