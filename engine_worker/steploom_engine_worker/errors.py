"""What can go wrong in a worker, and which of it ends the process."""

from __future__ import annotations

from pathlib import Path

# Exit code of a worker whose engine cannot go on: start it again.
EXIT_FATAL = 3

_FATAL_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUDA error",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "device-side assert",
)


class ModelError(ValueError):
    """A model directory is wrong, partial or corrupt, or asks for what is not supported."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class EngineError(RuntimeError):
    """A tick failed; no job of it has moved."""


class FatalEngineError(RuntimeError):
    """The engine cannot go on: the process must end."""


def is_fatal(error: BaseException) -> bool:
    """Whether later ticks would fail too: the device is lost, or memory has run out."""
    if isinstance(error, (FatalEngineError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _FATAL_WORDS)
