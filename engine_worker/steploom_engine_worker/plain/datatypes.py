"""Triton's datatypes as numpy has them, and elements of BYTES between their raw form and arrays of objects."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steploom_protos.inference import model_config_pb2 as pb

Array = NDArray[Any]

_LENGTH = struct.Struct("<I")  # before each element of BYTES


@dataclass(frozen=True)
class Datatype:
    """One of Triton's."""

    name: str  # in requests and answers
    numpy: np.dtype[Any]  # of arrays; BYTES: objects; BF16: its bits, for numpy has no such numbers

    @property
    def is_bytes(self) -> bool:
        """Whether elements are strings, each of its own length."""
        return self.name == "BYTES"

    @property
    def num_bytes(self) -> int:
        """Of an element; of no meaning for BYTES."""
        return self.numpy.itemsize


# By the numbers of inference.DataType. Raw contents are little-endian, as are the machines that this runs on.
DATATYPES: dict[int, Datatype] = {
    number: Datatype(name, np.dtype(form))
    for number, name, form in (
        (pb.TYPE_BOOL, "BOOL", "?"),
        (pb.TYPE_UINT8, "UINT8", "<u1"),
        (pb.TYPE_UINT16, "UINT16", "<u2"),
        (pb.TYPE_UINT32, "UINT32", "<u4"),
        (pb.TYPE_UINT64, "UINT64", "<u8"),
        (pb.TYPE_INT8, "INT8", "<i1"),
        (pb.TYPE_INT16, "INT16", "<i2"),
        (pb.TYPE_INT32, "INT32", "<i4"),
        (pb.TYPE_INT64, "INT64", "<i8"),
        (pb.TYPE_FP16, "FP16", "<f2"),
        (pb.TYPE_FP32, "FP32", "<f4"),
        (pb.TYPE_FP64, "FP64", "<f8"),
        (pb.TYPE_STRING, "BYTES", "O"),
        (pb.TYPE_BF16, "BF16", "<u2"),
    )
}


def unpack_strings(data: bytes | memoryview, count: int) -> list[bytes]:
    """The elements of BYTES in raw contents.

    Raises:
        ValueError: there are not just `count` of them.
    """
    strings: list[bytes] = []
    at, end = 0, len(data)
    while at < end and len(strings) < count:
        start = at + _LENGTH.size
        if start > end or (at := start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]) > end:
            raise ValueError(f"element {len(strings)} ends beyond the {end} bytes that there are")
        strings.append(bytes(data[start:at]))
    if len(strings) < count or at < end:
        raise ValueError(f"{end} bytes hold {'more' if at < end else len(strings)} elements, must be {count}")
    return strings


def pack_strings(strings: Array) -> bytes:
    """Elements of BYTES as raw contents have them.

    Args:
        strings: of bytes, or of str that become UTF-8.

    Raises:
        ValueError: an element is neither.
    """
    return b"".join(_packed(strings))


def _packed(strings: Array) -> Iterator[bytes]:
    for string in strings.flat:
        data = string.encode() if isinstance(string, str) else string
        if not isinstance(data, bytes):
            raise ValueError(f"has an element of {type(string).__name__}, must have bytes or str alone")
        yield _LENGTH.pack(len(data))
        yield data
