"""Models that are programs of torch: TorchScript (model.pt) and torch.export (model.pt2).

Such a file is code. torch's own loader would besides unpickle Python objects from a .pt2: that is refused, here where
the file says so, and by `FORCE_WEIGHTS_ONLY` in the process's environment for what torch reads with torch.load.
"""

from __future__ import annotations

import json
import os
import re
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from steploom_engine_worker.plain.datatypes import Array
from steploom_engine_worker.plain.errors import BrokenModel, WrongOutput
from steploom_engine_worker.plain.model_config import CONFIG_FILE
from steploom_engine_worker.plain.program import FORCE_WEIGHTS_ONLY, Origin, Parameters
from steploom_engine_worker.plain.spec import ModelSpec, Placement, TensorSpec

_PLACE = re.compile(r".+__(\d+)")  # Triton's names for arguments and results by place
_CONFIGS = re.compile(r"[^/]+/data/(?:weights|constants)/.+_config\.json")  # in a .pt2: what its payloads are
_TENSORS = ("tensor_", "weight_")  # files of payloads that are bytes alone

_exports = threading.Lock()  # torch reads one exported program at a time, and fails at a second beside it

_TORCH_OF = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Function:
    """A program as it is called."""

    run: Callable[..., Any]
    arguments: tuple[str, ...]  # names, by place
    num_positional: int  # the others are given by name


class TorchProgram:
    """A program on one device. See `Program`.

    Args:
        spec: of the model.
        function: on that device.
        device: where inputs go.

    Raises:
        BrokenModel: the config's tensors are not the program's.
    """

    def __init__(self, spec: ModelSpec, function: Function, device: torch.device) -> None:
        for tensor in (*spec.inputs, *spec.outputs):
            if tensor.datatype.is_bytes:
                raise BrokenModel(CONFIG_FILE, f"{tensor.name!r} is TYPE_STRING, which programs of torch do not have")
        self._function = function
        self._inputs = tuple(spec.inputs[at] for at in _order(spec, function))
        self._outputs = _by_place(spec.outputs) or spec.outputs
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def infer(self, inputs: dict[str, Array], parameters: Parameters) -> Mapping[str, Array]:  # noqa: ARG002
        """Runs a batch. See `Program`."""
        with torch.inference_mode(), self._lane():
            tensors = [_tensor(inputs[spec.name], spec).to(self._device) for spec in self._inputs]
            named = dict(zip(self._function.arguments, tensors, strict=True))
            by_name = {name: named[name] for name in self._function.arguments[self._function.num_positional :]}
            results = self._named(self._function.run(*tensors[: self._function.num_positional], **by_name))
            return {spec.name: _array(results[spec.name], spec) for spec in self._outputs}

    def warm_up(self) -> None:
        """The config's batches are all there is."""

    def close(self) -> None:
        """Memory goes with the object."""

    def _lane(self) -> Any:
        """Instances of one GPU run beside each other; each copies its outputs within its own stream."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def _named(self, results: Any) -> Mapping[str, torch.Tensor]:
        """Results by the config's names: a tensor, several in order, or a dict of them."""
        if isinstance(results, Mapping):
            for spec in self._outputs:
                if spec.name not in results:
                    raise WrongOutput(
                        f"output {spec.name!r} is missing, the program gave: {', '.join(map(str, results))}"
                    )
            return results
        several = results if isinstance(results, (tuple, list)) else (results,)
        if len(several) != len(self._outputs):
            raise WrongOutput(f"the program gave {len(several)} outputs, must give {len(self._outputs)}")
        return {spec.name: tensor for spec, tensor in zip(self._outputs, several, strict=True)}


def load_torch_program(origin: Origin, placement: Placement) -> TorchProgram:
    """Reads a program of torch.

    Raises:
        BrokenModel: the file is none, holds pickles, or does not fit the config.
    """
    device = _device(placement)
    load = _exported if origin.file.suffix == ".pt2" else _script
    try:
        function = load(origin.file, device)
    except BrokenModel:
        raise
    except Exception as error:  # whatever torch's readers make of a file, the file is wrong
        first = (str(error).strip().splitlines() or [""])[0]
        raise BrokenModel(origin.file.name, f"is no program that torch can load: {first[:300]}") from error
    return TorchProgram(origin.spec, function, device)


def _device(placement: Placement) -> torch.device:
    if placement.gpu is None:
        return torch.device("cpu")
    if placement.gpu >= torch.cuda.device_count():
        raise BrokenModel(
            CONFIG_FILE,
            f"instance_group.gpus: has {placement.gpu}, there are {torch.cuda.device_count()} GPUs that torch can use",
        )
    return torch.device("cuda", placement.gpu)


def _script(file: Path, device: torch.device) -> Function:
    """TorchScript. Its reader builds torch's own types alone."""
    module = torch.jit.load(str(file), map_location=device)  # type: ignore[no-untyped-call]
    module.eval()
    names = tuple(argument.name for argument in module.forward.schema.arguments[1:])
    return Function(module, names, len(names))


def _exported(file: Path, device: torch.device) -> Function:
    refuse_pickles(file)
    with _exports:
        return _read_exported(file, device)


def _read_exported(file: Path, device: torch.device) -> Function:
    program = torch.export.load(str(file))
    positional, named = _children(program.call_spec.in_spec)
    names = tuple(str(name) for name in program.graph_signature.user_inputs)
    if len(names) != positional.num_children + named.num_children:
        raise BrokenModel(file.name, "takes nested inputs, must take tensors alone")
    names = (*names[: positional.num_children], *named.context)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)  # constants of the graph too
    return Function(program.module(), names, positional.num_children)


def _children(spec: Any) -> list[Any]:
    """Parts of a structure of arguments, as newer and as older versions of torch have them."""
    return list(spec.children() if hasattr(spec, "children") else spec.children_specs)


def refuse_pickles(file: Path) -> None:
    """Whether a .pt2 can be read without running what is pickled in it.

    Raises:
        BrokenModel: it cannot; says why.
    """
    if os.environ.get(FORCE_WEIGHTS_ONLY) != "1":
        raise BrokenModel(file.name, f"is read only where the environment has {FORCE_WEIGHTS_ONLY}=1")
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if _CONFIGS.fullmatch(name):
                _refuse_pickled_payloads(file, json.loads(archive.read(name)))


def _refuse_pickled_payloads(file: Path, config: Any) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] or not payload["path_name"].startswith(_TENSORS):
            raise BrokenModel(
                file.name, f"holds {name!r} as a pickle, which is not read; must hold plain tensors alone"
            )


def _order(spec: ModelSpec, function: Function) -> list[int]:
    """For each argument of a program, the place of its input in the config."""
    names = [tensor.name for tensor in spec.inputs]
    arguments = function.arguments
    if len(names) != len(arguments):
        raise BrokenModel(
            CONFIG_FILE, f"input: has {len(names)} entries, must have {len(arguments)}, for {', '.join(arguments)}"
        )
    if any(tensor.is_optional for tensor in spec.inputs):
        raise BrokenModel(CONFIG_FILE, "input.optional: is true, must be false for programs of torch")
    by_place = _by_place(spec.inputs)
    if by_place:
        return [spec.inputs.index(tensor) for tensor in by_place]
    if len(names) == 1:
        return [0]
    if sorted(names) != sorted(arguments):
        raise BrokenModel(
            CONFIG_FILE,
            f"input: has the names {', '.join(names)}, must have those of the program's arguments, "
            f"{', '.join(arguments)}, or NAME__0, NAME__1, …",
        )
    return [names.index(argument) for argument in arguments]


def _by_place(tensors: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Sorted by the numbers in their names; empty where not all have one, from 0 on."""
    places = [int(match[1]) if (match := _PLACE.fullmatch(tensor.name)) else -1 for tensor in tensors]
    if sorted(places) != list(range(len(tensors))):
        return ()
    return tuple(tensors[places.index(place)] for place in range(len(tensors)))


def _tensor(array: Array, spec: TensorSpec) -> torch.Tensor:
    tensor = torch.from_numpy(array if array.flags.writeable else _unlocked(array))
    return tensor.view(torch.bfloat16) if spec.datatype.name == "BF16" else tensor


class _Unlocked:
    """An array's memory without its ban on writing: torch knows no such ban, and warns where it would pass it over."""

    def __init__(self, array: Array) -> None:
        self._array = array  # keeps the memory
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _unlocked(array: Array) -> Array:
    """An array that a program may write to, as some do to their inputs.

    The bytes of a message are a copy that only this batch sees, but Python shares those of length 1; whatever else may
    not be written to is somebody else's memory.
    """
    if isinstance(_root(array), bytes) and array.nbytes > 1:
        return np.asarray(_Unlocked(array))
    return array.copy()


def _root(array: Array) -> Any:
    """What an array's memory belongs to."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def _array(tensor: Any, spec: TensorSpec) -> Array:
    wanted = _TORCH_OF[spec.datatype.name]
    if not isinstance(tensor, torch.Tensor):
        raise WrongOutput(f"output {spec.name!r} is {type(tensor).__name__}, must be a tensor")
    if tensor.dtype != wanted:
        raise WrongOutput(f"output {spec.name!r} is {tensor.dtype}, must be {wanted}")
    tensor = tensor.detach().cpu().contiguous()
    if wanted is torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array: Array = tensor.numpy()
    return array.view(spec.datatype.numpy)
