"""`cuda.bindings.driver` as far as `device` uses it, over the host's memory.

Work is done as late as is allowed: when somebody waits for it, or when an event that is waited for comes behind it. So
a buffer that is used again too soon, or a point that nobody waited for, shows in what is computed. Any call fails on
command; what is wrong with the caller (an address outside of all memory, a wait inside of a capture) fails as on a GPU.
"""

from __future__ import annotations

import ctypes
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from steploom_engine_worker.tensorrt.fake.kernels import KERNELS, Fault

log = logging.getLogger(__name__)

_ALIGNMENT = 256
_CTYPES: Mapping[str, Any] = {
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u32": ctypes.c_uint32,
    "fp32": ctypes.c_float,
}


class Code(IntEnum):
    """Some of CUresult."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


_LASTING = (Code.CUDA_ERROR_ILLEGAL_ADDRESS, Code.CUDA_ERROR_LAUNCH_FAILED)

Work = Callable[[], None]


class _Failed(Exception):
    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass
class _Stream:
    work: list[Work] = field(default_factory=list)  # all that it was ever asked for
    done: int = 0
    recorded: list[Work] | None = None  # while it is captured
    is_invalid: bool = False  # its capture


@dataclass
class _Event:
    stream: _Stream | None = None
    place: int = 0  # how much of its stream comes before it
    seconds: float = 0.0


@dataclass
class _Module:
    kernel: str
    constants: dict[str, Any]
    arguments: list[tuple[str, str]]  # name and type


class FakeDriver:
    """See the module.

    Args:
        capability: compute capability.
        num_devices: how many there are.
        total_bytes: of a device's memory.
        is_lazy: whether work is done as late as is allowed; else at once.

    Attributes:
        calls: names of all calls, in order.
    """

    CUevent_flags = SimpleNamespace(CU_EVENT_BLOCKING_SYNC=SimpleNamespace(value=1))
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CU_MEMHOSTALLOC_PORTABLE = 1
    CU_MEMHOSTREGISTER_PORTABLE = 1

    def __init__(
        self,
        capability: tuple[int, int] = (9, 0),
        num_devices: int = 1,
        total_bytes: int = 1 << 30,
        is_lazy: bool = True,
    ) -> None:
        self._capability, self._num_devices, self._total, self._is_lazy = capability, num_devices, total_bytes, is_lazy
        self._lock = threading.RLock()
        self._local = threading.local()
        self._device_memory: dict[int, Any] = {}  # buffers by address
        self._pinned: dict[int, Any] = {}  # likewise, of the host
        self._registered: dict[int, int] = {}  # bytes by address
        self._objects: dict[int, Any] = {}  # streams, events, graphs, modules by handle
        self._next = 0x1000
        self._faults: dict[str, list[Code | None]] = {}
        self._lost: Code | None = None
        self.calls: list[str] = []

    def fail(self, name: str, code: Code, after: int = 0) -> None:
        """A call of that name fails, once, after so many that do not; with a code that lasts, all do from then on."""
        self._faults[name] = [*([None] * after), code]

    @property
    def used_bytes(self) -> int:
        """Device memory that is taken."""
        return sum(len(buffer) for buffer in self._device_memory.values())

    def __getattr__(self, name: str) -> Any:
        """A call `cuName`, whose method here is `_cuName`: noted, failed on command, its code put before its result."""
        if not name.startswith("cu"):
            raise AttributeError(name)
        method = getattr(self, f"_{name}")

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls.append(name)
                try:
                    self._check(name)
                    result = method(*arguments)
                except _Failed as failed:
                    if failed.code in _LASTING:
                        self._lost = failed.code
                    if name == "cuStreamEndCapture":  # it is over all the same
                        self._object(arguments[0], _Stream).recorded = None
                    return (failed.code, None)
            return (Code.CUDA_SUCCESS,) if result is None else (Code.CUDA_SUCCESS, *_tuple(result))

        return call

    def _check(self, name: str) -> None:
        if self._lost is not None:
            raise _Failed(self._lost)
        faults = self._faults.get(name)
        fault = faults.pop(0) if faults else None
        if fault is not None:
            raise _Failed(fault)

    def cuGetErrorName(self, code: Code) -> tuple[Code, bytes]:
        return Code.CUDA_SUCCESS, Code(code).name.encode()

    def cuGetErrorString(self, code: Code) -> tuple[Code, bytes]:
        return Code.CUDA_SUCCESS, Code(code).name.removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode()

    # devices

    def _cuInit(self, flags: int) -> None:
        if not self._num_devices:
            raise _Failed(Code.CUDA_ERROR_NO_DEVICE)

    def _cuDeviceGetCount(self) -> int:
        return self._num_devices

    def _cuDeviceGet(self, index: int) -> int:
        return index

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return 1

    def _cuCtxSetCurrent(self, context: int) -> None:
        self._local.context = context

    def _cuDeviceGetAttribute(self, attribute: int, device: int) -> int:
        return self._capability[attribute - 75]

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Fake GPU".ljust(length, b"\0")

    def _cuMemGetInfo(self) -> tuple[int, int]:
        return self._total - self.used_bytes, self._total

    def _cuCtxSynchronize(self) -> None:
        self._need_context()
        for stream in [item for item in self._objects.values() if isinstance(item, _Stream)]:
            self._wait_for(stream)

    def _need_context(self) -> None:
        if not getattr(self._local, "context", None):
            raise _Failed(Code.CUDA_ERROR_INVALID_CONTEXT)

    # memory

    def _cuMemAlloc(self, num_bytes: int) -> int:
        self._need_context()
        if self.used_bytes + num_bytes > self._total:
            raise _Failed(Code.CUDA_ERROR_OUT_OF_MEMORY)
        if any(stream.recorded is not None for stream in self._objects.values() if isinstance(stream, _Stream)):
            raise _Failed(Code.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        return _allocate(self._device_memory, num_bytes)

    def _cuMemFree(self, address: int) -> None:
        if self._device_memory.pop(address, None) is None:
            raise _Failed(Code.CUDA_ERROR_INVALID_VALUE)

    def _cuMemHostAlloc(self, num_bytes: int, flags: int) -> int:
        self._need_context()
        return _allocate(self._pinned, num_bytes)

    def _cuMemFreeHost(self, address: int) -> None:
        if self._pinned.pop(address, None) is None:
            raise _Failed(Code.CUDA_ERROR_INVALID_VALUE)

    def _cuMemHostRegister(self, address: int, num_bytes: int, flags: int) -> None:
        self._registered[address] = num_bytes

    def _cuMemHostUnregister(self, address: int) -> None:
        if self._registered.pop(address, None) is None:
            raise _Failed(Code.CUDA_ERROR_INVALID_VALUE)

    def bytes_at(self, address: int, num_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Device memory, which must all be of one allocation."""
        for start, buffer in self._device_memory.items():
            if start <= address and address + num_bytes <= start + len(buffer):
                return np.asarray(np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address)))
        raise Fault(f"{num_bytes} bytes at {address:#x} are not of one allocation")

    def array_at(self, address: int, dtype: Any, *shape: int) -> np.ndarray[Any, Any]:
        """The same as an array."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        found: np.ndarray[Any, Any] = self.bytes_at(address, num_bytes).view(dtype).reshape(shape)
        return found

    def _is_known_host(self, address: int, num_bytes: int) -> bool:
        spans = [(start, len(buffer)) for start, buffer in self._pinned.items()] + list(self._registered.items())
        return any(start <= address and address + num_bytes <= start + size for start, size in spans)

    def _cuMemcpyHtoDAsync(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        host = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(source))
        if not self._is_known_host(source, num_bytes):
            host = host.copy()  # of memory that it does not know, CUDA makes a copy before it returns
        self.enqueue(stream, lambda: np.copyto(self.bytes_at(target, num_bytes), host))

    def _cuMemcpyDtoHAsync(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        host = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(target))
        self.enqueue(stream, lambda: np.copyto(host, self.bytes_at(source, num_bytes)))

    def _cuMemcpyDtoDAsync(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self.enqueue(
            stream, lambda: np.copyto(self.bytes_at(target, num_bytes), self.bytes_at(source, num_bytes).copy())
        )

    def _cuMemsetD8Async(self, target: int, byte: int, num_bytes: int, stream: int) -> None:
        self.enqueue(stream, lambda: self.bytes_at(target, num_bytes).fill(byte))

    # streams and events

    def _cuStreamCreate(self, flags: int) -> int:
        self._need_context()
        return self._handle(_Stream())

    def _cuStreamDestroy(self, stream: int) -> None:
        self._wait_for(self._object(stream, _Stream))
        del self._objects[stream]

    def _cuEventCreate(self, flags: int) -> int:
        self._need_context()
        return self._handle(_Event())

    def _cuEventDestroy(self, event: int) -> None:
        self._object(event, _Event)
        del self._objects[event]

    def _cuEventRecord(self, event: int, stream: int) -> None:
        item, order = self._object(event, _Event), self._object(stream, _Stream)

        def pass_by() -> None:
            item.seconds = time.perf_counter()

        self.enqueue(stream, pass_by)
        item.stream, item.place = order, len(order.work)

    def _cuEventSynchronize(self, event: int) -> None:
        item = self._object(event, _Event)
        if item.stream is not None:
            self._wait_for(item.stream, item.place)

    def _cuEventElapsedTime(self, start: int, end: int) -> float:
        return float(self._object(end, _Event).seconds - self._object(start, _Event).seconds) * 1e3

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        item = self._object(event, _Event)
        other, place = item.stream, item.place
        if other is not None:
            self.enqueue(stream, lambda: self._run(other, place))

    def _cuStreamSynchronize(self, stream: int) -> None:
        self._wait_for(self._object(stream, _Stream))

    def enqueue(self, stream: int, work: Work) -> None:
        """Puts work into a stream, or into what is being recorded of it."""
        self._need_context()
        order = self._object(stream, _Stream)
        if order.recorded is not None:
            order.recorded.append(work)
            return
        order.work.append(work)
        if not self._is_lazy:
            self._wait_for(order)

    def _wait_for(self, stream: _Stream, place: int | None = None) -> None:
        if stream.recorded is not None:
            stream.is_invalid = True
            raise _Failed(Code.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        self._run(stream, len(stream.work) if place is None else place)

    def _run(self, stream: _Stream, place: int) -> None:
        while stream.done < place:
            work = stream.work[stream.done]
            stream.work[stream.done] = _nothing  # what it holds may go
            stream.done += 1
            try:
                work()
            except Fault as fault:
                log.error("a kernel of the fake device: %s", fault)
                raise _Failed(Code.CUDA_ERROR_ILLEGAL_ADDRESS) from fault
            except _Failed:
                raise
            except Exception as error:
                log.exception("a kernel of the fake device")
                raise _Failed(Code.CUDA_ERROR_LAUNCH_FAILED) from error

    # graphs

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> None:
        order = self._object(stream, _Stream)
        order.recorded, order.is_invalid = [], False

    def _cuStreamEndCapture(self, stream: int) -> int:
        order = self._object(stream, _Stream)
        recorded, order.recorded = order.recorded, None
        if recorded is None or order.is_invalid:
            raise _Failed(Code.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
        return self._handle(recorded)

    def invalidate(self, stream: int) -> None:
        """What is being recorded of a stream cannot become a graph any more."""
        self._object(stream, _Stream).is_invalid = True

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        return self._handle(list(self._object(graph, list)))

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:
        for work in self._object(graph, list):
            self.enqueue(stream, work)

    def _cuGraphDestroy(self, graph: int) -> None:
        del self._objects[graph]

    def _cuGraphExecDestroy(self, graph: int) -> None:
        del self._objects[graph]

    # kernels

    def _cuModuleLoadData(self, image: bytes) -> int:
        try:
            table = json.loads(image)
            module = _Module(table["kernel"], table["constants"], [(name, kind) for name, kind in table["arguments"]])
        except (ValueError, KeyError, TypeError):
            raise _Failed(Code.CUDA_ERROR_INVALID_IMAGE) from None
        return self._handle(module)

    def _cuModuleUnload(self, module: int) -> None:
        del self._objects[module]

    def _cuModuleGetFunction(self, module: int, name: bytes) -> int:
        found = self._object(module, _Module)
        if found.kernel != name.decode() or found.kernel not in KERNELS:
            raise _Failed(Code.CUDA_ERROR_NOT_FOUND)
        return self._handle(found)

    def _cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self._object(function, _Module)

    def _cuLaunchKernel(
        self, function: int, x: int, y: int, z: int, threads: int, threads_y: int, threads_z: int, shared: int,
        stream: int, parameters: int, extra: int,
    ) -> None:  # fmt: skip
        module = self._object(function, _Module)
        values = _read_parameters(module.arguments, parameters)  # they are the caller's no longer than this call
        kernel = KERNELS[module.kernel]
        types = dict(module.arguments)
        self.enqueue(stream, lambda: kernel(self.array_at, types, {**module.constants, **values}, (x, y, z)))

    def _handle(self, item: Any) -> int:
        self._next += 0x10
        self._objects[self._next] = item
        return self._next

    def _object(self, handle: int, kind: type[Any]) -> Any:
        item = self._objects.get(int(handle))
        if not isinstance(item, kind):
            raise _Failed(Code.CUDA_ERROR_INVALID_HANDLE)
        return item


def _nothing() -> None:
    """Has been done."""


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _allocate(memory: dict[int, Any], num_bytes: int) -> int:
    """Memory full of what nobody should rely on."""
    raw = ctypes.create_string_buffer(b"\xcd" * (num_bytes + _ALIGNMENT))
    address = -(-ctypes.addressof(raw) // _ALIGNMENT) * _ALIGNMENT
    memory[address] = _Span(raw, num_bytes)
    return address


@dataclass(frozen=True)
class _Span:
    raw: Any
    num_bytes: int

    def __len__(self) -> int:
        return self.num_bytes


def _read_parameters(arguments: list[tuple[str, str]], parameters: int) -> dict[str, Any]:
    """The values that an array of pointers points to."""
    pointers = (ctypes.c_void_p * len(arguments)).from_address(parameters)
    values: dict[str, Any] = {}
    for (name, kind), pointer in zip(arguments, pointers):  # noqa: B905 - both are as long
        read = ctypes.c_void_p if kind.startswith("*") else _CTYPES[kind]
        values[name] = read.from_address(pointer).value or 0
    return values
