"""A CUDA device through cuda-python: memory, streams, events, graphs, kernels; every answer is looked at.

The driver's interface alone, of CUDA 12 and 13, in the device's primary context, which TensorRT uses too. Needs neither
torch nor CUDA's toolkit, and loads cuda-python only where a device is opened.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steploom_kernels.launch_recipe import Kernel, Launch

log = logging.getLogger(__name__)

INSTALL = "pip install cuda-python (or steploom[tensorrt])"

_SUCCESS, _OUT_OF_MEMORY = 0, 2

HostBytes = NDArray[np.uint8]


class NoCuda(RuntimeError):
    """This machine cannot open a CUDA device; the message says what is missing, and how to get it."""


class CudaError(RuntimeError):
    """A call of the driver failed. Its name is known to `errors`: later calls would fail too."""

    def __init__(self, call: str, code: int, name: str, text: str) -> None:
        super().__init__(f"CUDA error {code} ({name}) in {call}: {text}")
        self.call, self.code = call, code


class OutOfDeviceMemory(CudaError):
    """The driver had no memory to give; all else is as it was."""


class Owner(Protocol):
    """What keeps memory alive."""


class Memory:
    """Device memory, until nobody has it any more.

    Attributes:
        address: of its first byte, a multiple of 256.
        num_bytes: how much.
    """

    def __init__(self, device: Device, address: int, num_bytes: int) -> None:
        self._device, self.address, self.num_bytes = device, address, num_bytes

    def __repr__(self) -> str:
        return f"Memory({self.num_bytes} bytes at {self.address:#x})"

    def __del__(self) -> None:
        self._device.discard("cuMemFree", self.address)


class _Pinned:
    """Host memory that the device copies from and to by itself, until no array over it is left."""

    def __init__(self, device: Device, address: int, num_bytes: int) -> None:
        self._device, self._address = device, address
        # numpy keeps whoever has this alive, and so the memory
        self.__array_interface__ = {"shape": (num_bytes,), "typestr": "|u1", "data": (address, False), "version": 3}

    def __del__(self) -> None:
        self._device.discard("cuMemFreeHost", self._address)


class Event:
    """A point in a stream's order. Who waits sleeps: a thread that spins would take Python's lock from the others."""

    def __init__(self, device: Device, handle: Any) -> None:
        self._device, self.handle = device, handle

    def wait(self) -> None:
        """Returns when all work before it is done."""
        self._device.call("cuEventSynchronize", self.handle)

    def seconds_since(self, earlier: Event) -> float:
        """Of the device's time, between two that have been waited for."""
        return float(self._device.call("cuEventElapsedTime", earlier.handle, self.handle)) / 1e3

    def __del__(self) -> None:
        self._device.discard("cuEventDestroy", self.handle)


class Stream:
    """An order of work on the device, beside others."""

    def __init__(self, device: Device, handle: Any) -> None:
        self._device, self.handle = device, handle
        self.address = int(handle)  # as TensorRT takes it

    def mark(self) -> Event:
        """The end of what is in it now."""
        event = Event(self._device, self._device.call("cuEventCreate", self._device.blocking_sync))
        self._device.call("cuEventRecord", event.handle, self.handle)
        return event

    def follow(self, event: Event | None) -> None:
        """What comes next waits for a point of another stream, if there is one."""
        if event is not None:
            self._device.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def wait(self) -> None:
        """Returns when all that is in it is done."""
        self._device.call("cuStreamSynchronize", self.handle)

    def copy_in(self, address: int, source: NDArray[Any]) -> None:
        """Copies a contiguous array of the host to the device; pinned memory is read some time later."""
        self._device.call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.handle)

    def copy_out(self, target: NDArray[Any], address: int) -> None:
        """Fills a contiguous array of the host from the device."""
        self._device.call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.handle)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Copies on the device."""
        self._device.call("cuMemcpyDtoDAsync", target, source, num_bytes, self.handle)

    def fill(self, address: int, byte: int, num_bytes: int) -> None:
        """Sets every byte."""
        self._device.call("cuMemsetD8Async", address, byte, num_bytes, self.handle)

    def launch(self, function: Function, launch: Launch) -> None:
        """Starts a kernel."""
        self._device.call(
            "cuLaunchKernel", function.handle, *launch.grid, launch.threads, 1, 1, launch.shared_bytes, self.handle,
            launch.address, 0,
        )  # fmt: skip

    def __del__(self) -> None:
        self._device.discard("cuStreamDestroy", self.handle)


class Graph:
    """Recorded work of a stream, to be asked for again as one."""

    def __init__(self, device: Device, handle: Any) -> None:
        self._device, self.handle = device, handle

    def launch(self, stream: Stream) -> None:
        """Asks for it."""
        self._device.call("cuGraphLaunch", self.handle, stream.handle)

    def __del__(self) -> None:
        self._device.discard("cuGraphExecDestroy", self.handle)


class Function:
    """A kernel of a module that is loaded; keeps the module."""

    def __init__(self, device: Device, module: Any, handle: Any) -> None:
        self._device, self._module, self.handle = device, module, handle

    def __del__(self) -> None:
        self._device.discard("cuModuleUnload", self._module)


class Device:
    """One device. On any thread; each call makes the device's context the thread's own first.

    Args:
        driver: `cuda.bindings.driver`, or what stands for it.
        index: its number.

    Raises:
        NoCuda: the driver has no such device.
        CudaError: it cannot be used.
    """

    def __init__(self, driver: Any, index: int = 0) -> None:
        self._driver = driver
        self._context: Any = None
        self._local = threading.local()
        self._recording = threading.RLock()  # held while a thread records: none may wait for the whole device then
        self.index = index
        self.blocking_sync = driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC.value
        count = self.call("cuDeviceGetCount")
        if index >= count:
            raise NoCuda(f"there is no device {index}: CUDA sees {count} on this machine")
        self._device = self.call("cuDeviceGet", index)
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)
        attributes = driver.CUdevice_attribute
        self.capability = (
            self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.name = bytes(self.call("cuDeviceGetName", 256, self._device)).split(b"\0")[0].decode(errors="replace")
        self._filling = self.stream()

    def __repr__(self) -> str:
        return f"Device(cuda:{self.index}, {self.name}, compute capability {self.capability[0]}.{self.capability[1]})"

    def _attribute(self, attribute: Any) -> int:
        return int(self.call("cuDeviceGetAttribute", attribute, self._device))

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, num_bytes: int) -> Memory:
        """Memory full of zeros.

        Raises:
            OutOfDeviceMemory: there is not as much.
        """
        memory = Memory(self, int(self.call("cuMemAlloc", max(1, num_bytes))), num_bytes)
        self._filling.fill(memory.address, 0, max(1, num_bytes))
        self._filling.wait()
        return memory

    def pinned(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """An array of zeros in host memory from and to which the device copies by itself."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        flags = self._driver.CU_MEMHOSTALLOC_PORTABLE
        owner = _Pinned(self, int(self.call("cuMemHostAlloc", max(1, num_bytes), flags)), num_bytes)
        array: NDArray[Any] = np.asarray(owner).view(dtype).reshape(tuple(shape))
        array[...] = 0
        return array

    def register(self, address: int, num_bytes: int) -> None:
        """Pins memory of the host that is there already."""
        self.call("cuMemHostRegister", address, num_bytes, self._driver.CU_MEMHOSTREGISTER_PORTABLE)

    def unregister(self, address: int) -> None:
        """Waits for all that the device is at, and lets the memory go."""
        self.synchronise()
        self.call("cuMemHostUnregister", address)

    def stream(self) -> Stream:
        """A new one, that does not wait for the default stream."""
        return Stream(self, self.call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def record(self, stream: Stream, run: Callable[[], None]) -> Graph:
        """What `run` asks of a stream, as a graph; none of it happens now. Other threads go on meanwhile.

        Raises:
            Exception: what `run` raised, or what kept the driver from making a graph of it.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self._recording, self._keeping():
            self.call("cuStreamBeginCapture", stream.handle, mode)
            try:
                run()
            except BaseException:
                with suppress(CudaError):  # the stream must be usable again; what `run` raised says more
                    self._drop(self.call("cuStreamEndCapture", stream.handle))
                raise
            recorded = self.call("cuStreamEndCapture", stream.handle)
        try:
            return Graph(self, self.call("cuGraphInstantiate", recorded, 0))
        finally:
            self._drop(recorded)

    def _drop(self, recorded: Any) -> None:
        if int(recorded):
            self.discard("cuGraphDestroy", recorded)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """What nobody has any more is given back afterwards: a thread that records may not free memory."""
        self._local.kept = []
        try:
            yield
        finally:
            kept, self._local.kept = self._local.kept, None
            for name, handle in kept:
                self.discard(name, handle)

    def function(self, image: bytes, kernel: Kernel) -> Function:
        """A kernel from its cubin."""
        module = self.call("cuModuleLoadData", image)
        function = Function(self, module, self.call("cuModuleGetFunction", module, kernel.entry.encode()))
        if kernel.needs_shared_opt_in:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.call("cuFuncSetAttribute", function.handle, attribute, kernel.shared_bytes)
        return function

    def synchronise(self) -> None:
        """Waits for all that the device is at.

        Raises:
            CudaError: it has failed, and never will work again in this process.
        """
        with self._recording:
            self.call("cuCtxSynchronize")

    def call(self, name: str, *arguments: Any) -> Any:
        """One call of the driver: what it gives beside its result code, one value alone.

        Raises:
            CudaError: the code is none of success; the message has the call and CUDA's text.
        """
        if self._context is not None and not getattr(self._local, "has_context", False):
            self._checked("cuCtxSetCurrent", self._driver.cuCtxSetCurrent(self._context))
            self._local.has_context = True
        return self._checked(name, getattr(self._driver, name)(*arguments))

    def _checked(self, name: str, answer: Sequence[Any]) -> Any:
        code = int(answer[0])
        if code != _SUCCESS:
            kind = (
                OutOfDeviceMemory if code == _OUT_OF_MEMORY and name in ("cuMemAlloc", "cuMemHostAlloc") else CudaError
            )
            raise kind(name, code, *error_words(self._driver, answer[0]))
        return answer[1] if len(answer) == 2 else tuple(answer[1:])

    def discard(self, name: str, handle: Any) -> None:
        """Gives something back. A device that is lost says so elsewhere: here nothing could be done about it."""
        kept = getattr(self._local, "kept", None)
        if kept is not None:
            kept.append((name, handle))
            return
        with suppress(Exception):
            self.call(name, handle)


def error_words(driver: Any, code: Any) -> tuple[str, str]:
    """A result code's name and text, as CUDA has them."""
    words = []
    for call in (driver.cuGetErrorName, driver.cuGetErrorString):
        failed, text = call(code)
        words.append("unknown" if int(failed) or text is None else bytes(text).decode())
    return words[0], words[1]


def load_driver() -> Any:
    """cuda-python's driver module, with the driver up.

    Raises:
        NoCuda: one of both is not there; says what to install.
    """
    try:
        driver: Any = import_module("cuda.bindings.driver")
    except ImportError as error:
        raise NoCuda(f"cuda-python cannot be imported ({error}): {INSTALL}") from None
    try:
        code = driver.cuInit(0)[0]
    except Exception as error:  # a module that cannot find the driver's library raises a class of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise NoCuda(f"NVIDIA's driver is not on this machine: {reason}") from None
    if int(code) != _SUCCESS:
        name, text = error_words(driver, code)
        raise NoCuda(f"CUDA finds no GPU it can use: {text} ({name})")
    return driver


def open_device(index: int = 0) -> Device:
    """A device of this machine.

    Raises:
        NoCuda: there is none, or cuda-python or the driver is missing.
        CudaError: it cannot be used.
    """
    return Device(load_driver(), index)


def bytes_at(address: int, num_bytes: int) -> HostBytes:
    """Host memory at an address, as long as it is there."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))
