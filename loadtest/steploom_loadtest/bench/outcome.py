"""What a benchmark hands back: a table for the terminal, figures for the file, and whether it holds its bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType


@dataclass(frozen=True)
class Bar:
    """A bound that a figure must hold."""

    what: str
    value: float
    bound: float
    at_most: bool = True  # else at least

    @property
    def holds(self) -> bool:
        """The figure is on the right side."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "MISSED"
        return f"{verdict}: {self.what} {self.value:.3g}, bar {'<=' if self.at_most else '>='} {self.bound:.3g}"


@dataclass(frozen=True)
class Outcome:
    """The result of one benchmark."""

    name: str
    figures: Mapping[str, Any]  # for JSON
    tables: Sequence[RenderableType]
    bars: Sequence[Bar] = ()


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    engine: str  # torch, fake
    model: str  # model directory; empty: the embedded one
    seconds: float  # length of each load
    load: float  # share of capacity
    seed: int
    mix: str  # of `traces.MIXES`
    directory: Path  # for sockets and logs
    say: Callable[[str], None]  # progress

    @property
    def is_fake(self) -> bool:
        """No model runs: the engine takes its time from a cost table."""
        return self.engine == "fake"


def show(outcome: Outcome, console: Console) -> None:
    """Prints tables and bars."""
    for table in outcome.tables:
        console.print(table)
    for bar in outcome.bars:
        console.print(str(bar), style="green" if bar.holds else "bold red", highlight=False)
    console.print()
