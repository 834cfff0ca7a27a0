"""Linear maps of a graph's transformers in e4m3: quantised and dequantised in the graph, for builders to join.

Inputs by the scales that `calibration` has seen, one for all that reads them; weights by one scale each, as builders
take no other for floats of 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from steploom_engine_worker.export.onnx_graph import scope_of
from steploom_kernels.fp8 import E4M3, LARGEST, MULTIPLE

OPSET = 19  # the lowest with floats of 8 bits

# Maps that read what another is calibrated for.
_SAME_INPUT = re.compile(r"(\.attn1)\.to_[kv]$")
_PREFIX, _GATED = "unet.", ".base"  # of a map's name in the exported network; what an adapter changes has the latter


def quantise(model: ir.Model, scales: Mapping[str, float]) -> int:
    """Puts maps into e4m3, in place; what adapters add to them stays as it is.

    Args:
        model: a folded graph in half precision.
        scales: of the inputs of linear maps, by their names in the UNet.

    Returns:
        How many maps there are.
    """
    products = [(scope_of(node).removeprefix(_PREFIX), node) for node in model.graph if node.op_type == "MatMul"]
    gated = {name.removesuffix(_GATED) for name, _ in products if name.endswith(_GATED)}
    inputs: dict[tuple[str, float], ir.Value] = {}
    count = 0
    for scope, node in products:
        name = scope.removesuffix(_GATED)
        scale = scales.get(_SAME_INPUT.sub(r"\1.to_q", name))
        source, weight = node.inputs
        if scale is None or source is None or weight is None or (name in gated and name == scope):
            continue
        if weight.const_value is None or any(size % MULTIPLE for size in weight.const_value.shape.numpy()):
            continue
        key = str(source.name), scale
        if key not in inputs:
            inputs[key] = _rounded(model, node, source, scale)
        node.replace_input_with(0, inputs[key])
        node.replace_input_with(1, _narrow_weight(model, node, weight))
        count += 1
    model.opset_imports[""] = OPSET
    passes.RemoveUnusedNodesPass()(model)
    return count


def _rounded(model: ir.Model, before: ir.Node, value: ir.Value, scale: float) -> ir.Value:
    """A value as it is after a visit to e4m3."""
    assert value.type is not None
    factor, zero = _constant(model, scale, value.type.dtype), _zero(model)
    narrow = _node(model, before, "QuantizeLinear", [value, factor, zero], value, ir.DataType.FLOAT8E4M3FN)
    return _node(model, before, "DequantizeLinear", [narrow, factor, zero], value, value.type.dtype)


def _narrow_weight(model: ir.Model, before: ir.Node, weight: ir.Value) -> ir.Value:
    """A weight that lies in e4m3 and is widened where it is read."""
    assert weight.const_value is not None
    assert weight.type is not None
    values = torch.from_numpy(weight.const_value.numpy().copy()).float()
    scale = float(values.abs().amax()) / LARGEST or 1.0
    kind = ir.DataType.FLOAT8E4M3FN
    codes = (values / scale).clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8).numpy()
    narrow = _initializer(model, f"{weight.name}_e4m3", codes.view(kind.numpy()), kind)
    factor = _constant(model, scale, weight.type.dtype)
    return _node(model, before, "DequantizeLinear", [narrow, factor, _zero(model)], weight, weight.type.dtype)


def _node(
    model: ir.Model, before: ir.Node, kind: str, inputs: list[ir.Value], like: ir.Value, dtype: ir.DataType
) -> ir.Value:
    name = f"{scope_of(before)}/{kind}_{like.name}"
    made = ir.Node("", kind, inputs, name=name)
    (result,) = made.outputs
    result.name, result.shape, result.type = f"{like.name}_{kind}", like.shape, ir.TensorType(dtype)
    model.graph.insert_before(before, made)
    return result


def _constant(model: ir.Model, number: float, dtype: ir.DataType) -> ir.Value:
    return _initializer(model, f"scale_{dtype.name}_{number.hex()}", np.array(number, dtype.numpy()), dtype)


def _zero(model: ir.Model) -> ir.Value:
    kind = ir.DataType.FLOAT8E4M3FN
    return _initializer(model, "zero_e4m3", np.zeros((), kind.numpy()), kind)


def _initializer(model: ir.Model, name: str, array: NDArray[Any], dtype: ir.DataType) -> ir.Value:
    """The constant of this name."""
    known = model.graph.initializers
    if name not in known:
        tensor = ir.Tensor(array, dtype=dtype, name=name)
        known[name] = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(list(array.shape))
        )
    return known[name]
