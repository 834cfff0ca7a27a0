"""A plain model as the gateway knows it: what a request for it must be like."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steploom_gateway.plain.datatypes import DATATYPES, Datatype
from steploom_protos.inference import model_config_pb2 as config_pb
from steploom_protos.worker.v1 import plain_pb2 as host_pb

Shape = tuple[int, ...]

_MAX_ELEMENTS = 2**40  # of a tensor: what no request has, and every field can hold


@dataclass(frozen=True)
class TensorSpec:
    """A tensor in or out."""

    name: str
    datatype: Datatype
    dims: Shape  # without the batch's; -1: any size
    is_optional: bool = False


@dataclass(frozen=True)
class PlainModel:
    """One model, by all of its versions."""

    name: str
    config: config_pb.ModelConfig
    versions: tuple[int, ...]  # that are served, rising
    instances: int  # batches that run at once; 0: its host is away
    state: int  # of host_pb.ModelState
    reason: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int  # 0: tensors have no dimension of the batch

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests: those for a host that is away wait for it a while."""
        return bool(self.versions) and self.state == host_pb.MODEL_STATE_READY

    @property
    def is_served(self) -> bool:
        """Whether a host runs it now."""
        return self.is_ready and self.instances > 0

    @property
    def platform(self) -> str:
        """What runs it."""
        return self.config.platform or self.config.backend

    def whole_dims(self, spec: TensorSpec) -> Shape:
        """With the batch's dimension, as metadata show it."""
        return (-1, *spec.dims) if self.max_rows else spec.dims

    def check_shape(self, spec: TensorSpec, shape: Shape) -> None:
        """Whether a tensor may have this shape.

        Raises:
            ValueError: says how it differs.
        """
        own = shape[1:] if self.max_rows else shape
        fits = len(shape) == len(spec.dims) + bool(self.max_rows) and all(
            size >= 0 if rule == -1 else size == rule for size, rule in zip(own, spec.dims, strict=True)
        )
        if not fits:
            raise ValueError(f"has shape {words(shape)}, must have {words(self.whole_dims(spec))}")
        if self.max_rows and not 1 <= shape[0] <= self.max_rows:
            raise ValueError(f"has {shape[0]} rows, must have 1 to {self.max_rows}, the model's max_batch_size")
        if math.prod(shape) > _MAX_ELEMENTS:
            raise ValueError(f"has {math.prod(shape)} elements, must have at most {_MAX_ELEMENTS}")


def plain_model(hosted: host_pb.HostedModel) -> PlainModel:
    """What a host says of a model."""
    config = hosted.config
    return PlainModel(
        name=hosted.name,
        config=config,
        versions=tuple(hosted.versions),
        instances=hosted.instances,
        state=hosted.state,
        reason=hosted.reason,
        inputs=tuple(
            TensorSpec(item.name, DATATYPES[item.data_type], tuple(item.dims), item.optional) for item in config.input
        ),
        outputs=tuple(TensorSpec(item.name, DATATYPES[item.data_type], tuple(item.dims)) for item in config.output),
        max_rows=config.max_batch_size,
    )


def words(shape: Shape) -> str:
    """A shape in a message: `[2, -1]`."""
    return f"[{', '.join(map(str, shape[:8]))}{', …' if len(shape) > 8 else ''}]"
