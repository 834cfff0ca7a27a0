"""A network as a folded ONNX graph: no shape arithmetic, operators of opset 17, any number of rows.

torch's exporter is given a fixed number of rows, so that every shape is a constant and all that computes shapes folds
away. What is left of that number are the constants of reshapes: their first becomes "as the input has it", and from
then on the same graph serves every number of rows. Engines are built of it for fixed ones, or for a range.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from steploom_engine_worker.export.networks import Network

OPSET = 17  # what TensorRT 8.6 reads; later releases read it as well
_EXPORTER_OPSET = 18  # the lowest that torch's exporter writes
_ROWS = 5  # of the example: no other dimension's size is likely to be taken for it
_LARGE_BYTES = 1 << 30  # of weights: beyond this they lie in a file of their own, as a protobuf ends at 2 GiB
_INLINE_BYTES = 1 << 20  # of what folding may make: constants of shapes, not weights times two

# Operators that only compute shapes, or that folding should have made constants of.
SHAPE_OPERATORS = frozenset(
    {"Constant", "ConstantOfShape", "Expand", "Identity", "If", "Loop", "NonZero", "Range", "Shape", "Size", "Tile"}
)


class ExportError(ValueError):
    """A network cannot be exported as it should be."""


@dataclass(frozen=True)
class Graph:
    """A folded graph, and what folding did."""

    network: Network
    model: ir.Model
    nodes_before: int
    nodes_after: int

    @property
    def operators(self) -> Mapping[str, int]:
        """How often each occurs."""
        return Counter(node.op_type for node in self.model.graph)

    def save(self, file: Path, rows: int | None = None) -> Path:
        """Writes it, with its weights beside it where they are too many for one file.

        Args:
            file: where to, ending in .onnx.
            rows: that all inputs have; None: any.
        """
        for value in (*self.model.graph.inputs, *self.model.graph.outputs):
            assert value.shape is not None
            value.shape = ir.Shape([rows if rows is not None else "rows", *value.shape[1:]])
        file.parent.mkdir(parents=True, exist_ok=True)
        is_large = self.num_bytes > _LARGE_BYTES
        ir.save(self.model, file, external_data=f"{file.name}.data" if is_large else None)
        return file

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        values = self.model.graph.initializers.values()
        return sum(value.const_value.nbytes for value in values if value.const_value is not None)


@torch.no_grad()
def export(network: Network) -> Graph:
    """The graph of a network.

    Raises:
        ExportError: something in it does not fold, or depends on the number of rows.
    """
    model = _exported(network)
    before = model.graph.num_nodes()
    _fold(model)
    _free_rows(model)
    _lower(model)
    _require_folded(model)
    return Graph(network, model, before, model.graph.num_nodes())


def _exported(network: Network) -> ir.Model:
    with _quiet():
        program: Any = torch.onnx.export(
            network.module,
            network.example(_ROWS),
            dynamo=True,
            opset_version=_EXPORTER_OPSET,
            input_names=[port.name for port in network.inputs],
            output_names=[port.name for port in network.outputs],
            optimize=False,
            verbose=False,
        )
    model: ir.Model = program.model
    model.graph.name = network.name
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter says that torchvision is not there, and warns of what it uses itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _fold(model: ir.Model) -> None:
    optimizer.optimize(model, num_iterations=4, output_size_limit=_INLINE_BYTES, onnx_shape_inference=True)
    for each in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.DeduplicateInitializersPass(),
    ):
        each(model)
    for node in model.graph:
        node.metadata_props.clear()  # where in the Python source it came from


def _free_rows(model: ir.Model) -> None:
    """Makes of the number of rows of the example any number."""
    for node in model.graph:
        if node.op_type == "Reshape":
            _free_reshape(model, node)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # of the example; whoever reads the graph infers them


def _free_reshape(model: ir.Model, node: ir.Node) -> None:
    target = node.inputs[1]
    constant = None if target is None or target.const_value is None else target.const_value.numpy()
    if constant is None:
        raise ExportError(f"{node.name}: a reshape is computed, its shape must be a constant")
    shape = [int(size) for size in constant]
    if shape[0] == _ROWS:
        shape[0] = 0  # as the input has it
    elif shape[0] != 0:
        raise ExportError(f"{node.name}: reshapes to {shape}, which has not the rows in front")
    name = "shape_" + "_".join(str(size) for size in shape).replace("-", "m")
    initializers = model.graph.initializers
    if name not in initializers:
        array = np.array(shape, np.int64)
        made = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.INT64))
        made.shape = ir.Shape(array.shape)
        initializers[name] = made
    node.replace_input_with(1, initializers[name])
    node.attributes.pop("allowzero", None)


def _lower(model: ir.Model) -> None:
    """From the exporter's opset to the one that is wanted: the two differ in a few attributes."""
    for node in model.graph:
        if node.op_type == "Split":
            node.attributes.pop("num_outputs", None)
        elif node.op_type == "Resize":
            for name in ("antialias", "axes", "keep_aspect_ratio_policy"):
                node.attributes.pop(name, None)
        elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
            raise ExportError(f"{node.name}: {node.op_type} reads its axes as an input, which opset {OPSET} has not")
    model.opset_imports[""] = OPSET
    for domain in [name for name in model.opset_imports if name]:
        del model.opset_imports[domain]
    model.ir_version = 8
    passes.RemoveUnusedNodesPass()(model)


def _require_folded(model: ir.Model) -> None:
    left = sorted({node.op_type for node in model.graph if node.op_type in SHAPE_OPERATORS or node.domain})
    if left:
        raise ExportError(f"{', '.join(left)} did not fold away")
