"""`python -m steploom_engine_worker.tensorrt.build_graphs FILE…`: times builds of ONNX files, each within a limit.

For machines with a GPU and little else: Python 3.10 or later and a TensorRT, neither torch nor onnx. Each build is a
process of its own, which is ended when its time is up; the last that TensorRT said then tells what it was at. See
`steploom_engine_worker.export`, which writes whole networks and their blocks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from steploom_engine_worker.tensorrt.builder import BuildError, BuildSettings, Built, build
from steploom_engine_worker.tensorrt.flavour import NAMES, Flavour, NoTensorRT, find_flavour
from steploom_engine_worker.tensorrt.plan_store import Plan, PlanError, PlanStore, add_file, key_of, open_store

DESCRIPTION = "graphs.json"  # beside graphs of whole networks: which they are, and of which model


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 where a build failed or did not end, 2 where none can be tried."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_args(words)
    if given.child:
        return _build_one(given)
    try:
        print(find_flavour(given.flavour or NAMES), flush=True)
    except NoTensorRT as error:
        print(f"build_graphs: {error}", file=sys.stderr)
        return 2
    results = []
    for file in given.files:
        options = [word for word in words if word not in map(str, given.files)]
        results.append(_run(file, options, given))
        print(_line(results[-1]), flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all("build_s" in result for result in results) else 1


def _run(file: Path, options: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """The result of one file, built in a process of its own."""
    command = [sys.executable, "-m", "steploom_engine_worker.tensorrt.build_graphs", *options, "--child", str(file)]
    given.logs.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=given.timeout, check=False)
    except subprocess.TimeoutExpired:
        last = _last_line(_log_of(given.logs, file))
        return {"file": file.name, "problem": f"has not ended in {given.timeout:.0f} s; last: {last}"}
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"file": file.name, "problem": f"ended with {done.returncode}: {said}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**result, "process_s": round(time.monotonic() - start, 1)}


def _build_one(given: argparse.Namespace) -> int:
    (file,) = given.files
    settings = BuildSettings(given.level, given.workspace_mb, given.heuristic, given.without_libraries)
    begin = time.monotonic()
    with _log_of(given.logs, file).open("w", buffering=1) as log:
        try:
            flavour = find_flavour(given.flavour or NAMES)
            built = build(
                flavour,
                file,
                given.buckets,
                given.capability,
                settings,
                given.timing_cache,
                hear=lambda text: print(f"{time.monotonic() - begin:8.1f} {text}", file=log),
            )
        except (BuildError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    result = {
        "file": file.name,
        "num_layers": built.num_layers,
        "load_s": round(built.load_s, 2),
        "build_s": round(built.build_s, 2),
        "num_bytes": len(built.plan),
        "plan": None if given.out is None else _keep(given, file, built, settings, flavour),
    }
    print(json.dumps(result))
    return 0


def _keep(given: argparse.Namespace, file: Path, built: Built, settings: BuildSettings, flavour: Flavour) -> str:
    """Puts an engine into the folder, and into its manifest where it is one of a whole network; the file's name."""
    name = add_file(given.out, built.plan)
    description = file.parent / DESCRIPTION
    about = json.loads(description.read_text()) if description.exists() else {}
    graph = about.get("graphs", {}).get(file.name)
    if graph is None:
        return name
    store = PlanStore(given.out, about["model_digest"], about["precision"], tuple(about["adapters"]))
    with suppress(PlanError):
        old = open_store(given.out)
        store = replace(store, plans=old.plans if replace(old, plans=()) == store else ())
    before, after = graph["num_nodes"]
    plan = Plan(
        network=graph["network"],
        buckets=given.buckets,
        file=name,
        num_bytes=len(built.plan),
        tensors=built.tensors,
        flavour=flavour.name,
        version=flavour.version,
        capability=given.capability,
        key=key_of(graph=file.name, model=about["model_digest"], settings=settings.as_dict()),
        settings=settings.as_dict(),
        num_nodes=(before, after),
        num_layers=built.num_layers,
        build_s=round(built.build_s, 3),
    )
    store.with_plan(plan).write()
    return name


def _log_of(folder: Path, file: Path) -> Path:
    return folder / f"{file.stem}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1].strip()[:200] if lines else "nothing"


def _line(result: dict[str, Any]) -> str:
    if "problem" in result:
        return f"{result['file']}: {result['problem']}"
    size = f"{result['num_layers']} layers, {result['num_bytes'] / 1e6:.1f} MB"
    return f"{result['file']}: {size}, read in {result['load_s']} s, built in {result['build_s']} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build_graphs", description="Times builds of ONNX files, each within a limit."
    )
    parser.add_argument("files", type=Path, nargs="+", help="ONNX files")
    parser.add_argument(
        "--buckets", type=_numbers, required=True, help="rows: of the file, or where it takes any 1,3,6"
    )
    parser.add_argument(
        "--capability", type=_capability, required=True, help="compute capability of the GPU, as in 9.0"
    )
    parser.add_argument("--flavour", action="append", choices=NAMES, help="which TensorRT; default: the first found")
    parser.add_argument("--level", type=int, default=3, help="optimization level, 0 to 5")
    parser.add_argument("--workspace-mb", type=int, default=0, help="device memory of a kernel; 0: all")
    parser.add_argument("--heuristic", action="store_true", help="kernels chosen by rule, where TensorRT can")
    parser.add_argument("--without-libraries", action="store_true", help="no kernels of cuBLAS and cuDNN")
    parser.add_argument("--timing-cache", type=Path, help="file that is read where it exists, and kept")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds of each build")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder for what TensorRT says")
    parser.add_argument("--out", type=Path, help="folder of engines to keep them in, with a manifest")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


if __name__ == "__main__":
    sys.exit(main())
