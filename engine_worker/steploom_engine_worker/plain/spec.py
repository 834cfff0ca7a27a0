"""What a model's config says of its tensors and instances, in the form in which batches need it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steploom_engine_worker.plain.datatypes import DATATYPES, Datatype
from steploom_protos.inference import model_config_pb2 as pb

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor, in or out."""

    name: str
    datatype: Datatype
    dims: Shape  # without the batch's; -1: any size
    inner: Shape | None = None  # its dims inside the model; None: the same
    is_optional: bool = False

    def fits(self, shape: Shape) -> bool:
        """Whether a shape, without the batch's dimension, is one of these dims."""
        return len(shape) == len(self.dims) and all(
            size >= 0 if rule == -1 else size == rule for size, rule in zip(shape, self.dims, strict=True)
        )

    def inside(self, shape: Shape) -> Shape:
        """The shape inside the model of a tensor of this shape outside; -1: what follows from the others."""
        return shape if self.inner is None else self.inner

    @property
    def inner_dims(self) -> Shape:
        """Dims that the model itself sees."""
        return self.dims if self.inner is None else self.inner


@dataclass(frozen=True)
class Placement:
    """Where one instance runs."""

    kind: int  # of pb.ModelInstanceGroup.Kind: CPU, GPU, or MODEL, which leaves it to the model
    gpu: int | None = None  # by number; None: on no GPU


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be loaded."""

    name: str
    config: pb.ModelConfig  # complete; nobody changes it
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int  # rows; 0: tensors have no dimension of the batch

    @property
    def is_batched(self) -> bool:
        """Whether tensors have a dimension of the batch."""
        return self.max_batch_size > 0


def spec_of(config: pb.ModelConfig) -> ModelSpec:
    """The spec of a config that has been checked and completed."""
    return ModelSpec(
        name=config.name,
        config=config,
        inputs=tuple(_tensor(item, item.optional) for item in config.input),
        outputs=tuple(_tensor(item, False) for item in config.output),
        max_batch_size=config.max_batch_size,
    )


def _tensor(item: pb.ModelInput | pb.ModelOutput, is_optional: bool) -> TensorSpec:
    inner = tuple(item.reshape.shape) if item.HasField("reshape") else None
    return TensorSpec(item.name, DATATYPES[item.data_type], tuple(item.dims), inner, is_optional)


def fixed_size(dims: Shape) -> int:
    """Elements of the dims that are fixed."""
    return math.prod(size for size in dims if size != -1)


def words(shape: Shape) -> str:
    """A shape in a message: `[2, -1]`."""
    return f"[{', '.join(map(str, shape[:8]))}{', …' if len(shape) > 8 else ''}]"
