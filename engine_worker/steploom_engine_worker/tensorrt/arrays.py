"""Arrays in device memory: an address with a shape and a type, which any library reads by DLPack without a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steploom_engine_worker.tensorrt import dlpack
from steploom_engine_worker.tensorrt.device import Device, Memory

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8, "uint8": 1}


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array; keeps its memory. Who reads or writes it does so in the stream whose turn it is."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int  # number
    memory: Memory = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Of all of it."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stride(self) -> int:
        """Values of an item along the first axis."""
        return math.prod(self.shape[1:])

    def __getitem__(self, index: int) -> DeviceArray:
        """An item along the first axis.

        Raises:
            IndexError: there is none.
        """
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"item {index} of {self.shape[0]}")
        step = self.stride * ITEM_BYTES[self.dtype]
        return DeviceArray(self.address + index * step, self.shape[1:], self.dtype, self.device, self.memory)

    def first(self, count: int) -> DeviceArray:
        """The first items along the first axis.

        Raises:
            IndexError: there are fewer.
        """
        if not 0 <= count <= self.shape[0]:
            raise IndexError(f"{count} items of {self.shape[0]}")
        return DeviceArray(self.address, (count, *self.shape[1:]), self.dtype, self.device, self.memory)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule; which stream reads it is no matter here, see the class."""
        return dlpack.export(self.address, self.shape, self.dtype, self.__dlpack_device__(), self.memory)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device


def allocate(device: Device, shape: Sequence[int], dtype: str) -> DeviceArray:
    """A new array of zeros.

    Raises:
        OutOfDeviceMemory: there is no memory for it.
    """
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    memory = device.allocate(num_bytes)
    return DeviceArray(memory.address, tuple(shape), dtype, device.index, memory)


def part(array: DeviceArray, first_byte: int, shape: Sequence[int], dtype: str) -> DeviceArray:
    """Bytes of an array as an array of another type and shape."""
    return DeviceArray(array.address + first_byte, tuple(shape), dtype, array.device, array.memory)
