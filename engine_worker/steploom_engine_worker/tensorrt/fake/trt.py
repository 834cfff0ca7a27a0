"""The module `tensorrt` as far as `runtime` uses it, over a fake driver; its networks are a few lines of numpy.

It has the faces of several versions, which differ in the calls that they have, and refuses what TensorRT refuses: an
execution without memory or shapes, a shape that is not of the profile, two contexts of one profile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Compute = Callable[[Mapping[str, Array]], Array]

SCRATCH_BYTES = 4096  # a row

_NUMPY = {"HALF": np.float16, "FLOAT": np.float32, "INT32": np.int32}
DTYPES = {"float16": "HALF", "float32": "FLOAT", "int32": "INT32"}


class DataType(Enum):
    """Types of tensors."""

    FLOAT = 0
    HALF = 1
    INT32 = 3
    BF16 = 7


class TensorIOMode(Enum):
    """Which way a tensor goes."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Severity(Enum):
    """Of what a logger hears."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class ILogger:
    """To be derived from."""

    def log(self, severity: Severity, msg: str) -> None:
        """Is told."""


class ExecutionContextAllocationStrategy(Enum):
    """Who gives a context its memory."""

    STATIC = 0
    USER_MANAGED = 2


def unet(given: Mapping[str, Array]) -> Array:
    """Noisy latents and picture, with what the row is conditioned on, each in a way of its own."""
    sample = given["sample"].astype(np.float32)
    channels = sample.shape[-1] // 2
    context = given["context"].astype(np.float32).mean(axis=(1, 2))
    shift = np.sin(given["timesteps"] / 300.0) + context
    if "gates" in given and given["gates"].shape[1]:
        strengths = np.arange(1, given["gates"].shape[1] + 1, dtype=np.float32)
        scales = given["scales"] if "scales" in given else np.ones((len(sample), 2), np.float32)
        shift = shift + given["gates"] @ strengths * np.log(scales[:, 0] + scales[:, 1])
    noisy, known = sample[..., :channels], sample[..., channels:]
    return np.asarray(0.8 * noisy - 0.3 * known + 0.1 * shift[:, None, None, None])


def text_encoder(given: Mapping[str, Array], width: int) -> Array:
    """The sine of what follows each token, at as many speeds as the states are wide."""
    return np.sin((given["tokens"][..., None] + 1) * (1.0 + np.arange(width, dtype=np.float32) / width))


def vae_encoder(given: Mapping[str, Array], side: int) -> Array:
    """Means of squares of pixels; the fourth channel is the mean of the others."""
    pictures = given["pictures"].astype(np.float32)
    jobs, pixels = pictures.shape[:2]
    factor = pixels // side
    means = pictures.reshape(jobs, side, factor, side, factor, 3).mean(axis=(2, 4))
    return np.concatenate([means, means.mean(axis=-1, keepdims=True)], axis=-1)


def vae_decoder(given: Mapping[str, Array], side: int) -> Array:
    """Squares of one colour."""
    latents = given["latents"].astype(np.float32)
    factor = side // latents.shape[1]
    return np.asarray(np.tanh(latents[..., :3]).repeat(factor, axis=1).repeat(factor, axis=2))


def compute(network: str, given: Mapping[str, Array], out_shape: Sequence[int]) -> Array:
    """What a network of the fake makes of its inputs.

    Args:
        network: its name.
        given: inputs by name.
        out_shape: of its output.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if network == "unet":
            return unet(given)
        if network == "text_encoder":
            return text_encoder(given, out_shape[-1])
        if network == "vae_encoder":
            return vae_encoder(given, out_shape[1])
        return vae_decoder(given, out_shape[1])


@dataclass(frozen=True)
class _Spec:
    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


def fill(network: str, given: Mapping[str, Array], out: Array) -> None:
    """Puts what a network of the fake makes of its inputs into its output."""
    with np.errstate(over="ignore"):
        out[:] = compute(network, given, out.shape)


def plan_bytes(network: str, buckets: Sequence[int], tensors: Sequence[tuple[str, str, Sequence[int], bool]]) -> bytes:
    """A plan that the fake reads.

    Args:
        network: its name.
        buckets: of its profiles; of one alone it is static.
        tensors: name, type, shape with -1 first, and whether it is an input.
    """
    return json.dumps(
        {"network": network, "buckets": list(buckets), "tensors": [list(item) for item in tensors]}
    ).encode()


class FakeTensorRT:
    """Stands for the module.

    Args:
        driver: where its networks run.
        version: of TensorRT, whose calls it has: 8.6, 10.0, 10.9, 11.0.
        fill: what networks are, of whatever kind of arrays the driver gives.

    Attributes:
        refuse: by the name of a call, what it answers in place of what it would: None or False.
        said: what the logger hears with a refusal.
        spoil: given a network's name and its result, may change it before it is stored.
    """

    __name__ = "tensorrt"

    DataType = DataType
    TensorIOMode = TensorIOMode
    ILogger = ILogger
    Logger = SimpleNamespace(Severity=Severity)

    def __init__(self, driver: Any, version: str = "10.9.0", fill: Callable[[str, Any, Any], None] = fill) -> None:
        self.__version__ = version
        self.fill = fill
        self.driver = driver
        self.release = tuple(int(part) for part in version.split(".")[:2])
        if self.release >= (10, 0):
            self.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
        self.refuse: dict[str, Any] = {}
        self.said = "as it was told to"
        self.spoil: Callable[[str, Array], None] | None = None
        self.Runtime = lambda logger: _Runtime(self, logger)

    def answer(self, call: str, otherwise: Any, logger: Any) -> Any:
        """What a call answers."""
        if call not in self.refuse:
            return otherwise
        logger.log(Severity.ERROR, f"{call}: {self.said}")
        return self.refuse[call]


class _Runtime:
    def __init__(self, trt: FakeTensorRT, logger: ILogger) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        try:
            table = json.loads(plan)
            engine = _engine(self._trt, self._logger, table)
        except (ValueError, KeyError, UnicodeDecodeError):
            self._logger.log(Severity.ERROR, "the serialized engine is damaged")
            return None
        return self._trt.answer("deserialize_cuda_engine", engine, self._logger)


class _Engine:
    def __init__(self, trt: FakeTensorRT, logger: ILogger, table: Mapping[str, Any]) -> None:
        self.trt, self.logger = trt, logger
        self.network: str = table["network"]
        self.buckets: list[int] = table["buckets"]
        self.specs = {
            name: _Spec(name, dtype, tuple(shape), is_input) for name, dtype, shape, is_input in table["tensors"]
        }
        self.used_profiles: set[int] = set()

    @property
    def num_io_tensors(self) -> int:
        return len(self.specs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.buckets)

    @property
    def scratch_bytes(self) -> int:
        """Of the hungriest profile."""
        return SCRATCH_BYTES * max(self.buckets)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.specs)[index])

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[DTYPES[self.specs[name].dtype]]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self.specs[name].is_input else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first = self.buckets[0] if len(self.buckets) == 1 else -1
        return (first, *self.specs[name].shape[1:])

    def _context(self) -> Any:
        return self.trt.answer("create_execution_context", _context(self), self.logger)


class _OldEngine(_Engine):
    """8.6"""

    @property
    def device_memory_size(self) -> int:
        return self.scratch_bytes

    def create_execution_context_without_device_memory(self) -> Any:
        return self._context()


class _MiddleEngine(_Engine):
    """10.0"""

    @property
    def device_memory_size(self) -> int:
        return self.scratch_bytes

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Any:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return self._context()


class _NewEngine(_Engine):
    """10.1 and later; RTX"""

    @property
    def device_memory_size_v2(self) -> int:
        return self.scratch_bytes

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Any:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return self._context()


def _engine(trt: FakeTensorRT, logger: ILogger, table: Mapping[str, Any]) -> _Engine:
    kind = _OldEngine if trt.release < (10, 0) else _MiddleEngine if trt.release < (10, 1) else _NewEngine
    return kind(trt, logger, table)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None

    def __del__(self) -> None:
        self._engine.used_profiles.discard(-1 if self._profile is None else self._profile)

    def _use_profile(self, profile: int) -> bool:
        if profile in self._engine.used_profiles or not 0 <= profile < len(self._engine.buckets):
            return self._refuse(f"profile {profile} is another context's, or none")
        if len(self._engine.buckets) > 1:  # a static one is for any number of contexts
            self._engine.used_profiles.add(profile)
        self._profile = profile
        return True

    def _refuse(self, reason: str) -> bool:
        self._engine.logger.log(Severity.ERROR, reason)
        return False

    def _answer(self, call: str, otherwise: Any) -> Any:
        return self._engine.trt.answer(call, otherwise, self._engine.logger)

    def set_optimization_profile_async(self, profile: int, stream: int) -> Any:
        return self._answer("set_optimization_profile_async", self._use_profile(profile))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> Any:
        if self._profile is None and len(self._engine.buckets) > 1:
            return self._refuse("no optimization profile has been set")
        if self._profile is None:
            self._use_profile(0)
        bucket = self._engine.buckets[self._profile or 0]
        if shape != (bucket, *self._engine.specs[name].shape[1:]):
            return self._refuse(f"{name}: {shape} is not of the profile of {bucket}")
        self._shapes[name] = shape
        return self._answer("set_input_shape", True)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = (self._engine.buckets[self._profile or 0], *self._engine.specs[name].shape[1:])
        found: tuple[int, ...] = self._answer("get_tensor_shape", shape)
        return found

    def set_tensor_address(self, name: str, address: int) -> Any:
        self._addresses[name] = address
        return self._answer("set_tensor_address", True)

    def execute_async_v3(self, stream: int) -> Any:
        engine = self._engine
        missing = [spec.name for spec in engine.specs.values() if spec.name not in self._addresses]
        missing += [spec.name for spec in engine.specs.values() if spec.is_input and spec.name not in self._shapes]
        if missing or self._memory is None or self._memory[1] < engine.scratch_bytes:
            return self._refuse(f"{', '.join(missing) or 'the context'} has no memory or no shape")
        answer = self._answer("execute_async_v3", True)
        if answer is True:
            engine.trt.driver.enqueue(stream, self._run)
        return answer

    def _run(self) -> None:
        engine, driver = self._engine, self._engine.trt.driver
        bucket = engine.buckets[self._profile or 0]
        arrays = {
            spec.name: driver.array_at(self._addresses[spec.name], _NUMPY[DTYPES[spec.dtype]], bucket, *spec.shape[1:])
            for spec in engine.specs.values()
        }
        given = {name: array for name, array in arrays.items() if engine.specs[name].is_input}
        (out,) = (array for name, array in arrays.items() if name not in given)
        assert self._memory is not None
        driver.bytes_at(self._memory[0], SCRATCH_BYTES * bucket)[:] = 0xCC  # nobody else's meanwhile
        engine.trt.fill(engine.network, given, out)
        if engine.trt.spoil is not None:
            engine.trt.spoil(engine.network, out)


class _OldContext(_Context):
    @property
    def device_memory(self) -> int:
        return self._memory[0] if self._memory else 0

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self._memory = address, 1 << 62


class _NewContext(_Context):
    def set_device_memory(self, address: int, num_bytes: int) -> None:
        self._memory = address, num_bytes


def _context(engine: _Engine) -> _Context:
    return (_OldContext if engine.trt.release < (10, 1) else _NewContext)(engine)
