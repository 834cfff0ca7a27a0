"""A graph cut into the blocks of its network, each a graph of its own: to learn which of them a builder is slow at.

A block is a resnet, a transformer or a change of size. What lies between them (the first and the last convolution, the
embedding of the timestep) is in none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

from steploom_engine_worker.export.onnx_graph import scope_of

_BLOCK = re.compile(
    r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
)


def blocks(model: ir.Model) -> dict[str, ir.Model]:
    """The blocks of a folded graph in their order, by their names in the network; the graph stays as it is."""
    members: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        found = _BLOCK.search(scope_of(node))
        if found:
            members.setdefault(found[0], []).append(node)
    return {name: _cut(model, name, nodes) for name, nodes in members.items()}


def _cut(model: ir.Model, name: str, nodes: list[ir.Node]) -> ir.Model:
    inside = {id(node) for node in nodes}
    copies: dict[str, ir.Value] = {}
    inputs: list[ir.Value] = []
    weights: list[ir.Value] = []
    made: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and str(value.name) not in copies:
                copies[str(value.name)] = copy = _copy(value)
                (inputs if value.const_value is None else weights).append(copy)
        taken = [None if value is None else copies[str(value.name)] for value in node.inputs]
        outputs = [_copy(value) for value in node.outputs]
        copies |= {str(value.name): value for value in outputs}
        made.append(ir.Node("", node.op_type, taken, list(node.attributes.values()), outputs=outputs, name=node.name))
    given = [copies[str(value.name)] for node in nodes for value in node.outputs if _is_read_outside(value, inside)]
    graph = ir.Graph(
        inputs, given, nodes=made, initializers=weights, name=name, opset_imports=dict(model.opset_imports)
    )
    return ir.Model(graph, ir_version=model.ir_version)


def _copy(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)


def _is_read_outside(value: ir.Value, inside: Iterable[int]) -> bool:
    return value.is_graph_output() or any(id(use.node) not in inside for use in value.uses())
