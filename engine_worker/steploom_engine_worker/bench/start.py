"""`python -m steploom_engine_worker.bench.start`: how soon an engine draws, and what memory of the host it takes.

Each engine starts in a process of its own, by the very settings and code of a worker, draws one picture, and ends.
Times are counted from the start of the process. They are medians: the first start on a machine reads libraries and
weights from a disk that later ones no longer touch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

STEPS = 8
REPEATS = 3
_PATIENCE_S = 1800.0  # for one start: graphs are recorded, kernels compiled

# What a process tells, and how it is shown.
_COLUMNS = {
    "import_s": "import, s",
    "ready_s": "ready, s",
    "first_image_s": "first picture, s",
    "resident_bytes": "resident, MB",
    "peak_bytes": "peak, MB",
    "device_bytes": "on the device, MB",
}


def draw_first(settings: Mapping[str, Any], steps: int, started: float) -> dict[str, Any]:
    """In the process that is measured: starts the engine of these settings and draws a picture.

    Args:
        settings: of the table `[worker]`, those that differ from their defaults.
        steps: of the picture.
        started: when the process was started, seconds since the epoch.

    Returns:
        Seconds since then until what the worker imports was imported, until it was ready, until the picture was there;
        bytes of the host's and the device's memory; which heavy libraries were loaded.
    """
    from steploom_engine_worker.config import WorkerConfig
    from steploom_engine_worker.launch import build_engine, import_engine

    config = WorkerConfig(**settings)
    import_module("steploom_engine_worker.server")  # as a worker, which is asked through it
    import_engine(config)
    imported = time.time()
    engine, _ = build_engine(config)
    ready = time.time()
    _draw(engine, steps)
    drawn = time.time()
    memory = engine.memory
    return {
        "import_s": imported - started,
        "ready_s": ready - started,
        "first_image_s": drawn - started,
        "resident_bytes": _status("VmRSS"),
        "peak_bytes": _status("VmHWM"),
        "device_bytes": memory.total - memory.free,
        "loaded": sorted({"torch", "triton", "transformers", "diffusers"} & {*sys.modules}),
    }


def _draw(engine: Any, steps: int) -> None:
    import numpy as np

    from steploom_engine_worker.engine import Job

    model = engine.model
    pixels = np.full((model.height, model.width, 3), 128, np.uint8)
    scales = model.default_guidance_scale, model.default_image_guidance_scale
    engine.admit(0, Job("make the hair blond", pixels, steps, *scales, seed=1))
    pending = [engine.encode([0]), *(engine.denoise([0], [step]) for step in range(steps)), engine.decode([0])]
    failures = [tick.wait().failures for tick in pending]
    if any(failures):
        raise RuntimeError(f"the first picture failed: {failures}")


def _status(name: str) -> int:
    """Bytes that the kernel counts for this process; 0 where it does not say."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def start(settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Runs `draw_first` in a process of its own.

    Raises:
        RuntimeError: it ended without a picture; with what it said last.
    """
    code = (
        "import json, sys; from steploom_engine_worker.bench.start import draw_first; "
        "print(json.dumps(draw_first(json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))"
    )
    # as the worker does: see its __main__
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000", **os.environ}
    command = [sys.executable, "-P", "-c", code, json.dumps(dict(settings)), str(steps), repr(time.time())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The medians, a line an engine, as Markdown."""
    lines = [f"| engine | {' | '.join(_COLUMNS.values())} | loaded |", "|---" * (len(_COLUMNS) + 2) + "|"]
    for name, found in runs.items():
        cells = [_cell(key, statistics.median(run[key] for run in found)) for key in _COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(found[0]['loaded']) or 'none of torch'} |")
    return "\n".join(lines)


def _cell(key: str, value: float) -> str:
    return f"{value / 1e6:.0f}" if key.endswith("_bytes") else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 1 where an engine did not start."""
    given = _parser().parse_args(arguments)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.engine or ("torch", "tensorrt")}
    for number in range(given.repeats):
        for name, found in runs.items():
            try:
                found.append(start(_settings(given, name), given.steps))
            except RuntimeError as error:
                print(f"error: {name}: {error}", file=sys.stderr)
                return 1
            shown = ", ".join(f"{title} {_cell(key, found[-1][key])}" for key, title in _COLUMNS.items())
            print(f"start {number + 1}, {name}: {shown}", file=sys.stderr, flush=True)
    print(table(runs))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(runs, indent=1) + "\n")
    return 0


def _settings(given: argparse.Namespace, engine: str) -> dict[str, Any]:
    chosen = {"engine": engine, "model": given.model, "device": given.device, "record_all": given.record_all}
    if engine == "tensorrt":
        return {**chosen, "engines": given.engines}
    return {**chosen, "dtype": given.dtype, **({"denoise_buckets": tuple(given.buckets)} if given.buckets else {})}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="start", description="Measures how soon engines draw their first picture.")
    parser.add_argument("--engine", action="append", help="torch or tensorrt; may be given again. Default: both")
    parser.add_argument("--model", default="", help="model directory; default: the embedded model")
    parser.add_argument("--engines", default="", help="folder that `steploom build-engine` filled")
    parser.add_argument("--device", default="cuda", help="torch device")
    parser.add_argument("--dtype", default="float16", help="of the torch engine")
    parser.add_argument("--buckets", type=int, nargs="+", help="rows of the torch engine's denoise ticks")
    parser.add_argument("--record-all", action="store_true", help="ready only when every bucket is recorded")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the picture")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="starts of each engine")
    parser.add_argument("--json", type=Path, help="file for every start")
    return parser


if __name__ == "__main__":
    sys.exit(main())
