"""`python -m steploom_engine_worker.export.references MODEL OUT`: what torch makes of inputs, for a measurement."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.export.networks import NETWORKS, network
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.tensorrt.measure import key


@torch.inference_mode()
def references(model: Model, rows: Mapping[str, Sequence[int]], device: torch.device) -> dict[str, NDArray[Any]]:
    """Inputs and outputs of networks, float32 or int32, by the names that `tensorrt.measure.key` gives.

    Args:
        model: whose networks they are, in the type that they compute in.
        rows: of each network.
        device: where to compute.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, numbers in rows.items():
        made = network(model, name)
        made.module.to(device)
        for count in numbers:
            inputs = made.example(count)
            outputs = made.module(*(value.to(device) for value in inputs))
            ports = zip((*made.inputs, *made.outputs), (*inputs, outputs), strict=True)
            found |= {key(name, count, port.name): _plain(value) for port, value in ports}
        made.module.to("cpu")
    return found


def _plain(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = (value.float() if value.is_floating_point() else value).cpu().numpy()
    return array


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 2 where the model cannot be read."""
    given = _parser().parse_args(arguments)
    device = torch.device(given.device)
    try:
        model = load_model(given.model, getattr(torch, given.dtype))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wanted = {name: given.rows if name == "unet" else given.jobs for name in given.only or NETWORKS}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = references(model, wanted, device)
    np.savez(given.out, **found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="references", description="Writes what torch makes of networks' inputs.")
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("out", type=Path, help="npz file")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 3, 12, 24], help="of the UNet")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 4], help="of the other networks")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="this network alone; may be given again")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument(
        "--dtype", choices=("float16", "float32", "bfloat16"), default="float16", help="of the networks"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
