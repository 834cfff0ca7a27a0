"""Hypothesis strategies for any protobuf message, built from its descriptor; and bytes that are nearly one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_EDGES = [0, 1, 2, 3, 4, 5, 100, 101, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_FLOATS = [0.0, -0.0, 1.0, 2.5, -1.0, 1e300, 1e-320, math.inf, -math.inf, math.nan]


def messages(
    descriptor: Descriptor, words: Sequence[str], blobs: Sequence[bytes], depth: int = 4
) -> st.SearchStrategy[Message]:
    """Messages of a type, each field of which is there or not.

    Args:
        descriptor: of the type.
        words: that mean something to who reads the message, among any others.
        blobs: the same of bytes.
        depth: of messages within messages.
    """
    fields = {field.name: _values(field, words, blobs, depth) for field in descriptor.fields}
    some = st.fixed_dictionaries({}, optional={name: values for name, values in fields.items() if values is not None})
    return some.map(lambda found: _message(descriptor, found))


def nearly(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some changed, missing, doubled or cut off."""
    change = st.tuples(st.integers(0, 3), st.integers(0, max(0, len(data) - 1)), st.integers(0, 255), st.integers(1, 9))
    return st.lists(change, min_size=1, max_size=6).map(lambda changes: _changed(data, changes))


def _changed(data: bytes, changes: Sequence[tuple[int, int, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, place, value, length in changes:
        match kind:
            case 0:
                out[place : place + 1] = bytes([value])
            case 1:
                del out[place : place + length]
            case 2:
                out[place:place] = out[place : place + length]
            case _:
                del out[max(0, len(out) - length) :]
    return bytes(out)


def _message(descriptor: Descriptor, found: Mapping[str, Any]) -> Message:
    message = GetMessageClass(descriptor)()
    for name, value in found.items():
        field = descriptor.fields_by_name[name]
        if _is_map(field):
            for key, item in value.items():
                _set(getattr(message, name), key, item)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type is not None:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _set(container: Any, key: Any, item: Any) -> None:
    if isinstance(item, Message):
        container[key].CopyFrom(item)
    else:
        container[key] = item


def _values(
    field: FieldDescriptor, words: Sequence[str], blobs: Sequence[bytes], depth: int
) -> st.SearchStrategy[Any] | None:
    """Of one field; None where messages go deeper than they are to."""
    if field.message_type is not None and _is_map(field):
        entry = field.message_type.fields_by_name
        keys, items = (_one(entry[part], words, blobs, depth) for part in ("key", "value"))
        return None if keys is None or items is None else st.dictionaries(keys, items, max_size=4)
    one = _one(field, words, blobs, depth)
    return st.lists(one, max_size=4) if one is not None and field.is_repeated else one


def _one(
    field: FieldDescriptor, words: Sequence[str], blobs: Sequence[bytes], depth: int
) -> st.SearchStrategy[Any] | None:
    kind = field.cpp_type
    if field.message_type is not None:
        return messages(field.message_type, words, blobs, depth - 1) if depth else None
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.sampled_from(_FLOATS) | st.floats(width=32 if kind == FieldDescriptor.CPPTYPE_FLOAT else 64)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.sampled_from(list(blobs)) | st.binary(max_size=40)
        return st.sampled_from(list(words)) | st.text(max_size=20)
    low, high = _BOUNDS[kind]
    return st.sampled_from([edge for edge in _EDGES if low <= edge <= high]) | st.integers(low, high)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
