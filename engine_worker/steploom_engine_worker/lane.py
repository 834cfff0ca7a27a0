"""An order of work on a device: a CUDA stream, recorded work replayed as one graph, marks to follow and to wait for.

On a CPU a lane is the calling thread: work is done when it is asked for, marks are moments of the clock. So whatever is
built of lanes can be tested where there is no GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

# Held while a graph is made, and by whoever waits for a whole device: CUDA refuses the second during the first, and
# spoils the graph.
_whole_device = threading.RLock()


def wait_for_device(device: torch.device) -> None:
    """Returns when a GPU has done all that it was asked for; on any thread.

    Raises:
        Exception: it cannot go on.
    """
    with _whole_device:
        torch.cuda.synchronize(device)


class Mark(Protocol):
    """A point in a lane's order."""

    def wait(self) -> None:
        """Returns when all work before it is done."""

    def seconds_since(self, earlier: Any) -> float:
        """Of the device's time, between two marks that have been waited for."""


class Lane(Protocol):
    """See the module."""

    def working(self) -> AbstractContextManager[object]:
        """What torch is asked for within goes into this lane."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Runs it once, and gives what repeats it, over the same memory."""

    def obstacle(self, run: Callable[[], object]) -> str:
        """Why it cannot be recorded: it waits for the device. Empty where it can; other threads must be still."""

    def mark(self) -> Mark:
        """The end of what is in the lane now."""

    def follow(self, mark: Mark | None) -> None:
        """What comes next waits for a mark of another lane, if there is one."""


def open_lane(device: torch.device) -> Lane:
    """A new lane of a device."""
    return _CudaLane(device) if device.type == "cuda" else _ThreadLane()


class _Moment:
    """A mark in a thread: it is past when it is made."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: _Moment) -> float:
        return self._at - earlier._at


class _ThreadLane:
    def working(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run

    def obstacle(self, run: Callable[[], object]) -> str:
        del run
        return ""

    def mark(self) -> Mark:
        return _Moment()

    def follow(self, mark: Mark | None) -> None:
        pass


class _Event:
    """A mark in a stream. Who waits sleeps: a thread that spins would take Python's lock from the others."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: _Event) -> float:
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class _CudaLane:
    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # graphs of one lane never run at once, so they may use the same memory for what they forget
        self._pool = torch.cuda.graph_pool_handle()

    def working(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))  # where its memory was filled
        with self.working():
            run()  # compiles, and lets libraries choose their kernels
            run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # other threads go on meanwhile
        made = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with _whole_device, made:
            run()
        return graph.replay

    def obstacle(self, run: Callable[[], object]) -> str:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        mode = torch.cuda.get_sync_debug_mode()
        with self.working():
            run()  # what is done once alone may wait
            torch.cuda.set_sync_debug_mode("error")
            try:
                run()
            except RuntimeError as error:
                return str(error)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        return ""

    def mark(self) -> Mark:
        return _Event(self._stream)

    def follow(self, mark: Mark | None) -> None:
        if isinstance(mark, _Event):
            self._stream.wait_event(mark.event)
