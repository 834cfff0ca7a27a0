"""What the benchmarks of networks share: their arguments, networks that hide nothing, and how results are told."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from steploom_engine_worker.bench import profile
from steploom_engine_worker.bench.sweep import Form, Forward, Point, Subject, sweep
from steploom_kernels.bench.machine import CudaMachine

SEED = 20261122
REPEATS = 20


def parser(prog: str, what: str, rows: Sequence[int]) -> argparse.ArgumentParser:
    """The arguments that every such benchmark takes; `rows` are measured where none are asked for."""
    made = argparse.ArgumentParser(prog=prog, description=f"Measures forms of {what} on this machine's GPU.")
    made.add_argument("--rows", type=int, nargs="+", default=rows, help="numbers of rows")
    made.add_argument("--form", action="append", help="only this form; may be given again")
    made.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="of the weights")
    made.add_argument("--seconds", type=float, default=480.0, help="after which no further form begins")
    made.add_argument("--profile", type=int, nargs="+", help="numbers of rows at which kernels are listed by kind")
    made.add_argument("--json", type=Path, help="file for the result")
    made.add_argument("--markdown", type=Path, help="file for the tables")
    return made


def run(given: argparse.Namespace, make: Callable[[torch.dtype], Mapping[str, Subject]]) -> int:
    """Measures subjects by name; returns 0, 1 where a form was wrong or failed, 2 without a CUDA device."""
    if not torch.cuda.is_available():
        print("bench: no CUDA device: how fast a network is is measured on a GPU", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    subjects = make(getattr(torch, given.dtype))
    machine, results, text = CudaMachine(REPEATS), {}, ""
    for name, subject in subjects.items():
        subject = Subject(_wanted(subject.forms, given.form), subject.inputs, subject.flops_per_row)
        budget_s = given.seconds / len(subjects)
        result = sweep(subject, given.rows, machine, budget_s=budget_s, clock=time.monotonic, say=partial(_say, name))
        results[name] = result
        text += f"{name}:\n\n{result.markdown()}\n" + _profiles(subject, given.profile or ())
    print(text)
    content = {name: result.to_json() for name, result in results.items()}
    for path, written in ((given.json, json.dumps(content, indent=1) + "\n"), (given.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(written)
    return 1 if any(point.problem for result in results.values() for point in result.points) else 0


def random_network(make: Callable[[], Any], device: str, dtype: torch.dtype) -> Any:
    """One that `make` gives; norms and biases are not left at ones and zeros."""
    torch.manual_seed(0)
    with torch.device(device):
        network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def plain(forward: Forward) -> Callable[[int], Forward]:
    """Builds the same for any number of rows."""
    return lambda _rows: forward


def compiled(forward: Forward, **options: str) -> Callable[[int], Forward]:
    """Builds torch's compiled form, for each number of rows its own."""

    def build(_rows: int) -> Forward:
        torch.compiler.reset()
        return torch.compile(forward, dynamic=False, **options)  # type: ignore[call-overload, no-any-return]

    return build


def _wanted(forms: Sequence[Form], names: Sequence[str] | None) -> list[Form]:
    return [form for form in forms if not names or form.name in names]


def _say(name: str, point: Point) -> None:
    end = point.problem or f"{point.seconds or 0:.5f} s, off by {point.error:.1e}"
    print(f"{name}, {point.form}, {point.rows} rows: {end}", flush=True)


@torch.no_grad()
def _profiles(subject: Subject, rows: Sequence[int]) -> str:
    text = ""
    for form in subject.forms:
        for count in rows:
            if form.rows is None or count in form.rows:
                run = partial(form.build(count), *subject.inputs(count))
                kinds, calls = profile.profile(run), profile.profile_calls(run)
                tables = f"{profile.markdown(kinds, count)}\n{profile.calls_markdown(calls, count)}"
                text += f"{form.name}, {count} rows:\n\n{tables}\n"
    return text
