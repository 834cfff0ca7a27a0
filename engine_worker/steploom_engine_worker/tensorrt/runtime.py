"""Plans that run: TensorRT's runtime behind a narrow, typed layer, the same for 8.6, 10, 11 and RTX.

Whatever TensorRT answers with None or False becomes an exception here, with what its logger said last. Where versions
differ, the difference is in one of the functions at the end of this module, and nowhere else.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from steploom_engine_worker.tensorrt import dlpack
from steploom_engine_worker.tensorrt.device import Device, Memory, Stream

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes: what TensorRT asks of memory, and what it gets for every tensor too
_KEPT_ERRORS = 8
_DTYPES = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32", "INT32": "int32", "INT64": "int64"}


class TensorRTError(RuntimeError):
    """TensorRT refused; the message has the call and what its logger said."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network, by its plan."""

    name: str
    dtype: str  # float16, bfloat16, float32, int32
    shape: tuple[int, ...]  # -1: a profile's matter
    is_input: bool


class Runtime:
    """Makes networks of plans.

    Args:
        trt: the module `tensorrt`, or `tensorrt_rtx`, or what stands for it.
        device: where.
    """

    def __init__(self, trt: Any, device: Device) -> None:
        self._trt, self._device = trt, device
        self._ears = _ears_of(trt)
        self._runtime = trt.Runtime(self._ears.logger)

    def __repr__(self) -> str:
        return f"Runtime({self._trt.__name__} {self._trt.__version__}, {self._device})"

    def network(self, plan: bytes, title: str) -> Network:
        """The network of a plan.

        Raises:
            TensorRTError: the plan is none for this GPU or this TensorRT.
        """
        self.forget_errors()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.error(f"the plan of {title} cannot be read by {self._trt.__name__} {self._trt.__version__}")
        return Network(self, engine, title)

    def forget_errors(self) -> None:
        """What was said until now belongs to no later call."""
        self._ears.forget()

    def error(self, problem: str) -> TensorRTError:
        """A refusal, with what the logger said since errors were forgotten."""
        return TensorRTError(f"{problem}: {'; '.join(self._ears.errors) or 'TensorRT gave no reason'}")

    @property
    def trt(self) -> Any:
        """The module."""
        return self._trt

    @property
    def device(self) -> Device:
        """Where its networks run."""
        return self._device


class Network:
    """A network that was read from its plan, with its weights on the device.

    Attributes:
        title: what errors call it.
        tensors: its inputs and outputs by name.
    """

    def __init__(self, runtime: Runtime, engine: Any, title: str) -> None:
        self._runtime, self._engine, self.title = runtime, engine, title
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.tensors: Mapping[str, Tensor] = {name: self._tensor(name) for name in names}

    def _tensor(self, name: str) -> Tensor:
        engine = self._engine
        kind = str(engine.get_tensor_dtype(name).name)
        is_input = engine.get_tensor_mode(name) == self._runtime.trt.TensorIOMode.INPUT
        return Tensor(name, _DTYPES.get(kind, kind.lower()), tuple(engine.get_tensor_shape(name)), is_input)

    def execution(
        self, profile: int, shapes: Mapping[str, Sequence[int]], stream: Stream, scratch: Scratch
    ) -> Execution:
        """What runs it with these shapes.

        Args:
            profile: number of the optimisation profile; one that no other execution has.
            shapes: of each input.
            stream: in which it will run.
            scratch: memory that it shares with whatever never runs at the same time.

        Raises:
            TensorRTError: the shapes are not of the profile, or there is no context to be had.
            OutOfDeviceMemory: no memory for it.
        """
        runtime = self._runtime
        runtime.forget_errors()
        context = _bare_context(runtime.trt, self._engine)
        if context is None:
            raise runtime.error(f"no execution context of {self.title}")
        execution = Execution(runtime, self, context, stream)
        if self._engine.num_optimization_profiles > 1:  # else it has the one that there is
            execution.need("set_optimization_profile_async", profile, stream.address)
            stream.wait()
        memory = scratch.at_least(_scratch_bytes(self._engine))
        if memory is not None:
            execution.use(memory)
        for name, shape in shapes.items():
            execution.need("set_input_shape", name, tuple(shape))
        return execution


class Scratch:
    """Memory of networks' passing values. Executions of one stream never run at once, so they share it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: list[Memory] = []  # recorded graphs have the addresses of all of them

    @property
    def num_bytes(self) -> int:
        """All that it has."""
        return sum(memory.num_bytes for memory in self._memory)

    def at_least(self, num_bytes: int) -> Memory | None:
        """Memory of at least so many bytes; None where none is needed."""
        if not num_bytes:
            return None
        if not self._memory or self._memory[-1].num_bytes < num_bytes:
            self._memory.append(self._device.allocate(num_bytes))
        return self._memory[-1]


class Execution:
    """A network with its shapes and memory, to be run again and again in one stream."""

    def __init__(self, runtime: Runtime, network: Network, context: Any, stream: Stream) -> None:
        self._runtime, self._network, self._context, self._stream = runtime, network, context, stream
        self._memory: Memory | None = None
        self._bound: dict[str, object] = {}  # by name, what keeps its memory

    def __repr__(self) -> str:
        return f"Execution({self._network.title})"

    def use(self, memory: Memory) -> None:
        """Lets it keep passing values there."""
        _use_memory(self._context, memory)
        self._memory = memory

    def need(self, call: str, *arguments: Any) -> None:
        """Asks the context for something that it may refuse.

        Raises:
            TensorRTError: it did.
        """
        self._runtime.forget_errors()
        if getattr(self._context, call)(*arguments) is not True:
            shown = ", ".join(str(argument) for argument in arguments)
            raise self._runtime.error(f"{call}({shown}) of {self._network.title} failed")

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, under the shapes that were given."""
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, name: str, array: Any) -> None:
        """Lets a tensor be this array for all runs to come: of any library that has `__dlpack__`, contiguous.

        Raises:
            ValueError: it is of another shape or type, or not on the device.
            TensorRTError: TensorRT refuses it.
        """
        tensor = self._network.tensors.get(name)
        if tensor is None:
            known = ", ".join(self._network.tensors)
            raise ValueError(f"{self._network.title} has no tensor {name}; it has {known}")
        borrowed, shape = dlpack.borrow(array, self._stream.address), self.shape(name)
        if (borrowed.dtype, borrowed.shape) != (tensor.dtype, shape):
            given, wanted = f"{borrowed.dtype} {list(borrowed.shape)}", f"{tensor.dtype} {list(shape)}"
            raise ValueError(f"{name} of {self._network.title} is {given}, must be {wanted}")
        if borrowed.device != (dlpack.CUDA, self._runtime.device.index):
            raise ValueError(f"{name} of {self._network.title} is not on device {self._runtime.device.index}")
        if borrowed.address % ALIGNMENT:
            raise ValueError(f"{name} of {self._network.title} lies at no multiple of {ALIGNMENT} bytes")
        self.need("set_tensor_address", name, borrowed.address)
        self._bound[name] = borrowed

    def run(self) -> None:
        """Puts a run into its stream, or into what is being recorded of it.

        Raises:
            TensorRTError: TensorRT did not.
        """
        unbound = [name for name in self._network.tensors if name not in self._bound]
        if unbound:
            raise ValueError(f"{self._network.title} has no memory for {', '.join(unbound)}")
        self.need("execute_async_v3", self._stream.address)


class _Ears:
    """What TensorRT says; it calls a logger of a class of its own, from any thread."""

    def __init__(self, trt: Any) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)
        self._lock = threading.Lock()
        hear = self._hear

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                hear(str(getattr(severity, "name", severity)), msg)

        self.logger = Logger()

    @property
    def errors(self) -> list[str]:
        """Those that were not forgotten."""
        with self._lock:
            return list(self._errors)

    def forget(self) -> None:
        """Drops them."""
        with self._lock:
            self._errors.clear()

    def _hear(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            with self._lock:
                self._errors.append(text)
            log.error("TensorRT: %s", text)
        elif severity == "WARNING":
            log.warning("TensorRT: %s", text)
        else:
            log.debug("TensorRT: %s", text)


_all_ears: WeakKeyDictionary[Any, _Ears] = WeakKeyDictionary()  # by module


def _ears_of(trt: Any) -> _Ears:
    """Those of a TensorRT: it listens to the first logger of a process alone, and keeps no reference to it."""
    if trt not in _all_ears:
        _all_ears[trt] = _Ears(trt)
    return _all_ears[trt]


def _bare_context(trt: Any, engine: Any) -> Any:
    """A context without memory of its own: from 10 on by a strategy, before by another call."""
    strategies = getattr(trt, "ExecutionContextAllocationStrategy", None)
    if strategies is not None:
        return engine.create_execution_context(strategies.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def _scratch_bytes(engine: Any) -> int:
    """What a context needs, whatever its profile: executions share it, and that of the largest needs nearly as much."""
    for name in ("device_memory_size_v2", "device_memory_size"):  # 10.1 and later; all before 11
        if hasattr(engine, name):
            return int(getattr(engine, name))
    raise AttributeError("this TensorRT does not tell how much memory a context needs")


def _use_memory(context: Any, memory: Memory) -> None:
    """With its size where TensorRT wants to hold it against its need (10.1 and later)."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(memory.address, memory.num_bytes)
    else:
        context.device_memory = memory.address
