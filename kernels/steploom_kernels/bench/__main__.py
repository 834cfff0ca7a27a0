"""`python -m steploom_kernels.bench [--op NAME]`: measures the kernels on this machine's GPU."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from steploom_kernels.bench.case import Case, Function
from steploom_kernels.bench.cases import all_cases, all_plans
from steploom_kernels.bench.harness import ordered, run
from steploom_kernels.bench.machine import CudaMachine
from steploom_kernels.bench.outcome import COMPILED
from steploom_kernels.bench.report import line, markdown, table, to_json

REPEATS, QUICK_REPEATS = 50, 10
AUTOTUNED = "compile max-autotune"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 where a kernel was wrong or failed, 2 without a CUDA device."""
    given = _parser().parse_args(arguments)
    cases = chosen(all_plans() if given.sweep else all_cases(), given.op, is_quick=given.quick and not given.sweep)
    if given.list:
        print("\n".join(f"{case.op} {case.shape}" for case in ordered(cases)))
        return 0
    if not torch.cuda.is_available():
        print("bench: no CUDA device: how fast the kernels are is measured on a GPU", file=sys.stderr)
        return 2
    return _measure(cases, given)


def chosen(cases: Sequence[Case], op: str | None, *, is_quick: bool) -> list[Case]:
    """Those of one operation, or its plans, or all; quick: only those of the lowest rank that each operation has."""
    named = [case for case in cases if op in (None, case.op, case.op.removesuffix("_plan"))]
    first = {case.op: min(other.rank for other in named if other.op == case.op) for case in named}
    return [case for case in named if not is_quick or case.rank == first[case.op]]


def _measure(cases: Sequence[Case], given: argparse.Namespace) -> int:
    console = Console(width=max(160, Console().width))
    with torch.no_grad():
        report = run(
            cases,
            CudaMachine(QUICK_REPEATS if given.quick else REPEATS),
            compilers(given),
            budget_s=given.seconds,
            clock=time.monotonic,
            say=lambda each, ceilings: console.print(line(each, ceilings), style="dim", highlight=False),
        )
    console.print(table(report))
    for path, text in ((given.json, json.dumps(to_json(report), indent=1) + "\n"), (given.markdown, markdown(report))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 0 if report.is_right else 1


def compilers(given: argparse.Namespace) -> Mapping[str, Callable[[Function], Function]]:
    """What makes a faster function of a plain one: not when quick, else torch.compile, tuned too when full."""
    modes = {} if given.quick or given.sweep else {COMPILED: "default"}
    modes |= {AUTOTUNED: "max-autotune-no-cudagraphs"} if given.full else {}
    return {name: partial(_compiled, mode) for name, mode in modes.items()}


def _compiled(mode: str, function: Function) -> Function:
    torch.compiler.reset()  # every shape is compiled for itself, and none is refused for having had too many
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def _parser() -> argparse.ArgumentParser:
    names = sorted({case.op for case in [*all_cases(), *all_plans()]})
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--op", metavar="NAME", choices=names, help=f"one of {', '.join(names)}; default: all")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further case after; default: no bound")
    parser.add_argument("--quick", action="store_true", help="one shape an operation, few repeats, no torch.compile")
    parser.add_argument("--full", action="store_true", help="also torch.compile with max-autotune: takes long")
    parser.add_argument("--sweep", action="store_true", help="instead: every launch plan, where there are several")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table")
    parser.add_argument("--list", action="store_true", help="name the cases in their order")
    return parser


if __name__ == "__main__":
    sys.exit(main())
