"""`python -m steploom_loadtest.bench [NAME ...]`: measures, prints tables, writes out/bench/NAME.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from steploom_loadtest.bench import control_plane, overload, policies, single
from steploom_loadtest.bench.outcome import Options, Outcome, show
from steploom_loadtest.stack import StackError
from steploom_loadtest.traces import MIXES

_EMBEDDED = Path(__file__).parents[3] / "models" / "avatar-edit" / "model_index.json"

BENCHMARKS: dict[str, Callable[[Options], Outcome]] = {
    single.NAME: single.run,
    policies.NAME: policies.run,
    overload.NAME: overload.run,
    control_plane.NAME: control_plane.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 where all bars hold, 1 where one is missed, 3 where the services do not come up."""
    given = _parser().parse_args(arguments)
    console = Console(width=max(120, Console().width))
    held = True
    for name in given.benchmarks or BENCHMARKS:
        try:
            outcome = _run(name, given, console)
        except StackError as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            return 3
        show(outcome, console)
        path = _write(outcome, given.out)
        console.print(f"{path}\n", highlight=False)
        held = held and all(bar.holds for bar in outcome.bars)
    return 0 if held else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("benchmarks", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument(
        "--engine",
        choices=("torch", "fake"),
        help="fake: no model, a CPU's costs; default: torch, or fake in a checkout without the embedded model",
    )
    parser.add_argument("--model", default="", help="model directory; default: the embedded one")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each load; default: 60")
    parser.add_argument("--load", type=float, default=0.8, help="share of capacity for `policies`; default: 0.8")
    parser.add_argument("--seed", type=int, default=0, help="of the trace")
    parser.add_argument(
        "--mix",
        choices=tuple(MIXES),
        default="plain",
        help="who draws the 3 steps of the 9:1 mix: the model, three rows a step (default), or its adapter few-step",
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the JSON files")
    parser.add_argument("--list", action="version", version="\n".join(BENCHMARKS), help="name the benchmarks")
    return parser


def _run(name: str, given: argparse.Namespace, console: Console) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="steploom-bench-") as directory:
        options = Options(
            engine=given.engine or _engine(given.model),
            model=given.model,
            seconds=given.seconds,
            load=given.load,
            seed=given.seed,
            mix=given.mix,
            directory=Path(directory),
            say=lambda text: console.print(text, style="dim", highlight=False),
        )
        return BENCHMARKS[name](options)


def _engine(model: str) -> str:
    return "torch" if model or _EMBEDDED.exists() else "fake"


def _write(outcome: Outcome, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.name}.json"
    bars = [{"what": bar.what, "value": bar.value, "bound": bar.bound, "holds": bar.holds} for bar in outcome.bars]
    table: dict[str, Any] = {"benchmark": outcome.name, **_circumstances(), "figures": outcome.figures, "bars": bars}
    path.write_text(json.dumps(table, indent=2) + "\n")
    return path


def _circumstances() -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
