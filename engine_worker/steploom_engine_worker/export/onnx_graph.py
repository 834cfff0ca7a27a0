"""A network as a folded ONNX graph: no shape arithmetic, operators that every builder reads, any number of rows.

torch's exporter is given a fixed number of rows, so that every shape is a constant and all that computes shapes folds
away. What is left of that number are the constants of reshapes: their first becomes "as the input has it", and from
then on the same graph serves every number of rows. Engines are built of it for fixed ones, or for a range.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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

OPSET = 18  # the lowest that has group norms and that torch's exporter writes
_IR_VERSION = 8  # of that opset
_ROWS = 5  # of the example: no other dimension's size is likely to be taken for it
_ANY = "rows"  # the name of their number where it is open
_LARGE_BYTES = 1 << 30  # of weights: beyond this they lie in a file of their own, as a protobuf ends at 2 GiB
_INLINE_BYTES = 1 << 20  # of what folding may make: constants of shapes, not weights times two

_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node is in

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
        return save(self.model, file, rows)

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return _num_bytes(self.model)


@torch.no_grad()
def export(network: Network) -> Graph:
    """The graph of a network.

    Raises:
        ExportError: something in it does not fold, or depends on the number of rows.
    """
    model = _exported(network)
    before = model.graph.num_nodes()
    _fold(model)
    _join_group_norms(model)
    _free_rows(model)
    _tidy(model)
    _require_folded(model)
    return Graph(network, model, before, model.graph.num_nodes())


def save(model: ir.Model, file: Path, rows: int | None = None) -> Path:
    """See `Graph.save`."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None:
            raise ExportError(f"{value.name}: has no shape")
        value.shape = ir.Shape([rows if rows is not None else _ANY, *value.shape[1:]])
    file.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, file, external_data=f"{file.name}.data" if _num_bytes(model) > _LARGE_BYTES else None)
    return file


def _num_bytes(model: ir.Model) -> int:
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _exported(network: Network) -> ir.Model:
    with _quiet():
        program: Any = torch.onnx.export(
            network.module,
            network.example(_ROWS),
            dynamo=True,
            opset_version=OPSET,
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
    passes.ShapeInferencePass()(model)
    for node in model.graph:
        node.name = f"{_scope(node)}/{node.op_type}_{node.name}"
        node.metadata_props.clear()  # where in the Python source it came from


def _scope(node: ir.Node) -> str:
    """The module that a node is of; of one that folding has made, that of what it reads."""
    noted = node.metadata_props.get(_SCOPES)
    if noted is not None:
        return next((name for name in reversed(ast.literal_eval(noted)[:-1]) if name), "")
    makers = [value.producer() for value in node.inputs if value is not None]
    return next((scope_of(maker) for maker in makers if maker is not None), "")


def scope_of(node: ir.Node) -> str:
    """The module that a node of a folded graph is of, as unet.mid_block.resnets.0.conv1; empty: the whole network."""
    return (node.name or "").partition("/")[0]


def _join_group_norms(model: ir.Model) -> None:
    """The exporter writes a group norm as an instance norm between two reshapes: makes one operator of them.

    Builders have a layer for it, and the oldest reads an instance norm only with a plugin that needs cuDNN. Scale and
    shift of each channel stay the operations after it that they are.
    """
    for norm in [node for node in model.graph if node.op_type == "InstanceNormalization"]:
        split, scale, shift = norm.inputs
        assert split is not None
        assert scale is not None
        assert scale.const_value is not None
        groups = len(scale.const_value.numpy())
        reshape, source = split.producer(), split
        is_reshaped = all(use.node.op_type == "Reshape" for use in norm.outputs[0].uses())
        if is_reshaped and reshape is not None and reshape.op_type == "Reshape" and reshape.inputs[0] is not None:
            source = reshape.inputs[0]
        if source.shape is None or not _has_groups(source.shape, groups):
            raise ExportError(f"{norm.name}: is no group norm")
        made = ir.Node(
            "",
            "GroupNormalization",
            [source, scale, shift],
            [ir.AttrInt64("num_groups", groups), norm.attributes["epsilon"]],
            name=f"{scope_of(norm)}/GroupNormalization_{norm.name}",
        )
        (result,) = made.outputs
        result.name, result.shape, result.type = f"{norm.outputs[0].name}_whole", source.shape, norm.outputs[0].type
        model.graph.insert_before(norm, made)
        norm.outputs[0].replace_all_uses_with(result)
        for use in list(result.uses()):
            if use.node.op_type == "Reshape" and use.node.outputs[0].shape == source.shape:
                use.node.outputs[0].replace_all_uses_with(result)
    passes.RemoveUnusedNodesPass()(model)


def _has_groups(shape: ir.Shape, groups: int) -> bool:
    """Whether the second axis is one of channels in so many groups."""
    return len(shape) >= 3 and isinstance(shape[1], int) and shape[1] % groups == 0


def _free_rows(model: ir.Model) -> None:
    """Makes of the number of rows of the example any number."""
    for node in model.graph:
        if node.op_type == "Reshape":
            _free_reshape(model, node)
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None and len(value.shape) and value.shape[0] == _ROWS:
            value.shape = ir.Shape([_ANY, *value.shape[1:]])


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
    node.replace_input_with(1, _integers(model, "shape", shape))
    node.attributes.pop("allowzero", None)


def _integers(model: ir.Model, what: str, numbers: Sequence[int]) -> ir.Value:
    """A constant of these numbers, one of each in a graph."""
    name = f"{what}_{'_'.join(map(str, numbers))}".replace("-", "m")
    initializers = model.graph.initializers
    if name not in initializers:
        array = np.array(numbers, np.int64)
        made = ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.INT64))
        made.shape = ir.Shape(array.shape)
        initializers[name] = made
    return initializers[name]


def _tidy(model: ir.Model) -> None:
    """Leaves out what only newer readers know and nobody needs."""
    for node in model.graph:
        if node.op_type == "Split" and node.attributes.pop("num_outputs", None) is not None:
            axis = node.attributes["axis"].as_int()
            sizes = [int(value.shape[axis]) for value in node.outputs if value.shape is not None]  # type: ignore[arg-type]
            node.resize_inputs(2)
            node.replace_input_with(1, _integers(model, "sizes", sizes))
        elif node.op_type.startswith("Reduce"):
            raise ExportError(f"{node.name}: reads its axes as an input, which the oldest builder does not")
    for domain in [name for name in model.opset_imports if name]:
        del model.opset_imports[domain]
    model.ir_version = _IR_VERSION


def _require_folded(model: ir.Model) -> None:
    left = sorted({node.op_type for node in model.graph if node.op_type in SHAPE_OPERATORS or node.domain})
    if left:
        raise ExportError(f"{', '.join(left)} did not fold away")
