"""The protocol's datatypes: bytes of an element, and typed contents as raw ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb

BYTES = "BYTES"

_LENGTH = struct.Struct("<I")  # before each element of BYTES
_CHUNK = 2**16  # numbers that are converted at once, without a pause for other threads


@dataclass(frozen=True)
class Datatype:
    """One of the protocol's."""

    name: str
    num_bytes: int  # of an element; 0: elements have lengths of their own
    field: str  # of typed contents; empty: they cannot hold it
    numpy: str  # little-endian; empty: numpy has no such numbers


DATATYPES = {
    number: Datatype(name, num_bytes, field, form)
    for number, name, num_bytes, field, form in (
        (config_pb.TYPE_BOOL, "BOOL", 1, "bool_contents", "?"),
        (config_pb.TYPE_UINT8, "UINT8", 1, "uint_contents", "<u1"),
        (config_pb.TYPE_UINT16, "UINT16", 2, "uint_contents", "<u2"),
        (config_pb.TYPE_UINT32, "UINT32", 4, "uint_contents", "<u4"),
        (config_pb.TYPE_UINT64, "UINT64", 8, "uint64_contents", "<u8"),
        (config_pb.TYPE_INT8, "INT8", 1, "int_contents", "<i1"),
        (config_pb.TYPE_INT16, "INT16", 2, "int_contents", "<i2"),
        (config_pb.TYPE_INT32, "INT32", 4, "int_contents", "<i4"),
        (config_pb.TYPE_INT64, "INT64", 8, "int64_contents", "<i8"),
        (config_pb.TYPE_FP16, "FP16", 2, "", "<f2"),
        (config_pb.TYPE_FP32, "FP32", 4, "fp32_contents", "<f4"),
        (config_pb.TYPE_FP64, "FP64", 8, "fp64_contents", "<f8"),
        (config_pb.TYPE_STRING, BYTES, 0, "bytes_contents", ""),
        (config_pb.TYPE_BF16, "BF16", 2, "", ""),
    )
}

_FIELDS = tuple(field.name for field in pb.InferTensorContents.DESCRIPTOR.fields)


def field_of(contents: pb.InferTensorContents) -> str:
    """The field of typed contents that holds anything; empty: none does."""
    return next((name for name in _FIELDS if getattr(contents, name)), "")


def raw_from_typed(contents: pb.InferTensorContents, datatype: Datatype, count: int) -> bytes:
    """Typed contents as raw ones. Computes.

    Args:
        contents: with one field at most.
        datatype: of the tensor.
        count: of its elements.

    Raises:
        ValueError: another field, another number of elements, or an element out of its bound.
    """
    if not datatype.field:
        raise ValueError(f"has `contents`, must have raw_input_contents as {datatype.name}")
    others = [name for name in _FIELDS if name != datatype.field and getattr(contents, name)]
    if others:
        raise ValueError(f"has {others[0]}, must have {datatype.field} as {datatype.name}")
    values: Sequence[Any] = getattr(contents, datatype.field)
    if len(values) != count:
        raise ValueError(f"has {len(values)} elements in {datatype.field}, must have {count} for its shape")
    if datatype.name == BYTES:
        return b"".join(_LENGTH.pack(len(value)) + value for value in values)
    return b"".join(_packed(values[at : at + _CHUNK], datatype) for at in range(0, count, _CHUNK))


def _packed(values: Sequence[Any], datatype: Datatype) -> bytes:
    form = np.dtype(datatype.numpy)
    if form.kind in "iu":
        bounds = np.iinfo(form)
        least, most = min(values), max(values)
        if least < bounds.min or most > bounds.max:
            worst = least if least < bounds.min else most
            raise ValueError(f"has the element {worst}, must have {bounds.min} to {bounds.max} as {datatype.name}")
    return np.array(values, form).tobytes()
