"""A run as a table for the terminal, as JSON, and as Markdown for the benchmarks page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.table import Table

from steploom_kernels.bench.outcome import COMPILED, EAGER, OP, Measured, Report, Verdict
from steploom_kernels.bench.roofline import Ceilings

_STYLES = {Verdict.HOLDS: "", Verdict.BELOW: "yellow", Verdict.WRONG: "bold red", Verdict.FAILED: "bold red"}
_COLUMNS: dict[str, Callable[[Measured, Ceilings], str]] = {
    "time": lambda each, _: _microseconds(each),
    "spread": lambda each, _: _percent(each.times[OP].spread if OP in each.times else None),
    "speed": lambda each, ceilings: _speed(each, ceilings),
    "of roofline": lambda each, ceilings: _percent(each.share_of_roofline(ceilings)),
    "of a copy": lambda each, ceilings: _percent(each.share_of_copy(ceilings)),
    "eager": lambda each, _: _times(each.ratio(EAGER)),
    "torch.compile": lambda each, _: _times(each.ratio(COMPILED)),
    "others": lambda each, _: _others(each),
}


def table(report: Report) -> Table:
    """All cases, and how many had no time."""
    shown = Table(title=_title(report), caption=_caption(report), title_justify="left", caption_justify="left")
    for name in ("operation", "shape"):
        shown.add_column(name)
    for name in (*_COLUMNS, "verdict"):
        shown.add_column(name, justify="right")
    for each in report.measured:
        verdict = each.verdict(report.ceilings)
        shown.add_row(*_cells(each, report.ceilings), verdict.value, style=_STYLES[verdict])
    return shown


def line(each: Measured, ceilings: Ceilings) -> str:
    """One case as it comes."""
    verdict = each.verdict(ceilings)
    if each.problem:
        return f"{verdict.value}: {each.problem}"
    cells = zip(_COLUMNS, _cells(each, ceilings)[2:], strict=True)
    return f"{each.op} {each.shape}: {', '.join(f'{name} {cell}' for name, cell in cells)}: {verdict.value}"


def markdown(report: Report) -> str:
    """The same table for a page; what was wrong is named below it."""
    names = ["operation", "shape", *_COLUMNS]
    rows = [_cells(each, report.ceilings) for each in report.measured if not each.problem]
    lines = [_title(report), "", _row(names), _row(["---"] * len(names)), *map(_row, rows), "", _caption(report)]
    lines += [f"{each.verdict(report.ceilings).value}: {each.problem}" for each in report.measured if each.problem]
    return "\n".join(lines) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Everything, with the figures that follow from the times."""
    return {
        "benchmark": "kernels",
        "when": report.when,
        "machine": dict(report.machine),
        "ceilings": {**asdict(report.ceilings), "bandwidth": report.ceilings.bandwidth},
        "cases": [_case(each, report.ceilings) for each in report.measured],
        "left_out": list(report.left_out),
    }


def _case(each: Measured, ceilings: Ceilings) -> dict[str, Any]:
    return {
        **asdict(each),
        "verdict": each.verdict(ceilings).name.lower(),
        "bytes_per_s": each.bytes_per_s(),
        "flops_per_s": each.flops_per_s(),
        "share_of_roofline": each.share_of_roofline(ceilings),
        "share_of_copy": each.share_of_copy(ceilings),
        "times_as_long": {name: each.ratio(name) for name in each.times if name != OP},
    }


def _cells(each: Measured, ceilings: Ceilings) -> list[str]:
    return [each.op, each.shape, *(cell(each, ceilings) for cell in _COLUMNS.values())]


def _title(report: Report) -> str:
    ceilings = report.ceilings
    return (
        f"{report.machine['gpu']}, torch {report.machine['torch']}, Triton {report.machine['triton']}, {report.when}."
        f" Best copy {ceilings.bandwidth / 1e9:.0f} GB/s, matrix product {ceilings.matmul_flops / 1e12:.0f} TFLOP/s"
    )


def _caption(report: Report) -> str:
    left_out = f" No time was left for {len(report.left_out)} cases." if report.left_out else ""
    return f"Of the others: how many times as long they take.{left_out}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _microseconds(each: Measured) -> str:
    return f"{each.times[OP].median_s * 1e6:.2f} us" if OP in each.times else "-"


def _speed(each: Measured, ceilings: Ceilings) -> str:
    flops_per_s, bytes_per_s = each.flops_per_s(), each.bytes_per_s()
    if flops_per_s is not None and not each.is_memory_bound(ceilings):
        return f"{flops_per_s / 1e12:.0f} TFLOP/s"
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:.0f} GB/s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _others(each: Measured) -> str:
    names = [name for name in each.times if name not in (OP, EAGER, COMPILED)]
    return ", ".join(f"{name} {_times(each.ratio(name))}" for name in names) or "-"
