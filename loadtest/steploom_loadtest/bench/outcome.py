"""What a benchmark hands back: a table for the terminal, figures for the file, and whether it holds its bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class CannotRun(Exception):
    """What a benchmark needs is not here; the message says what."""


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
    tables: Sequence[Table]
    bars: Sequence[Bar] = ()
    circumstances: Mapping[str, str] = field(default_factory=dict)  # beside those of every run, as the device


@dataclass(frozen=True)
class DeviceOptions:
    """What the benchmark `gpu` asks for beside the model."""

    device: str  # of torch
    dtype: str  # of weights and activations; empty: float16, on a CPU float32
    adapter: str  # of the free tier; empty: the model's first
    slots: int  # jobs that the worker holds
    rows: Sequence[int]  # buckets of denoise ticks; empty: the worker's default
    callers: int  # requests that are open while the service is saturated
    free_steps: int
    pro_steps: int
    free_deadline_s: float
    pro_deadline_s: float
    loads: Sequence[float]  # open loop, as shares of the saturation rate
    answer: str  # of `gpu.ANSWERS`: format of the pictures that come back


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    engine: str  # torch, fake
    model: str  # model directory; empty: the embedded one
    seconds: float  # length of each load
    load: float  # share of capacity
    seed: int
    mix: str  # of `traces.MIXES`
    on_device: DeviceOptions
    directory: Path  # for sockets and logs
    say: Callable[[str], None]  # progress
    fake_times: float = 1.0  # so many times as slow is a fake engine: on a busy machine its ticks must be long

    @property
    def is_fake(self) -> bool:
        """No model runs: the engine takes its time from a cost table."""
        return self.engine == "fake"


def markdown(outcome: Outcome, circumstances: Mapping[str, Any]) -> str:
    """The tables as Markdown, behind what they were measured with."""
    lines = [f"# {outcome.name}", "", *(f"- {name}: {value}" for name, value in circumstances.items())]
    for table in outcome.tables:
        lines += ["", f"## {table.title}", "", *_markdown_rows(table)]
    return "\n".join([*lines, *([""] if outcome.bars else []), *(f"- {bar}" for bar in outcome.bars)]) + "\n"


def _markdown_rows(table: Table) -> Iterator[str]:
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    yield f"| {' | '.join(str(column.header) for column in table.columns)} |"
    yield "|---" * len(columns) + "|"
    for row in zip(*columns, strict=True):
        yield f"| {' | '.join(row)} |"
    if table.caption:
        yield from ("", str(table.caption))


def show(outcome: Outcome, console: Console) -> None:
    """Prints tables and bars."""
    for table in outcome.tables:
        console.print(table)
    for bar in outcome.bars:
        console.print(str(bar), style="green" if bar.holds else "bold red", highlight=False)
    console.print()
