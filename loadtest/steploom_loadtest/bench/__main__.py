"""`python -m steploom_loadtest.bench [NAME ...]`: measures, prints tables, writes out/bench/NAME.json and NAME.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from steploom_loadtest.bench import capacity, control_plane, foresight, gpu, overload, plain, policies, single
from steploom_loadtest.bench.outcome import CannotRun, DeviceOptions, Options, Outcome, markdown, show
from steploom_loadtest.child import StackError
from steploom_loadtest.traces import MIXES

_EMBEDDED = Path(__file__).parents[3] / "models" / "avatar-edit" / "model_index.json"

BENCHMARKS: dict[str, Callable[[Options], Outcome]] = {
    single.NAME: single.run,
    policies.NAME: policies.run,
    overload.NAME: overload.run,
    control_plane.NAME: control_plane.run,
    foresight.NAME: foresight.run,
    capacity.NAME: capacity.run,
    gpu.NAME: gpu.run,
    plain.NAME: plain.run,
}
# a device, a quiet machine, or minutes are needed
_BY_NAME_ONLY = {gpu.NAME, foresight.NAME, capacity.NAME, plain.NAME}
_SECONDS = {gpu.NAME: 10.0}  # where none are asked for: ten loads, of a device whose time is dear
_DEFAULT_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 where all bars hold, 1 where one is missed, 2 where a benchmark cannot run here, 3 where
    the services do not come up."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "steploom_loadtest.bench", *arguments])
    console = Console(width=max(120, Console().width))
    held = True
    for name in given.benchmarks or [name for name in BENCHMARKS if name not in _BY_NAME_ONLY]:
        try:
            outcome = _run(name, given, console)
        except (CannotRun, StackError) as error:
            print(f"bench: {name}: {error}", file=sys.stderr)
            return 2 if isinstance(error, CannotRun) else 3
        show(outcome, console)
        for path in _write(outcome, given.out, command):
            console.print(str(path), highlight=False)
        console.print()
        held = held and all(bar.holds for bar in outcome.bars)
    return 0 if held else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)}; default: all but {', '.join(sorted(_BY_NAME_ONLY))}",
    )
    parser.add_argument(
        "--engine",
        choices=("torch", "fake"),
        help="fake: no model, a CPU's costs; default: torch, or fake in a checkout without the embedded model",
    )
    parser.add_argument("--fake-times", type=float, default=1.0, help="so many times as slow is the fake; default: 1")
    parser.add_argument("--model", default="", help="model directory; default: the embedded one")
    parser.add_argument("--seconds", type=float, help="length of each load; default: 60, for `gpu` 10")
    parser.add_argument("--load", type=float, default=0.8, help="share of capacity for `policies`; default: 0.8")
    parser.add_argument("--seed", type=int, default=0, help="of the trace")
    parser.add_argument(
        "--mix",
        choices=tuple(MIXES),
        default="student",
        help="who draws the 3 steps of the 9:1 mix: adapter few-step, one row a step (default), or the model, three",
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the JSON and Markdown files")
    parser.add_argument("--list", action="version", version="\n".join(BENCHMARKS), help="name the benchmarks")
    _add_device_options(parser.add_argument_group("gpu"))
    return parser


def _add_device_options(group: argparse._ArgumentGroup) -> None:
    """Defaults for an H100, where a row of Stable Diffusion 1.5 takes about 2 ms."""
    group.add_argument("--device", default="cuda", help="torch device; default: cuda")
    group.add_argument("--dtype", default="", help="of the model; default: float16, on a CPU float32")
    group.add_argument("--adapter", default="", help="that draws the free tier's pictures; default: the model's first")
    group.add_argument("--slots", type=int, default=48, help="jobs that the worker holds; default: 48")
    group.add_argument("--rows", type=_numbers(int), default=(), help="buckets of denoise ticks, as 3,6,12")
    group.add_argument("--callers", type=int, default=48, help="open requests under saturation; default: 48")
    group.add_argument("--free-steps", type=int, default=3, help="default: 3")
    group.add_argument("--pro-steps", type=int, default=35, help="default: 35")
    group.add_argument("--free-deadline", type=float, default=2.0, help="seconds; default: 2")
    group.add_argument("--pro-deadline", type=float, default=10.0, help="seconds; default: 10")
    group.add_argument(
        "--loads", type=_numbers(float), default=(0.5, 0.8, 1.0), help="shares of saturation; default: 0.5,0.8,1.0"
    )
    group.add_argument("--answer", choices=tuple(gpu.ANSWERS), default="jpeg", help="format of answers; default: jpeg")


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Numbers between commas."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(kind(item) for item in text.split(","))

    return read


def _run(name: str, given: argparse.Namespace, console: Console) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="steploom-bench-") as directory:
        options = Options(
            engine=given.engine or _engine(given.model),
            model=given.model,
            seconds=given.seconds or _SECONDS.get(name, _DEFAULT_SECONDS),
            load=given.load,
            seed=given.seed,
            mix=given.mix,
            on_device=_device_options(given),
            directory=Path(directory),
            say=lambda text: console.print(text, style="dim", highlight=False),
            fake_times=given.fake_times,
        )
        return BENCHMARKS[name](options)


def _device_options(given: argparse.Namespace) -> DeviceOptions:
    return DeviceOptions(
        device=given.device,
        dtype=given.dtype,
        adapter=given.adapter,
        slots=given.slots,
        rows=given.rows,
        callers=given.callers,
        free_steps=given.free_steps,
        pro_steps=given.pro_steps,
        free_deadline_s=given.free_deadline,
        pro_deadline_s=given.pro_deadline,
        loads=given.loads,
        answer=given.answer,
    )


def _engine(model: str) -> str:
    return "torch" if model or _EMBEDDED.exists() else "fake"


def _write(outcome: Outcome, folder: Path, command: str) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    circumstances = {**_circumstances(command), **outcome.circumstances}
    bars = [{"what": bar.what, "value": bar.value, "bound": bar.bound, "holds": bar.holds} for bar in outcome.bars]
    table = {"benchmark": outcome.name, **circumstances, "figures": outcome.figures, "bars": bars}
    as_json, as_markdown = (folder / f"{outcome.name}.{kind}" for kind in ("json", "md"))
    as_json.write_text(json.dumps(table, indent=2) + "\n")
    as_markdown.write_text(markdown(outcome, circumstances))
    return as_json, as_markdown


def _circumstances(command: str) -> dict[str, Any]:
    return {
        "command": command,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
