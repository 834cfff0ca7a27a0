"""Pins memory through the CUDA that torch brings."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from steploom_engine_worker.lane import wait_for_device
from steploom_engine_worker.pinned import Registrar

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process


def registrar_of(device: torch.device) -> Registrar | None:
    """CUDA's, for a GPU."""
    return _Cuda(device) if device.type == "cuda" else None


class _Cuda:
    """Each call on a thread of its own: CUDA keeps an error for its thread, whose next kernel would seem to fail."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, num_bytes: int) -> int:
        return self._call("cudaHostRegister", address, num_bytes, _PORTABLE)

    def unregister(self, address: int) -> int:
        wait_for_device(self._device)
        return self._call("cudaHostUnregister", address)

    def _call(self, name: str, *arguments: int) -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._run, name, *arguments).result()

    def _run(self, name: str, *arguments: int) -> int:
        with torch.cuda.device(self._device):  # else a context on the first device
            return int(getattr(torch.cuda.cudart(), name)(*arguments))  # type: ignore[no-untyped-call]
