"""Triton where it is installed. Without it every module still imports, and its plain-torch reference runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["HAS_TRITON", "INTERPRETED", "Variant", "cdiv", "constant", "jit", "runs_on_triton", "tl"]

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
    jit: Callable[..., Any] = triton.jit
    cdiv: Callable[[int, int], int] = triton.cdiv
except ModuleNotFoundError:  # a CPU host: nothing is launched
    HAS_TRITON = False
    tl: Any = None  # type: ignore[no-redef]

    def jit(function: Any) -> Any:
        """Leaves the function as it is."""
        return function

    def cdiv(total: int, part: int) -> int:
        """The quotient, rounded up."""
        return -(-total // part)


@jit
def _nothing() -> None:
    pass


_IS_COMPILED = HAS_TRITON and type(_nothing).__name__ == "JITFunction"


def constant(value: Any) -> Any:
    """What kernels may read though it is no argument. For Triton's compiler that is of a type of its own."""
    return tl.constexpr(value) if _IS_COMPILED else value


# Whether kernels run in Triton's interpreter, which knows no assembler: kernels may branch by it.
INTERPRETED = constant(not _IS_COMPILED)


def runs_on_triton(tensor: Any) -> bool:
    """Whether an operation on this tensor is launched as a Triton kernel: on a GPU, where Triton is."""
    return HAS_TRITON and bool(tensor.is_cuda)


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel, with all that a launch without Triton must know."""

    name: str  # unique among all kernels: group_norm_silu_fp16
    kernel: Any  # the jitted function
    signature: Mapping[str, str]  # type of each argument in order: "*fp16", "i32", "fp32", "constexpr"
    constants: Mapping[str, int | float | bool]  # value of each constexpr
    grid: tuple[str, str, str]  # expressions over arguments and constants: ("cdiv(rows, BLOCK)", "1", "1")
    aligned: tuple[str, ...] = ()  # pointers and integers that are multiples of 16
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int = 0  # of a thread; 0: the compiler's choice
    lowest: int = 0  # architecture that has what it uses: 89 for floats of 8 bits; it is compiled for no lower one
