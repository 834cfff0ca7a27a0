"""Memory of other processes from which a GPU copies by itself, while it is registered with CUDA as pinned.

A copy that was started reads its source until its lane has come past it, and whoever lends the memory must not take it
for free before that: an encode tick is answered, whatever comes of it, only when the copies of its jobs have ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from steploom_engine_worker.engine import HostMemory, Pixels

log = logging.getLogger(__name__)


class Registrar(Protocol):
    """What CUDA offers. Both verbs give an error code, 0 where all went well."""

    def register(self, address: int, num_bytes: int) -> int:
        """Pins memory."""

    def unregister(self, address: int) -> int:
        """Waits for all that the device is at, and lets the memory go."""


class PinnedMemory:
    """The stretches of the host's memory that a device knows. On any thread.

    Args:
        registrar: makes them known; None: nothing ever is.
    """

    def __init__(self, registrar: Registrar | None) -> None:
        self._registrar = registrar
        self._sizes: dict[int, int] = {}  # by address
        self._lock = threading.Lock()  # held while a copy is started, so that none is of memory that is let go

    def __repr__(self) -> str:
        return f"PinnedMemory({len(self._sizes)} stretches, {sum(self._sizes.values())} bytes)"

    def add(self, memory: HostMemory) -> None:
        """Registers memory that stays mapped until `remove`; where CUDA refuses, nothing but speed is lost."""
        if self._registrar is None:
            return
        address = memory.ctypes.data
        try:
            error: object = self._registrar.register(address, memory.nbytes)
        except Exception as problem:  # a device that is lost will say so where it is used
            error = problem
        if error:
            log.warning("%d bytes of shared memory cannot be pinned, CUDA error %s: copied twice", memory.nbytes, error)
            return
        with self._lock:
            self._sizes[address] = memory.nbytes

    def remove(self, memory: HostMemory) -> None:
        """Before memory is unmapped: no copy touches it any more when this returns."""
        address = memory.ctypes.data
        with self._lock:
            if self._registrar is None or self._sizes.pop(address, None) is None:
                return
            error = self._registrar.unregister(address)
        if error:
            log.warning("%d bytes of shared memory stay pinned, CUDA error %d", memory.nbytes, error)

    def start_copy(self, pixels: Pixels, start: Callable[[Pixels], object]) -> bool:
        """Starts a copy to the device; False where the device does not know the memory.

        Args:
            pixels: uint8, contiguous.
            start: is given them, and returns while the device copies.
        """
        with self._lock:
            if not self._holds(pixels):
                return False
            start(pixels)
            return True

    def _holds(self, pixels: Pixels) -> bool:
        address = pixels.ctypes.data
        return any(
            start <= address and address + pixels.nbytes <= start + num_bytes
            for start, num_bytes in self._sizes.items()
        )
