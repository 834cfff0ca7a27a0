"""The part of tensorrt 8.6's Python interface that a build uses: writes down what it is told, and builds nothing.

It has the names that 8.6 has, and not those that came later; it fails on command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from steploom_engine_worker.tensorrt.flavour import Flavour

_DataType = IntEnum("_DataType", ["FLOAT", "HALF", "INT32"], start=0)


@dataclass(eq=False)
class Tensor:
    name: str
    dtype: Any
    shape: tuple[int, ...] = ()


@dataclass(eq=False)
class Layer:
    """`precision` and the types of outputs are None until they are set."""

    name: str
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor]
    type: str = "OTHER"
    precision: Any = None
    output_types: dict[int, Any] = field(default_factory=dict)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, number: int) -> Tensor | None:
        return self.inputs[number]

    def get_output(self, number: int) -> Tensor:
        return self.outputs[number]

    def set_output_type(self, number: int, dtype: Any) -> None:
        self.output_types[number] = dtype


class Network:
    """Timesteps in float32 become half precision in a cast; the sample is half precision from the start.

    As 8.6 has it, every tensor between layers tells float32 until an output type is set, and a cast with another
    output type than the one that it casts to is not built.
    """

    def __init__(self, flags: int) -> None:
        self.flags = flags
        times, sample = Tensor("timesteps", _DataType.FLOAT, (3,)), Tensor("sample", _DataType.HALF, (3, 8, 8, 8))
        phases, waves = Tensor("phases", _DataType.FLOAT), Tensor("waves", _DataType.FLOAT)
        short, out = Tensor("short", _DataType.FLOAT), Tensor("prediction", _DataType.HALF, (3, 8, 8, 4))
        constant, table = Tensor("constant", _DataType.FLOAT), Tensor("table", _DataType.FLOAT)
        self._inputs, self._outputs = [sample, times], [out]
        self.layers = [
            Layer("table", [], [constant]),
            Layer("other table", [constant], [table]),
            Layer("multiply", [times, constant], [phases]),
            Layer("sine", [phases, None], [waves]),
            Layer("cast", [waves], [short], "CAST"),
            Layer("convolution", [sample, short], [out], "CONVOLUTION"),
        ]
        self.num_layers, self.num_inputs, self.num_outputs = len(self.layers), 2, 1

    def get_layer(self, number: int) -> Layer:
        return self.layers[number]

    def get_input(self, number: int) -> Tensor:
        return self._inputs[number]

    def get_output(self, number: int) -> Tensor:
        return self._outputs[number]


class Cache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"+"


class Config:
    """It takes timing caches that begin with `mine`, and empty ones."""

    def __init__(self) -> None:
        self.builder_optimization_level = -1
        self.flags: list[str] = []
        self.tactic_sources: int | None = None
        self.memory: list[tuple[str, int]] = []
        self._cache: Cache | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def set_tactic_sources(self, sources: int) -> None:
        self.tactic_sources = sources

    def set_memory_pool_limit(self, pool: str, num_bytes: int) -> None:
        self.memory.append((pool, num_bytes))

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache._content and not cache._content.startswith(b"mine"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self._cache


class Recorded:
    """What a build did with it.

    Args:
        fails: TensorRT gives no engine, and says why.
    """

    def __init__(self, fails: bool = False) -> None:
        self.network: Network | None = None
        self.config = Config()
        self._fails = fails

    @property
    def flavour(self) -> Flavour:
        return Flavour("tensorrt", "8.6.0", self._module())

    def _module(self) -> Any:
        recorded = self

        class Logger:
            ERROR = 1

            def __init__(self) -> None:
                pass

            def log(self, severity: int, text: str) -> None:
                raise AssertionError("to be overridden")

        class Builder:
            def __init__(self, log: Logger) -> None:
                self._log = log

            def create_network(self, flags: int) -> Network:
                recorded.network = Network(flags)
                return recorded.network

            def create_builder_config(self) -> Config:
                return recorded.config

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                self._log.log(4, "a word")
                if recorded._fails:
                    self._log.log(1, "no kernel for convolution")
                    return None
                if any(layer.type == "CAST" and layer.output_types for layer in network.layers):
                    self._log.log(1, "castLayer: another output type than the one it casts to")
                    return None
                return b"an engine"

        class Parser:
            num_errors = 0

            def __init__(self, network: Network, log: Logger) -> None:
                pass

            def parse_from_file(self, path: str) -> bool:
                return True

        return SimpleNamespace(
            ILogger=Logger,
            Builder=Builder,
            OnnxParser=Parser,
            DataType=_DataType,
            LayerType=SimpleNamespace(CONVOLUTION="CONVOLUTION", CAST="CAST"),
            float32=_DataType.FLOAT,
            float16=_DataType.HALF,
            NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
            BuilderFlag=SimpleNamespace(
                FP16="FP16",
                OBEY_PRECISION_CONSTRAINTS="OBEY_PRECISION_CONSTRAINTS",
                ENABLE_TACTIC_HEURISTIC="ENABLE_TACTIC_HEURISTIC",
            ),
            MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        )
