"""`python -m steploom_engine_worker.export MODEL --out DIR`: networks as ONNX files, for builders on other machines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.export.blocks import blocks
from steploom_engine_worker.export.networks import NETWORKS, network
from steploom_engine_worker.export.onnx_graph import ExportError, export, save
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.tensorrt.build_graphs import DESCRIPTION
from steploom_engine_worker.tensorrt.plan_store import write_whole

_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 2 where something cannot be exported."""
    given = _parser().parse_args(arguments)
    graphs: dict[str, dict[str, Any]] = {}
    try:
        model = load_model(given.model, getattr(torch, given.dtype))
        for name in given.only or NETWORKS:
            start = time.perf_counter()
            graph = export(network(model, name))
            nodes = f"{graph.nodes_before} nodes folded to {graph.nodes_after}"
            print(f"{name}: {nodes}, {graph.num_bytes / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s", flush=True)
            parts = {f"{name}.{part}": cut for part, cut in blocks(graph.model).items()} if given.blocks else {}
            for rows in given.rows or [None]:
                suffix = "" if rows is None else f".{rows}"
                for part, cut in parts.items():
                    save(cut, given.out / f"{part}{suffix}.onnx", rows)
                if not given.blocks:
                    file = graph.save(given.out / f"{name}{suffix}.onnx", rows)
                    graphs[file.name] = {"network": name, "num_nodes": [graph.nodes_before, graph.nodes_after]}
        if graphs:
            _describe(given.out, model, given.dtype, graphs)
    except (ModelError, ExportError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


def _describe(folder: Path, model: Model, dtype: str, graphs: Mapping[str, Mapping[str, Any]]) -> None:
    """What a builder that has the files alone must know to keep a manifest; files of earlier runs stay in it."""
    file = folder / DESCRIPTION
    about = {
        "model_digest": model.digest,
        "precision": _PRECISIONS[dtype],
        "adapters": [item.name for item in model.adapters],
    }
    old = json.loads(file.read_text()) if file.exists() else {}
    known = old.get("graphs", {}) if {**old, **about} == old else {}
    write_whole(file, (json.dumps({**about, "graphs": {**known, **graphs}}, indent=1) + "\n").encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m steploom_engine_worker.export", description="Writes networks of a model as folded ONNX graphs."
    )
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--only", action="append", choices=NETWORKS, help="this network alone; may be given again")
    parser.add_argument("--rows", type=int, nargs="+", help="files for these numbers of rows; without it for any")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="of the weights")
    parser.add_argument("--blocks", action="store_true", help="each resnet and transformer as a file of its own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
