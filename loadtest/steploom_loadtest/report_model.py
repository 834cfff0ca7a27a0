"""The report of a load run, live or simulated, as data: JSON in and out; tables, CSV and HTML are made from it."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from steploom_loadtest.report import Record

FORMAT = "steploom load report"
VERSION = 1

LIVE = "live"
SIMULATED = "simulated"

Data = TypeVar("Data")


class WrongReport(ValueError):
    """A file that is no report; the message names the field."""


@dataclass(frozen=True)
class Origin:
    """Where a report comes from."""

    kind: str  # LIVE, SIMULATED
    title: str  # a line for people
    when: str = ""  # ISO 8601, UTC; empty: not told
    settings: Mapping[str, str] = field(default_factory=dict)  # what was asked for, as shown: "rate", "mix", "seed"


@dataclass(frozen=True, slots=True)
class Share:
    """A request's part in a tick."""

    request_id: str  # of Record; that of a request that is not ours is in no Record
    rows: int  # encode, decode: 1
    step: int = 0  # denoise: from 1; else 0


@dataclass(frozen=True, slots=True)
class RanTick:
    """A tick on a worker."""

    worker: str
    stage: str  # encode, denoise, decode
    start_s: float  # seconds from the start of the run
    seconds: float  # of device time
    rows: int  # of requests
    bucket: int  # rows computed, padding included
    shares: tuple[Share, ...]
    is_ok: bool = True  # False: it failed, or was skipped

    @property
    def end_s(self) -> float:
        """Seconds from the start of the run."""
        return self.start_s + self.seconds


@dataclass(frozen=True)
class StageWork:
    """What all workers did of one stage while the run lasted, for whatever caller."""

    ticks: int
    rows: int  # of requests; encode, decode: requests
    padding: int  # rows computed for nobody
    busy_s: float  # device time


@dataclass(frozen=True)
class Work:
    """What the services did while the run lasted, for whatever caller: differences of their counters."""

    workers: int  # that were up
    stages: Mapping[str, StageWork]  # by encode, denoise, decode
    refused: Mapping[str, int]  # by the batcher or at the gate, by cause


@dataclass(frozen=True)
class TierPoint:
    """One tier at one rate of a sweep."""

    tier: str
    sent: int
    in_time: float  # share of those that were not cancelled: with a picture within the deadline
    p50_s: float  # of those that got a picture; 0: none did
    p99_s: float
    deadline_s: float  # the longest of the tier
    growth: float  # by which more requests were open at the end, as a share of those of the second half
    holds: bool  # 99 of 100 in time, and the service keeps up


@dataclass(frozen=True)
class Point:
    """One rate of a sweep."""

    rate: float  # requests a second, offered
    seconds: float  # of the trace
    achieved: float  # pictures a second
    goodput: float  # pictures within their deadline, a second
    mean_latency_s: float  # of requests with a picture; 0: none has
    max_lag_s: float  # of the generator
    tiers: tuple[TierPoint, ...]


@dataclass(frozen=True)
class Limit:
    """How much load a tier bears."""

    tier: str
    holds_at: float  # the highest rate, of all tiers together, at which it holds; 0: at none that was tried
    fails_at: float | None  # the lowest above at which it does not; None: it held wherever it was tried


@dataclass(frozen=True)
class Sweep:
    """Rates that were tried, and what they show."""

    points: tuple[Point, ...]  # by rate
    limits: tuple[Limit, ...]  # a tier each
    precision: float  # fails_at is at most this share above holds_at
    knee: float | None = None  # rate at which pictures a second over their mean latency are most; None: not known
    knee_range: tuple[float, ...] = ()  # the rates next to it that were tried: the knee is between them


@dataclass(frozen=True)
class Report:
    """A run. Times are seconds from its start.

    Everything else that is told of a run is derived: see `report_figures`.
    """

    origin: Origin
    offered_rate: float  # requests a second that the trace asks for
    duration_s: float  # of the trace; answers come until later
    requests: Sequence[Record]  # in the order of the trace; of a sweep: at the highest rate that all tiers bear
    ticks: Sequence[RanTick] = ()  # by start; empty: not known
    lost_ticks: int = 0  # that ran and were not heard of
    work: Work | None = None  # None: not known
    price: float | None = None  # of a device for an hour, in whatever currency; None: not told
    devices: int = 0  # that are paid for; 0: not known
    sweep: Sweep | None = None
    is_interrupted: bool = False  # it was ended before its end
    notes: tuple[str, ...] = ()  # what a reader should know, a line each

    def to_json(self, summary: Mapping[str, Any] | None = None) -> str:
        """Everything as JSON; `summary` is for scripts and is not read again."""
        table = {"format": FORMAT, "version": VERSION, "summary": summary or {}, **asdict(self)}
        return json.dumps(table, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """What `to_json` has written.

        Raises:
            WrongReport: it is something else, or of another version.
        """
        try:
            table = json.loads(text)
        except ValueError as error:
            raise WrongReport(f"is no JSON: {error}") from None
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise WrongReport(f"format: is none of ours, must be {FORMAT!r}")
        if table.get("version") != VERSION:
            raise WrongReport(f"version: is {table.get('version')!r}, must be {VERSION}")
        rest = {key: value for key, value in table.items() if key not in ("format", "version", "summary")}
        return _read_data(cls, rest, "")


def _read(kind: Any, value: Any, path: str) -> Any:
    """`value`, of JSON, as `kind`.

    Raises:
        WrongReport: it is something else; names the field.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # the other is None
        return None if value is None else _read(next(item for item in arguments if item is not type(None)), value, path)
    if is_dataclass(kind):
        return _read_data(typing.cast(type, kind), value, path)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), path, "a table")
        return {key: _read(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if origin is not None:  # a sequence
        _expect(isinstance(value, list), path, "a list")
        return tuple(_read(arguments[0], item, f"{path}[{place}]") for place, item in enumerate(value))
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), path, "a number")
        return float(value)
    _expect(type(value) is kind, path, {int: "a whole number", bool: "true or false"}.get(kind, "text"))
    return value


def _read_data(kind: type[Data], value: Any, path: str) -> Data:
    _expect(isinstance(value, dict), path or "the report", "a table")
    hints = typing.get_type_hints(kind)
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    unknown = [name for name in value if name not in names]
    if unknown:
        raise WrongReport(f"{prefix}{unknown[0]}: is unknown")
    given = {name: _read(hints[name], value[name], prefix + name) for name in names if name in value}
    try:
        return kind(**given)
    except TypeError:
        missing = next(item.name for item in fields(kind) if item.name not in given)  # type: ignore[arg-type]
        raise WrongReport(f"{prefix}{missing}: is missing") from None


def _expect(holds: bool, path: str, what: str) -> None:
    if not holds:
        raise WrongReport(f"{path}: must be {what}")
