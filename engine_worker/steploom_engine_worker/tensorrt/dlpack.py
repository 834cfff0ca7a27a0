"""Arrays of the device for other libraries, and theirs for us, by DLPack: nothing is copied, and no library is needed.

The structures are those of DLPack 0.8, which every version since reads (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CPU, CUDA, CUDA_HOST = 1, 2, 3  # kinds of devices
_INT, _UINT, _FLOAT, _BFLOAT = 0, 1, 2, 4  # kinds of types

_NEW, _USED = b"dltensor", b"used_dltensor"  # of a capsule: nobody has taken it, or somebody has


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("index", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("num_axes", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]

_KINDS = {"f": _FLOAT, "i": _INT, "u": _UINT}
_NAMES = {_FLOAT: "float", _INT: "int", _UINT: "uint", _BFLOAT: "bfloat"}

_python: Any = ctypes.PyDLL(None)
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_IsValid.restype = ctypes.c_int
_python.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]

_PyCapsuleDestructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_lent: dict[int, tuple[Any, ...]] = {}  # what a capsule's taker needs, by the address of its structure


@_Deleter
def _give_back(managed: Any) -> None:
    """Called by whoever took the capsule, on any thread."""
    _lent.pop(ctypes.addressof(managed.contents), None)


# its argument is a capsule that has no references left: it must not become a Python object again
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))
_raw_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _python))


@_PyCapsuleDestructor
def _destroy(capsule: int) -> None:
    """A capsule that nobody has taken."""
    if _raw_is_valid(capsule, _NEW):
        _lent.pop(_raw_pointer(capsule, _NEW), None)


def export(address: int, shape: Sequence[int], dtype: str, device: tuple[int, int], owner: object) -> Any:
    """A capsule over a contiguous array.

    Args:
        address: of its first value.
        shape: of it.
        dtype: float16, bfloat16, float32, int32, int64, uint8.
        device: kind and number.
        owner: kept alive until the taker gives it back.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed()
    managed.tensor.data = address
    managed.tensor.device = _Device(*device)
    managed.tensor.num_axes = len(shape)
    managed.tensor.type = _type_of(dtype)
    managed.tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _give_back
    key = ctypes.addressof(managed)
    _lent[key] = managed, sizes, owner
    return _python.PyCapsule_New(key, _NEW, ctypes.cast(_destroy, ctypes.c_void_p))


def _type_of(dtype: str) -> _Type:
    if dtype == "bfloat16":
        return _Type(_BFLOAT, 16, 1)
    known = np.dtype(dtype)
    return _Type(_KINDS[known.kind], 8 * known.itemsize, 1)


@dataclass(frozen=True)
class Borrowed:
    """Somebody else's array, as long as this lives."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]  # kind and number
    _keeper: object = field(repr=False)


class _Keeper:
    """Gives an array back when nobody has it any more."""

    def __init__(self, pointer: int) -> None:
        self._managed = _Managed.from_address(pointer)

    def __del__(self) -> None:
        if self._managed.deleter:
            self._managed.deleter(ctypes.pointer(self._managed))


def borrow(array: Any, stream: int | None = None) -> Borrowed:
    """An array of any library that has `__dlpack__`, contiguous.

    Args:
        array: the array.
        stream: address of the CUDA stream in which it will be used: its library makes it ready there.

    Raises:
        TypeError: it has no `__dlpack__`.
        ValueError: it is not contiguous.
    """
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"{type(array).__name__} has no __dlpack__")
    is_ordered = stream is not None and array.__dlpack_device__()[0] == CUDA  # the host knows no streams
    capsule = array.__dlpack__(stream=stream) if is_ordered else array.__dlpack__()
    pointer = _python.PyCapsule_GetPointer(capsule, _NEW)
    _python.PyCapsule_SetName(capsule, _USED)  # it is ours now, and so is its end
    keeper = _Keeper(pointer)
    tensor = keeper._managed.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.num_axes))
    if tensor.strides and 0 not in shape:
        _require_contiguous(shape, tuple(tensor.strides[axis] for axis in range(tensor.num_axes)))
    kind, bits = tensor.type.kind, tensor.type.bits
    dtype = f"{_NAMES.get(kind, f'kind {kind} of ')}{bits}"
    device = tensor.device.kind, tensor.device.index
    return Borrowed((tensor.data or 0) + tensor.offset, shape, dtype, device, keeper)


def _require_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):  # noqa: B905 - both are as long
        if size != 1 and stride != expected:
            raise ValueError(f"an array of shape {list(shape)} is not contiguous: its strides are {list(strides)}")
        expected *= size
