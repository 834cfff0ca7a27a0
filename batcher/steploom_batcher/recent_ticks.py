"""The latest ticks that are back, in constant space: for pictures of what a device did when."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from steploom_batcher.messages import TickReport
from steploom_batcher.types import JobSpec, Stage, Status, Tick

KEPT = 4096  # ticks: at 500 a second, those of the last 8 s


@dataclass(frozen=True, slots=True)
class Part:
    """A job's part in a tick."""

    job_id: str
    rows: int  # encode, decode: 1
    step: int  # denoise: from 1; else 0


@dataclass(frozen=True, slots=True)
class RanTick:
    """A tick that is back. What came with its report, as pictures, is not kept."""

    worker: str  # address
    tick: Tick
    status: Status
    start_unix_s: float  # seconds since the epoch, on the worker's clock
    seconds: float  # of device time
    parts: tuple[Part, ...]


class RecentTicks:
    """Args:
    kept: ticks at most.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._ticks: deque[RanTick] = deque(maxlen=kept)
        self._count = 0  # of all ticks so far
        self._rows: dict[str, int] = {}  # UNet rows of a step, of jobs that live

    def __repr__(self) -> str:
        return f"RecentTicks({len(self._ticks)} of {self._count}, {len(self._rows)} jobs)"

    def begin(self, spec: JobSpec) -> None:
        """A job is admitted."""
        self._rows[spec.job_id] = spec.rows

    def end(self, job_id: str) -> None:
        """A job has ended, however. Nothing where it has before."""
        self._rows.pop(job_id, None)

    def tick_done(self, worker: str, tick: Tick, report: TickReport) -> None:
        """A tick is back."""
        self._count += 1
        outcome = report.outcome
        parts = self._parts(tick)
        self._ticks.append(RanTick(worker, tick, outcome.status, report.start_unix_s, outcome.seconds, parts))

    def since(self, after: int) -> tuple[Sequence[RanTick], int, int]:
        """Ticks behind the first `after` of all; how many there have been so far; how many of those behind are lost.

        A count that is too large is that of a process before this one: it counts as 0.
        """
        after = after if after <= self._count else 0
        first = self._count - len(self._ticks)  # number of ticks before those that are kept
        return list(islice(self._ticks, max(0, after - first), None)), self._count, max(0, first - after)

    def _parts(self, tick: Tick) -> tuple[Part, ...]:
        """A job that has ended meanwhile has what the others leave of the rows."""
        if tick.stage is not Stage.DENOISE:
            return tuple(Part(entry.job_id, 1, 0) for entry in tick.entries)
        known = [self._rows.get(entry.job_id, 0) for entry in tick.entries]
        rest = (tick.rows - sum(known)) // max(1, known.count(0))
        return tuple(
            Part(entry.job_id, rows or max(1, rest), entry.step + 1)
            for entry, rows in zip(tick.entries, known, strict=True)
        )
