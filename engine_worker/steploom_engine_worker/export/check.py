"""An exported graph held against torch: the same inputs through ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from steploom_engine_worker.export.networks import Network
from steploom_engine_worker.export.onnx_graph import ExportError

# Relative errors that a graph may have, by the type that it computes in. Those of the embedded model are 1e-6 and 4e-4.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
FP8_TOLERANCE = 1e-1  # where transformers multiply floats of 8 bits; the embedded model has 1.1e-2, random weights more


def check(graph: Path, network: Network, reference: Network, rows: int = 2, tolerance: float = 0.0) -> float:
    """The relative error of a graph: the norm of the difference by the norm of what torch gives.

    Args:
        graph: an ONNX file for any number of rows.
        network: what it was exported from, in float32 or float16.
        reference: the same network in float32.
        rows: of the inputs.
        tolerance: 0: that of the network's type.

    Raises:
        ExportError: it is beyond the tolerance, or not a number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    inputs = network.example(rows)
    named = {port.name: value.numpy() for port, value in zip(network.inputs, inputs, strict=True)}
    found = torch.from_numpy(session.run(None, named)[0]).float()
    with torch.inference_mode():
        expected: Tensor = reference.module(*(_widened(value) for value in inputs))
    if found.shape != expected.shape:
        raise ExportError(f"{network.name}: the graph gives {list(found.shape)}, torch {list(expected.shape)}")
    error = float((found - expected).norm() / expected.norm())
    tolerance = tolerance or TOLERANCES[network.outputs[0].dtype]
    if not error <= tolerance:
        raise ExportError(
            f"{network.name}: the graph is off by {error:.1e} of what torch gives, may be {tolerance:.0e}"
        )
    return error


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
