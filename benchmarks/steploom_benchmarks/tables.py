"""Comparisons as Markdown, and as JSON for whoever wants to reckon with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from steploom_benchmarks.loads import LOADS
from steploom_benchmarks.measuring import Comparison, Figures
from steploom_benchmarks.peers import PEERS

_COLUMNS = (
    "server",
    "setting",
    "requests/s",
    "p50, ms",
    "p99, ms",
    "server CPU s per 1,000",
    "client CPU s per 1,000",
    "mean batch",
    "memory, MB",
    "processes",
    "errors",
)


def markdown(comparisons: Sequence[Comparison], failures: Mapping[str, str], circumstances: Mapping[str, str]) -> str:
    """A table for each load, what each sweep found, and who could not be measured, with the reason."""
    lines = ["# Servers side by side", "", *(f"- {name}: {value}" for name, value in circumstances.items())]
    for load in dict.fromkeys(one.load for one in comparisons):
        of_load = [one for one in comparisons if one.load == load]
        lines += ["", f"## {load}: {LOADS[load].title}", ""]
        lines += table(_COLUMNS, [row(one.peer, one.best) for one in of_load])
        swept = [row(one.peer, figures) for one in of_load for figures in one.sweep]
        if swept:
            lines += ["", "Tried before, for a short time each:", "", *table(_COLUMNS, swept)]
    if failures:
        lines += ["", "## Not measured", "", *(f"- {name}: {reason}" for name, reason in failures.items())]
    return "\n".join(lines) + "\n"


def as_json(
    comparisons: Sequence[Comparison], failures: Mapping[str, str], circumstances: Mapping[str, str]
) -> dict[str, Any]:
    """The same; what is not a number is null."""
    return {
        "circumstances": dict(circumstances),
        "comparisons": [_plain(asdict(one)) for one in comparisons],
        "failures": dict(failures),
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; what would end a cell is escaped."""
    made = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in made]


def row(peer: str, figures: Figures) -> list[str]:
    """The cells of one measurement."""
    return [
        PEERS[peer].title,
        figures.setting if PEERS[peer].batches else "",
        _number(figures.requests_per_s, 0),
        _number(figures.p50_ms, 1),
        _number(figures.p99_ms, 1),
        _number(figures.server_cpu_s_per_1000, 2),
        _number(figures.client_cpu_s_per_1000, 2),
        _number(figures.mean_batch, 1),
        _number(figures.memory_mb, 0),
        str(figures.processes),
        str(figures.errors) if not figures.first_error else f"{figures.errors} ({figures.first_error[:60]})",
    ]


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
