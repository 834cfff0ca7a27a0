"""A model that is a Python class.

    class Model:
        def __init__(self, config, folder): ...
        def infer(self, inputs, parameters): return {"output": ...}

See docs/plain-models.md for what the arguments are.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

from steploom_engine_worker.plain.datatypes import Array
from steploom_engine_worker.plain.errors import BrokenModel, WrongOutput
from steploom_engine_worker.plain.program import Origin, Parameters
from steploom_engine_worker.plain.spec import Placement
from steploom_protos.inference import model_config_pb2 as pb

CLASS = "Model"


class PythonProgram:
    """An object of the class `Model` of a file. See `Program`."""

    def __init__(self, origin: Origin, placement: Placement) -> None:
        self._module = origin.module_name
        model = getattr(_module(origin), CLASS, None)
        if model is None or not callable(getattr(model, "infer", None)):
            raise BrokenModel(origin.file.name, f"must have a class {CLASS} with a method infer")
        self._model: Any = model(_config_of(origin.spec.config, placement), origin.file.parent)

    def infer(self, inputs: dict[str, Array], parameters: Parameters) -> Mapping[str, Array]:
        """Runs a batch. See `Program`."""
        outputs = self._model.infer(inputs, parameters)
        if not isinstance(outputs, Mapping):
            raise WrongOutput(f"infer gave {type(outputs).__name__}, must give a dict of arrays by name")
        return outputs

    def warm_up(self) -> None:
        """Runs the class's own `warm_up`, if it has one."""
        getattr(self._model, "warm_up", _nothing)()

    def close(self) -> None:
        """Runs the class's own `close`, if it has one."""
        getattr(self._model, "close", _nothing)()


def _nothing() -> None:
    """A class need not have the method."""


class _Source(SourceFileLoader):
    """Reads the file anew each time: kept bytecode is told by its time in seconds, and may be of another text."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        return self.source_to_code(self.get_data(self.path), self.path)


def _module(origin: Origin) -> Any:
    """The module of a file: one for all instances of a load."""
    name = origin.module_name
    with origin.lock:
        if name not in sys.modules:
            # a package of its own, so that what lies beside the file can be imported as `from .helper import …`
            spec = importlib.util.spec_from_file_location(
                name,
                origin.file,
                loader=_Source(name, str(origin.file)),
                submodule_search_locations=[str(origin.file.parent)],
            )
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                forget_module(name)
                raise
        return sys.modules[name]


def forget_module(name: str) -> None:
    """Lets the code of a load go."""
    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[known]


def _config_of(config: pb.ModelConfig, placement: Placement) -> pb.ModelConfig:
    """A copy for one instance: its `instance_group` says where this one runs."""
    own = pb.ModelConfig()
    own.CopyFrom(config)
    del own.instance_group[:]
    own.instance_group.add(
        name=config.name, kind=placement.kind, count=1, gpus=[] if placement.gpu is None else [placement.gpu]
    )
    return own
