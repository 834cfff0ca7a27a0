"""What can go wrong in a worker, and which of it ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Exit code of a worker whose engine cannot go on: start it again.
EXIT_FATAL = 3

# Exit code of a worker that was stuck: start it again.
EXIT_STUCK = 4

# As torch, its libraries and Triton say it. Not every "CUDA error" stays, but none is a job's own: whatever a tick may
# run has run at warm-up.
_FATAL_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "device-side assert",
)
_FATAL_CLASSES = ("AcceleratorError", "CudaError")  # of torch, which is not loaded here

_ALLOCATOR_WORDS = "ried to allocate"  # torch's allocators refuse with them, a driver does not


class ModelError(ValueError):
    """A model directory is wrong, partial or corrupt, or asks for what is not supported."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class AdapterMissing(ValueError):
    """There is no adapter of that name in the model directory."""


class AdapterRefused(ValueError):
    """An engine cannot take an adapter while it serves; the message says why, and what would help."""


class EngineError(RuntimeError):
    """A tick failed; no job of it has moved."""


class FatalEngineError(RuntimeError):
    """The engine cannot go on: the process must end."""


class EngineStuck(RuntimeError):
    """A thread waits for the engine or its device, and nothing comes: the process must end."""


def is_fatal(error: BaseException) -> bool:
    """Whether later ticks would fail too: the device is lost, or memory has run out."""
    return any(_is_fatal(part) for part in _chain(error))


def is_refused_memory(error: BaseException) -> bool:
    """Whether all that has happened is that an allocator gave no memory: what needs less may still run.

    A driver that runs out of memory is another matter: nobody knows what it has left undone.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _ALLOCATOR_WORDS in str(error)


def _is_fatal(error: BaseException) -> bool:
    if isinstance(error, (FatalEngineError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if any(kind.__name__ in _FATAL_CLASSES for kind in type(error).__mro__):
        return True
    return any(word in str(error) for word in _FATAL_WORDS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came of: a recording that breaks off says less than what broke it."""
    part: BaseException | None = error
    while part is not None:
        yield part
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
