"""From the arrays that a model gives to the answers of a batch's items."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np

from steploom_common.arena import ArenaViews, Memory, RegionRef
from steploom_engine_worker.plain.datatypes import Array, pack_strings
from steploom_engine_worker.plain.errors import WrongOutput
from steploom_engine_worker.plain.inputs import Items
from steploom_engine_worker.plain.spec import ModelSpec, Shape, TensorSpec, words
from steploom_protos.worker.v1 import plain_pb2 as pb

Pieces = tuple[bytes | memoryview, ...]  # one after another, an answer of an item

_MAX_HEADS = 256  # kept of a model
_ALIGNMENT = 64  # bytes, of outputs in a region

# Numbers of fields, all below 16.
_ITEMS = pb.BatchDone.ITEMS_FIELD_NUMBER
_DONE = pb.ExecutedBatches.DONE_FIELD_NUMBER
_OUTPUTS = pb.ItemDone.OUTPUTS_FIELD_NUMBER
_DATA = pb.Tensor.DATA_FIELD_NUMBER


class Column:
    """One output of a whole batch, as its config says.

    Args:
        spec: of the output.
        array: as the model gave it.
        rows: that it must have; None: tensors have no dimension of the batch.

    Raises:
        WrongOutput: it is otherwise.
    """

    def __init__(self, spec: TensorSpec, array: Array, rows: int | None) -> None:
        _check(spec, array, rows)
        if spec.inner is not None:
            array = array.reshape(spec.dims if rows is None else (rows, *spec.dims))
        self._has_rows = rows is not None
        self.tail: Shape = array.shape if rows is None else array.shape[1:]  # of an item's row
        self._strings = array if spec.datatype.is_bytes else None
        self._name = spec.name
        self._bytes = memoryview(b"") if spec.datatype.is_bytes else _memory(array)
        self._row_bytes = len(self._bytes) // rows if rows else 0

    def shape(self, rows: int) -> Shape:
        """Of an item with so many rows, where items are alike in size."""
        return (rows, *self.tail) if self._has_rows else self.tail

    def size(self, rows: int) -> int | None:
        """Bytes of an item with so many rows; None: of BYTES, each has its own."""
        if self._strings is not None:
            return None
        return rows * self._row_bytes if self._has_rows else len(self._bytes)

    def part(self, start: int, rows: int) -> bytes | memoryview:
        """Elements of an item whose first row is `start`."""
        if self._strings is not None:
            return self._packed(start, rows)
        if not self._has_rows:
            return self._bytes
        return self._bytes[start * self._row_bytes : (start + rows) * self._row_bytes]

    def _packed(self, start: int, rows: int) -> bytes:
        assert self._strings is not None
        own = self._strings[start : start + rows] if self._has_rows else self._strings
        try:
            return pack_strings(own)
        except ValueError as error:
            raise WrongOutput(f"output {self._name!r} {error}") from None


def _memory(array: Array) -> memoryview:
    """The bytes of an array: a view where it lies in one piece."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _check(spec: TensorSpec, array: Array, rows: int | None) -> None:
    if not isinstance(array, np.ndarray):
        raise WrongOutput(f"output {spec.name!r} is {type(array).__name__}, must be an array")
    if array.dtype != spec.datatype.numpy:
        raise WrongOutput(f"output {spec.name!r} is {array.dtype}, must be {spec.datatype.numpy}")
    dims = spec.inner_dims
    wanted = dims if rows is None else (rows, *dims)
    shape = array.shape
    if len(shape) != len(wanted) or any(rule not in (-1, size) for size, rule in zip(shape, wanted, strict=True)):
        raise WrongOutput(f"output {spec.name!r} has shape {words(shape)}, must have {words(wanted)}")


class Answerer:
    """Makes answers of what one model gives. Each instance has its own.

    Args:
        spec: of the model.
        views: shared memory of other processes.
    """

    def __init__(self, spec: ModelSpec, views: ArenaViews) -> None:
        self._spec = spec
        self._views = views
        self._heads: dict[tuple[int, tuple[Shape, ...]], list[bytes]] = {}  # by rows, and shapes of a row

    def answer(self, outputs: Mapping[str, Array], items: Items, rows: list[int]) -> list[Pieces]:
        """An answer for each item: what it has asked for, as an entry of `BatchDone.items`, serialised.

        Items of equal size differ in nothing but their elements. A message's fields are bytes one after another, each
        with its length before it: what stands before the elements is made once for each size.

        Args:
            outputs: by name, of all rows.
            items: of the batch.
            rows: of each item.

        Raises:
            WrongOutput: outputs are not as the config says.
        """
        columns = self._columns(outputs, rows)
        tails = tuple([column.tail for column in columns])
        answers: list[Pieces] = []
        start = 0
        for item, count in zip(items, rows, strict=True):
            heads = self._heads.get((count, tails)) or self._new_heads(columns, count, tails)
            if not heads or item.outputs or item.HasField("output_region"):
                answers.append((self._chosen(item, columns, start, count),))
            elif len(columns) == 1:
                answers.append((heads[0], columns[0].part(start, count)))
            else:
                parts = [column.part(start, count) for column in columns]
                answers.append(tuple(chain.from_iterable(zip(heads, parts, strict=True))))
            start += count
        return answers

    def _new_heads(self, columns: list[Column], rows: int, tails: tuple[Shape, ...]) -> list[bytes]:
        if len(self._heads) >= _MAX_HEADS:  # a model of any size sees no end of shapes
            self._heads.clear()
        return self._heads.setdefault((rows, tails), _heads(columns, rows))

    def _chosen(self, item: pb.Item, columns: list[Column], start: int, rows: int) -> bytes:
        """The answer of an item that says which outputs it wants, or where they are to go."""
        answer = pb.ItemDone()
        try:
            chosen = [columns[place] for place in item.outputs] if item.outputs else columns
        except IndexError:
            answer.error.kind = pb.ERROR_KIND_INVALID
            answer.error.message = f"outputs: has {max(item.outputs)}, each must be below {len(columns)}"
        else:
            self._fill(answer, item, chosen, start, rows)
        return entry(answer)

    def _columns(self, outputs: Mapping[str, Array], rows: list[int]) -> list[Column]:
        specs = self._spec.outputs
        total = sum(rows) if self._spec.is_batched else None
        if len(outputs) > len(specs) or any(spec.name not in outputs for spec in specs):
            names = {spec.name for spec in specs}
            for name in sorted(names - set(outputs)):
                raise WrongOutput(f"output {name!r} is missing")
            raise WrongOutput(f"output {min(map(str, set(outputs) - names))!r} is given, and is not in the config")
        return [Column(spec, outputs[spec.name], total) for spec in specs]

    def _fill(self, answer: pb.ItemDone, item: pb.Item, columns: list[Column], start: int, rows: int) -> None:
        memory = self._memory(item) if item.HasField("output_region") else None
        used = 0
        for column in columns:
            shape, data = column.shape(rows), column.part(start, rows)
            size = len(data)
            if memory is None or used + size > len(memory):
                answer.outputs.add(shape=shape, data=bytes(data))
                continue
            memory[used : used + size] = np.frombuffer(data, np.uint8)
            place = item.output_region
            tensor = answer.outputs.add(shape=shape)
            tensor.region.path, tensor.region.lease = place.path, place.lease
            tensor.region.offset, tensor.region.size = place.offset + used, size
            used += -(-size // _ALIGNMENT) * _ALIGNMENT

    def _memory(self, item: pb.Item) -> Memory | None:
        """Where the outputs of an item go; None: into the answer, since there is no such place any more."""
        place = item.output_region
        try:
            return self._views.memory(RegionRef(place.path, place.offset, place.size, place.lease))
        except (OSError, ValueError):
            return None


def _heads(columns: list[Column], rows: int) -> list[bytes]:
    """For each output what comes before its elements, from the end of the output before it on; empty: sizes differ."""
    sizes = [column.size(rows) for column in columns]
    tensors = []
    for column, size in zip(columns, sizes, strict=True):
        if size is None:
            return []
        shape = pb.Tensor(shape=column.shape(rows)).SerializeToString()
        inner = shape + before(_DATA, size)
        tensors.append(before(_OUTPUTS, len(inner) + size) + inner)
    length = sum(map(len, tensors)) + sum(size or 0 for size in sizes)
    return [before(_ITEMS, length) + tensors[0], *tensors[1:]]


def entry(answer: pb.ItemDone) -> bytes:
    """An answer as an entry of `BatchDone.items`."""
    data = answer.SerializeToString()
    return before(_ITEMS, len(data)) + data


def executed(done: pb.BatchDone, answers: list[Pieces]) -> bytes:
    """An ExecutedBatches, serialised, of one batch.

    Args:
        done: of the batch, without items.
        answers: the items.
    """
    head = done.SerializeToString()
    pieces = [head, *chain.from_iterable(answers)]
    return b"".join((before(_DONE, sum(map(len, pieces))), *pieces))


def before(field: int, size: int) -> bytes:
    """What stands before `size` bytes of a field that is a message or bytes: its number, and the size."""
    head = bytearray((field << 3 | 2,))  # 2: its length comes first
    while size > 0x7F:  # seven bits at a time, the lowest first
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)
