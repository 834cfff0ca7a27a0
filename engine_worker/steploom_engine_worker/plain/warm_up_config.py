"""`model_warmup` of config.pbtxt: whether it is as it must be, and the requests that it describes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steploom_engine_worker.plain.datatypes import Array, Datatype, unpack_strings
from steploom_engine_worker.plain.errors import BrokenModel
from steploom_engine_worker.plain.names import is_file_name
from steploom_engine_worker.plain.spec import ModelSpec, Shape, words
from steploom_protos.inference import model_config_pb2 as pb

FOLDER = "warmup"  # of a model, where data files lie

_MAX_COUNT = 10_000
_MAX_BYTES = 2**30  # of an input
_MAX_STRING = 16  # characters of a random one


@dataclass(frozen=True)
class WarmUp:
    """A batch that is run before a model serves."""

    name: str  # for the log
    inputs: dict[str, Array]  # as the model gets them
    rows: int  # of the batch; 0: tensors have no dimension of the batch
    count: int  # how often


def warm_up_problems(config: pb.ModelConfig) -> Iterator[str]:
    """What is wrong with `model_warmup`: each field and its bound."""
    for at, warm_up in enumerate(config.model_warmup):
        path = f"model_warmup[{at}]"
        largest = max(config.max_batch_size, 1)
        if not 0 <= warm_up.batch_size <= largest:
            yield f"{path}.batch_size: is {warm_up.batch_size}, must be at most {largest}"
        if warm_up.count > _MAX_COUNT:
            yield f"{path}.count: is {warm_up.count}, must be at most {_MAX_COUNT}"
        known = {item.name: item for item in config.input}
        for name in sorted(set(warm_up.inputs) - set(known)):
            yield f"{path}.inputs: has {name!r}, must be among: {', '.join(known)}"
        for name, item in known.items():
            if name in warm_up.inputs:
                yield from _input_problems(f"{path}.inputs[{name!r}]", warm_up.inputs[name], item)
            elif not item.optional:
                yield f"{path}.inputs: has no {name!r}, must have every input that is not optional"


def _input_problems(path: str, given: pb.ModelWarmup.Input, item: pb.ModelInput) -> Iterator[str]:
    dims = tuple(given.dims)
    if given.data_type != item.data_type:
        yield f"{path}.data_type: is {_name(given.data_type)}, must be the input's, {_name(item.data_type)}"
    wanted = tuple(item.dims)
    if len(dims) != len(wanted) or any(
        size < 1 or rule not in (-1, size) for size, rule in zip(dims, wanted, strict=False)
    ):
        yield f"{path}.dims: is {words(dims)}, must be {words(wanted)} with a size for each -1"
    elif math.prod(dims) * 8 > _MAX_BYTES:
        yield f"{path}.dims: is {words(dims)}, must have at most {_MAX_BYTES // 8} elements"
    kind = given.WhichOneof("input_data_type")
    if kind is None:
        yield f"{path}: has no data, must have zero_data, random_data or input_data_file"
    elif kind == "input_data_file" and not is_file_name(given.input_data_file):
        yield f"{path}.input_data_file: must be the name of a file in the model's folder {FOLDER}, without slashes"


def _name(number: int) -> str:
    return pb.DataType.Name(number) if number in pb.DataType.values() else str(number)


def read_warm_ups(spec: ModelSpec, folder: Path) -> tuple[WarmUp, ...]:
    """The batches of a config that has been checked.

    Args:
        folder: of the model; data files lie in its folder `warmup`.

    Raises:
        BrokenModel: a data file cannot be read, or has another size than its input.
    """
    return tuple(_warm_up(item, spec, folder / FOLDER) for item in spec.config.model_warmup)


def _warm_up(item: pb.ModelWarmup, spec: ModelSpec, folder: Path) -> WarmUp:
    rows = (item.batch_size or 1) if spec.is_batched else 0
    inputs = {}
    for tensor in spec.inputs:
        if tensor.name in item.inputs:
            given = item.inputs[tensor.name]
            row = _row(given, tensor.datatype, folder).reshape(tensor.inside(tuple(given.dims)))
            inputs[tensor.name] = np.stack([row] * rows) if rows else row
    return WarmUp(item.name, inputs, rows, item.count or 1)


def _row(given: pb.ModelWarmup.Input, datatype: Datatype, folder: Path) -> Array:
    """One request's elements, in the dims of the config."""
    dims = tuple(given.dims)
    if given.WhichOneof("input_data_type") == "input_data_file":
        return _read(folder / given.input_data_file, datatype, dims)
    if given.random_data:
        return _random(datatype, dims)
    return np.full(dims, b"", object) if datatype.is_bytes else np.zeros(dims, datatype.numpy)


def _read(file: Path, datatype: Datatype, dims: Shape) -> Array:
    place = f"{FOLDER}/{file.name}"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BrokenModel(place, f"cannot be read: {error.strerror}") from None
    count = math.prod(dims)
    if datatype.is_bytes:
        try:
            return np.array([*unpack_strings(data, count), None], object)[:-1].reshape(dims)
        except ValueError as error:
            raise BrokenModel(place, str(error)) from None
    if len(data) != count * datatype.num_bytes:
        wanted = count * datatype.num_bytes
        raise BrokenModel(place, f"has {len(data)} bytes, must have {wanted} as {datatype.name} {words(dims)}")
    return np.frombuffer(data, datatype.numpy).reshape(dims)


def _random(datatype: Datatype, dims: Shape) -> Array:
    """The same at every start: a model that fails on it should do so each time."""
    generator = np.random.default_rng(0)
    if datatype.is_bytes:
        strings = [generator.bytes(int(size)) for size in generator.integers(0, _MAX_STRING, math.prod(dims))]
        return np.array([*strings, None], object)[:-1].reshape(dims)
    if datatype.numpy.kind == "f":
        return generator.random(dims).astype(datatype.numpy)
    if datatype.name == "BF16":  # its bits: the upper half of those of a float of 32
        return (generator.random(dims, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if datatype.numpy.kind == "b":
        return generator.integers(0, 2, dims).astype(bool)
    return generator.integers(0, 100, dims).astype(datatype.numpy)  # indices into a table are small
