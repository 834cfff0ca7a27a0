"""From the items of a batch to the arrays that a model gets.

The one idea: items of a batch are alike, so what holds for the first is worked out once, and of the others there is
only asked whether they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from steploom_common.arena import ArenaViews, RegionRef
from steploom_engine_worker.plain.datatypes import Array, unpack_strings
from steploom_engine_worker.plain.errors import WrongItem
from steploom_engine_worker.plain.program import Parameters, Value
from steploom_engine_worker.plain.spec import ModelSpec, Shape, TensorSpec, words
from steploom_protos.worker.v1 import plain_pb2 as pb

Items = Sequence[pb.Item]
Raw = bytes | memoryview

_NONE: Mapping[str, Value] = {}
_TEXT = "string_param"  # the empty string, of a parameter without a value


class Gathered:
    """Inputs of a batch, as its model gets them."""

    __slots__ = ("arrays", "parameters", "rows")

    def __init__(self, arrays: dict[str, Array], rows: list[int], items: Items) -> None:
        self.arrays = arrays
        self.rows = rows  # of each item; 0 where tensors have no dimension of the batch
        self.parameters = Parameters([_values(item) if item.parameters else _NONE for item in items], rows)


def _values(item: pb.Item) -> Mapping[str, Value]:
    given = item.parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice") or _TEXT) for name, value in given.items()}


class Gatherer:
    """Makes arrays of the batches of one model. On any thread.

    Args:
        spec: of the model.
        views: shared memory of other processes.
    """

    def __init__(self, spec: ModelSpec, views: ArenaViews) -> None:
        self._spec = spec
        self._views = views

    def gather(self, items: Items) -> Gathered:
        """The arrays of a batch: views of the message where there is one item, else one copy.

        Raises:
            WrongItem: an item is not as the config says, or not like the first.
        """
        arrays: dict[str, Array] = {}
        rows: list[int] | None = None
        for spec, column in zip(self._spec.inputs, self._columns(items), strict=True):
            if column[0].is_absent:
                _check_absent(spec, column)
                continue
            shapes = [tuple(tensor.shape) for tensor in column]
            counts = self._rows(spec, shapes)
            if rows is None:
                rows = counts
            elif rows != counts:
                raise WrongItem(f"input {spec.name!r} has other sizes of the first dimension than the inputs before it")
            arrays[spec.name] = self._joined(spec, column, shapes[0], rows)
        if rows is None:
            raise WrongItem("all inputs are absent, must have one at least")
        return Gathered(arrays, rows, items)

    def _columns(self, items: Items) -> list[tuple[pb.Tensor, ...]]:
        """For each input, the tensors of all items."""
        if not self._spec.is_batched and len(items) != 1:
            raise WrongItem(f"the batch has {len(items)} requests, must have 1 where max_batch_size is 0")
        wanted = len(self._spec.inputs)
        inputs = [item.inputs for item in items]
        for given in inputs:
            if len(given) != wanted:
                raise WrongItem(f"inputs: has {len(given)} entries, must have {wanted}")
        return list(zip(*inputs, strict=True))

    def _rows(self, spec: TensorSpec, shapes: list[Shape]) -> list[int]:
        """Rows of each item, whose shapes are as they must be; 0 where tensors have no dimension of the batch."""
        first = shapes[0]
        if not self._spec.is_batched:
            if not spec.fits(first):
                raise WrongItem(f"input {spec.name!r} has shape {words(first)}, must have {words(spec.dims)}")
            return [0]
        if not first or not spec.fits(first[1:]):
            raise WrongItem(f"input {spec.name!r} has shape {words(first)}, must have {words((-1, *spec.dims))}")
        if first[0] < 1 or shapes.count(first) != len(shapes):
            _check_alike(spec, shapes)
        rows = [shape[0] for shape in shapes]
        if sum(rows) > self._spec.max_batch_size:
            bound = self._spec.max_batch_size
            raise WrongItem(f"the batch has {sum(rows)} rows, must have at most max_batch_size, {bound}")
        return rows

    def _joined(self, spec: TensorSpec, column: tuple[pb.Tensor, ...], first: Shape, rows: list[int]) -> Array:
        """One input of all items, whose shapes have been checked."""
        data = [tensor.data or self._elsewhere(spec, tensor) for tensor in column]
        if self._spec.is_batched:
            elements = math.prod(first[1:])
            counts = [elements * count for count in rows]
            shape = (sum(rows), *spec.inside(first[1:]))
        else:
            counts, shape = [math.prod(first)], spec.inside(first)
        if spec.datatype.is_bytes:
            return _strings(spec, data, counts).reshape(shape)
        wanted = [count * spec.datatype.num_bytes for count in counts]
        if list(map(len, data)) != wanted:
            given, size = next((len(part), size) for part, size in zip(data, wanted, strict=True) if len(part) != size)
            raise WrongItem(f"input {spec.name!r} has {given} bytes, must have {size} for its shape")
        memory = data[0] if len(data) == 1 else bytearray().join(data)
        array = np.frombuffer(memory, spec.datatype.numpy).reshape(shape)
        if spec.datatype.name == "BOOL" and array.size and array.view(np.uint8).max() > 1:
            raise WrongItem(f"input {spec.name!r} has a byte above 1, must have 0 and 1 alone as BOOL")
        return array

    def _elsewhere(self, spec: TensorSpec, tensor: pb.Tensor) -> Raw:
        """Elements that are in shared memory; none where they are not."""
        if not tensor.HasField("region"):
            return b""
        region = tensor.region
        try:
            memory = self._views.memory(RegionRef(region.path, region.offset, region.size, region.lease))
        except (OSError, ValueError) as error:
            raise WrongItem(f"input {spec.name!r} cannot be read from shared memory: {error}") from None
        return memory.data.toreadonly()


def _check_alike(spec: TensorSpec, shapes: list[Shape]) -> None:
    tail = shapes[0][1:]
    for shape in shapes:
        if not shape or shape[0] < 1 or shape[1:] != tail:
            raise WrongItem(
                f"input {spec.name!r} has shape {words(shape)}, must have at least 1 row, "
                f"and rows of {words(tail)} as the batch's first request"
            )


def _check_absent(spec: TensorSpec, column: tuple[pb.Tensor, ...]) -> None:
    if not spec.is_optional:
        raise WrongItem(f"input {spec.name!r} is absent, must be given: it is not optional")
    if not all(tensor.is_absent for tensor in column):
        raise WrongItem(f"input {spec.name!r} is absent in some requests of the batch, must be in all or in none")


def _strings(spec: TensorSpec, data: list[Raw], counts: list[int]) -> Array:
    """Elements of BYTES, flat."""
    strings: list[bytes] = []
    try:
        for part, count in zip(data, counts, strict=True):
            strings += unpack_strings(part, count)
    except ValueError as error:
        raise WrongItem(f"input {spec.name!r}: {error}") from None
    array = np.empty(len(strings), object)
    array[:] = strings
    return array
