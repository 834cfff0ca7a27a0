"""Errors as torch, its libraries and Triton raise them when a device or its memory fails."""

from __future__ import annotations

from collections.abc import Callable

import torch

# RuntimeError in releases of torch that know no class of its own
AcceleratorError: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)

_HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
_REFUSED = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is "
    "free. Process 4242 has 78.08 GiB memory in use."
)


def _cuda_error(words: str) -> RuntimeError:
    """`torch.cuda.CudaError` finds its words in the CUDA runtime, which is not everywhere."""
    error: RuntimeError = torch.cuda.CudaError.__new__(torch.cuda.CudaError, words)
    return error


# After these nothing runs on the device any more.
LOST: dict[str, Callable[[], RuntimeError]] = {
    "illegal address": lambda: AcceleratorError(f"CUDA error: an illegal memory access was encountered{_HINT}"),
    "launch failure": lambda: AcceleratorError(f"CUDA error: unspecified launch failure{_HINT}"),
    "assertion": lambda: AcceleratorError(f"CUDA error: device-side assert triggered{_HINT}"),
    "in Triton": lambda: RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    "in the runtime": lambda: _cuda_error("an illegal memory access was encountered (700)"),
    "in a driver call": lambda: RuntimeError("CUDA driver error: unspecified launch failure"),
    "in cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(…)`"),
    "in cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "memory of the driver": lambda: AcceleratorError(f"CUDA error: out of memory{_HINT}"),
}
# After these a request for less may succeed.
REFUSED: dict[str, Callable[[], Exception]] = {
    "memory": lambda: torch.OutOfMemoryError(_REFUSED),
    "memory of the host": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "memory of Python": lambda: MemoryError(),
}


def fault(name: str) -> Exception:
    """A new error of this kind."""
    return (LOST | REFUSED)[name]()
