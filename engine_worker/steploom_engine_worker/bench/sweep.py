"""Forms of one network side by side: for each number of rows the same inputs, results held against the first form's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from steploom_kernels.bench.case import Function, Inputs
from steploom_kernels.bench.outcome import Timing
from steploom_kernels.bench.roofline import Ceilings

# Half precision through some hundred layers; what is further off computes something else.
MAX_RELATIVE_ERROR = 1e-2

Forward = Callable[..., Tensor]  # of a subject's inputs


class Machine(Protocol):
    """What is measured on; see `steploom_kernels.bench.machine.CudaMachine`."""

    device: torch.device

    def describe(self) -> dict[str, object]:
        """GPU, versions and clocks."""

    def ceilings(self) -> Ceilings:
        """Measures copies and a matrix product."""

    def time(self, run: Function, sets: Sequence[Inputs]) -> Timing:
        """Of one call, as a CUDA graph."""


@dataclass(frozen=True)
class Form:
    """One way to run a network."""

    name: str
    build: Callable[[int], Forward]  # by the number of rows; what takes long in it is not timed
    rows: Sequence[int] | None = None  # None: all that are asked for
    max_error: float = MAX_RELATIVE_ERROR  # what is further off is wrong


@dataclass(frozen=True)
class Subject:
    """A network, or a part of one, and the ways to run it."""

    forms: Sequence[Form]  # the first is the reference
    inputs: Callable[[int], Inputs]  # the same for each form, by the number of rows
    flops_per_row: int  # multiplications and additions


@dataclass(frozen=True)
class Point:
    """A form at a number of rows."""

    form: str
    rows: int
    seconds: float | None = None  # of a pass
    spread: float = 0.0  # of the repeats, as a share of the median
    error: float | None = None  # relative, against the first form
    problem: str = ""


@dataclass(frozen=True)
class Sweep:
    """A whole run."""

    when: str
    machine: Mapping[str, object]
    matmul_flops: float  # a second, the best that was seen
    flops_per_row: int
    points: list[Point] = field(default_factory=list)

    def ms_per_row(self, form: str, rows: int) -> float | None:
        """Of a form; None where it was not measured."""
        for point in self.points:
            if (point.form, point.rows) == (form, rows) and point.seconds is not None:
                return point.seconds / rows * 1e3
        return None

    def share_of_peak(self, form: str, rows: int) -> float | None:
        """Of the machine's matrix products."""
        ms = self.ms_per_row(form, rows)
        return None if ms is None else self.flops_per_row / (ms / 1e3) / self.matmul_flops

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    def markdown(self) -> str:
        """Milliseconds a row and share of the peak, a line a number of rows."""
        forms = list(dict.fromkeys(point.form for point in self.points))
        lines = ["| rows | " + " | ".join(forms) + " |", "|---|" + "---|" * len(forms)]
        for rows in sorted({point.rows for point in self.points}):
            cells = [self._cell(form, rows) for form in forms]
            lines.append(f"| {rows} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def _cell(self, form: str, rows: int) -> str:
        ms, share = self.ms_per_row(form, rows), self.share_of_peak(form, rows)
        return "" if ms is None or share is None else f"{ms:.2f} ms, {share:.0%}"


def sweep(
    subject: Subject,
    rows: Sequence[int],
    machine: Machine,
    *,
    budget_s: float,
    clock: Callable[[], float],
    say: Callable[[Point], None],
) -> Sweep:
    """Measures form after form, at each number of rows, until the budget is spent.

    A form that fails is reported and does not end the run.
    """
    end = clock() + budget_s
    result = Sweep(
        datetime.now(UTC).isoformat(timespec="seconds"),
        machine.describe(),
        machine.ceilings().matmul_flops,
        subject.flops_per_row,
    )
    expected: dict[int, Tensor] = {}
    for form in subject.forms:
        for count in rows:
            if clock() > end or (form.rows is not None and count not in form.rows):
                continue
            point = _measure(form, subject.inputs(count), expected, machine)
            result.points.append(point)
            say(point)
    return result


@torch.no_grad()
def count_flops(run: Function, given: Inputs) -> int:
    """Multiplications and additions of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run(*given)
    return int(counter.get_total_flops())


@torch.no_grad()
def _measure(form: Form, given: Inputs, expected: dict[int, Tensor], machine: Machine) -> Point:
    rows = len(given[0])
    try:
        forward = form.build(rows)
        found = forward(*given).float()
        wanted = expected.setdefault(rows, found.clone())
        error = float((found - wanted).norm() / wanted.norm())
        if not error <= form.max_error:
            return Point(form.name, rows, error=error, problem=f"is off by {error:.2g}")
        timing = machine.time(forward, [given])
    except Exception as problem:  # a compiler may fail in any way; the other forms are still worth their time
        first_line = str(problem).partition("\n")[0]
        return Point(form.name, rows, problem=f"{type(problem).__name__}: {first_line}"[:300])
    return Point(form.name, rows, timing.median_s, timing.spread, error)
