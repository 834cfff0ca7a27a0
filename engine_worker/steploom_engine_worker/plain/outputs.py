"""From the arrays that a model gives to the answers of a batch's items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from steploom_common.arena import ArenaViews, Memory, RegionRef
from steploom_engine_worker.plain.datatypes import Array, pack_strings
from steploom_engine_worker.plain.errors import WrongOutput
from steploom_engine_worker.plain.inputs import Items
from steploom_engine_worker.plain.spec import ModelSpec, Shape, TensorSpec, words
from steploom_protos.worker.v1 import plain_pb2 as pb

_ALIGNMENT = 64  # bytes, of outputs in a region


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
        self._tail: Shape = array.shape if rows is None else array.shape[1:]
        self._strings = array if spec.datatype.is_bytes else None
        self._name = spec.name
        self._bytes = memoryview(b"") if spec.datatype.is_bytes else _memory(array)
        self._row_bytes = len(self._bytes) // rows if rows else 0

    def part(self, start: int, rows: int) -> tuple[Shape, bytes | memoryview]:
        """Shape and elements of an item whose first row is `start`."""
        if self._strings is not None:
            return self._packed(start, rows)
        if not self._has_rows:
            return self._tail, self._bytes
        return (rows, *self._tail), self._bytes[start * self._row_bytes : (start + rows) * self._row_bytes]

    def _packed(self, start: int, rows: int) -> tuple[Shape, bytes]:
        assert self._strings is not None
        own = self._strings[start : start + rows] if self._has_rows else self._strings
        try:
            return own.shape, pack_strings(own)
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
    """Makes answers of what one model gives. On any thread.

    Args:
        spec: of the model.
        views: shared memory of other processes.
    """

    def __init__(self, spec: ModelSpec, views: ArenaViews) -> None:
        self._spec = spec
        self._views = views

    def answer(self, done: pb.BatchDone, outputs: Mapping[str, Array], items: Items, rows: list[int]) -> None:
        """Puts what each item has asked for into `done.items`.

        Args:
            done: of the batch.
            outputs: by name, of all rows.
            items: of the batch.
            rows: of each item.

        Raises:
            WrongOutput: outputs are not as the config says.
        """
        columns = self._columns(outputs, rows)
        start = 0
        for item, count in zip(items, rows, strict=True):
            answer = done.items.add()
            try:
                chosen = [columns[place] for place in item.outputs] if item.outputs else columns
            except IndexError:
                answer.error.kind = pb.ERROR_KIND_INVALID
                answer.error.message = f"outputs: has {max(item.outputs)}, each must be below {len(columns)}"
            else:
                self._fill(answer, item, chosen, start, count)
            start += count

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
            shape, data = column.part(start, rows)
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
