"""Traces in files: a line a request, as CSV with a header or as JSON lines. What is wrong is told by line and field."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steploom_batcher.config import TierConfig
from steploom_loadtest.mix import MAX_SIDE, MAX_STEPS
from steploom_loadtest.traces import Arrival

FIELDS = ("at_s", "tier", "steps", "rows", "deadline_s", "cancel_after_s", "adapter", "side")
# Of a report's CSV, which is a trace too: what became of the requests.
ANSWERS = (
    *("sent_s", "ended_s", "latency_s", "in_time", "status", "cause"),
    *("queue_s", "ticks", "mean_rows_per_tick", "request_id"),
)
_MAX_S = 7 * 86_400.0
_MAX_ROWS = 64


class WrongTrace(ValueError):
    """A file that is no trace; the message names file, line and field."""


def read_trace(path: Path, tiers: Mapping[str, TierConfig], speed: float = 1.0) -> list[Arrival]:
    """The requests of a file, in its order.

    Args:
        path: `.csv` with a header, or `.jsonl` with an object a line. Fields as in `FIELDS`: `at_s` (seconds from the
            start, never less than the line before) and `tier` must be there; `steps` and `deadline_s` default to the
            tier's, the others to none.
        tiers: those that are known.
        speed: so many times as fast as the file says.

    Raises:
        WrongTrace: a line is wrong, or there is none.
        OSError: the file cannot be read.
    """
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise WrongTrace(f"{path}: must end in {' or '.join(readers)}")
    trace: list[Arrival] = []
    try:
        for number, table in read(path):
            arrival = _arrival(_Line(path, number, table), tiers, speed)
            if trace and arrival.at < trace[-1].at:
                raise WrongTrace(f"{path} line {number}: at_s: is less than that of the line before it")
            trace.append(arrival)
    except UnicodeDecodeError:
        raise WrongTrace(f"{path}: is no text in UTF-8") from None
    if not trace:
        raise WrongTrace(f"{path}: holds no request")
    return trace


class _Line:
    """A request's fields, taken out by name and kind."""

    def __init__(self, path: Path, number: int, table: Mapping[str, Any]) -> None:
        self._where = f"{path} line {number}"
        self._table = table
        unknown = [str(name) for name in table if name not in (*FIELDS, *ANSWERS)]
        if unknown:
            raise WrongTrace(f"{self._where}: {unknown[0]}: is unknown; there are {', '.join(FIELDS)}")

    def has(self, name: str) -> bool:
        """It says something of `name`."""
        return self._table.get(name) not in (None, "")

    def text(self, name: str, default: str | None = None) -> str:
        """A text.

        Raises:
            WrongTrace: it is none, or missing where there is no default.
        """
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, f"is {value!r}, must be text")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A number within its bounds; the same errors."""
        return self._number(name, float, "a number", low, high, default)

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within its bounds; the same errors."""
        return int(self._number(name, int, "a whole number", low, high, default))

    def wrong(self, name: str, problem: str) -> WrongTrace:
        """What is to be raised of a field."""
        return WrongTrace(f"{self._where}: {name}: {problem}")

    def _value(self, name: str, default: Any) -> Any:
        if self.has(name):
            return self._table[name]
        if default is None:
            raise self.wrong(name, "is missing")
        return default

    def _number(
        self, name: str, kind: Callable[[Any], float], what: str, low: float, high: float, default: float | None
    ) -> float:
        value = self._value(name, default)
        problem = f"is {value!r}, must be {what} from {low:g} to {high:g}"
        try:
            number = kind(value)
        except (ValueError, TypeError, OverflowError):
            raise self.wrong(name, problem) from None
        is_other = isinstance(value, bool) or (isinstance(value, float) and number != value)
        if is_other or math.isnan(number) or not low <= number <= high:
            raise self.wrong(name, problem)
        return number


def _arrival(line: _Line, tiers: Mapping[str, TierConfig], speed: float) -> Arrival:
    tier = line.text("tier")
    known = tiers.get(tier)
    for name in ("steps", "deadline_s"):
        if known is None and not line.has(name):
            names = ", ".join(tiers)
            raise line.wrong(name, f"is missing, and tier {tier!r} is not in the configuration; there are {names}")
    has_cancel = line.has("cancel_after_s")
    return Arrival(
        at=line.number("at_s", 0.0, _MAX_S) / speed,
        tier=tier,
        steps=line.whole("steps", 1, MAX_STEPS, known.steps if known else None),
        rows=line.whole("rows", 1, _MAX_ROWS, 3),
        deadline_s=line.number("deadline_s", 0.001, 86_400.0, known.deadline_s if known else None),
        cancel_after_s=line.number("cancel_after_s", 0.0, 86_400.0) if has_cancel else None,
        adapter=line.text("adapter", ""),
        side=line.whole("side", 1, MAX_SIDE, 128),
    )


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise WrongTrace(f"{path} line {reader.line_num}: has not as many fields as the header")
                yield reader.line_num, row
        except csv.Error as error:
            raise WrongTrace(f"{path} line {reader.line_num}: {error}") from None


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                table = json.loads(text)
            except ValueError as error:
                raise WrongTrace(f"{path} line {number}: is no JSON: {error}") from None
            if not isinstance(table, dict):
                raise WrongTrace(f"{path} line {number}: must be an object")
            yield number, table
