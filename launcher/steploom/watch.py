"""`steploom status --watch`: the same figures live, as differences between two looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from steploom.status import Snapshot, models_table, worker_state
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.worker.v1 import worker_pb2

WorkerStatus = pb.StatusResponse.WorkerStatus

_NONE = "-"


@dataclass(frozen=True)
class Look:
    """What was there at a moment."""

    at_s: float  # of a clock that never goes back
    snapshot: Snapshot


@dataclass(frozen=True)
class WorkerFigures:
    """What a worker has done between two looks."""

    busy: float | None  # share of the time, device time of all stages; None: not known yet
    rows_per_tick: float | None  # of denoise ticks; None: there was none
    padding: float | None  # share of the rows that were computed for nobody; None: there were none
    ticks_per_s: float | None  # of all stages; None: not known yet


def worker_figures(before: WorkerStatus | None, now: WorkerStatus, seconds: float) -> WorkerFigures:
    """Differences of counters. Where a counter is less than before, the batcher began anew: all of it is new.

    A tick counts when it is back, so one that is longer than the time between looks is in one of them alone. Rows and
    padding of the first look are since the batcher's start.
    """
    done = {use.stage: use for use in now.stages}
    old = {use.stage: use for use in before.stages} if before else {}
    if any(old[stage].ticks > use.ticks for stage, use in done.items() if stage in old):
        old = {}
    empty = pb.StatusResponse.StageUse()
    pairs = [(old.get(stage, empty), use) for stage, use in done.items()]
    ticks = sum(use.ticks - was.ticks for was, use in pairs)
    rows = sum(use.rows - was.rows for was, use in pairs)
    padding = sum(use.padding - was.padding for was, use in pairs)
    busy_s = sum(use.busy_s - was.busy_s for was, use in pairs)
    denoise = worker_pb2.STAGE_DENOISE
    was, use = old.get(denoise, empty), done.get(denoise, empty)
    denoise_ticks = use.ticks - was.ticks
    is_known = before is not None and seconds > 0
    return WorkerFigures(
        busy=min(1.0, busy_s / seconds) if is_known else None,
        rows_per_tick=(use.rows - was.rows) / denoise_ticks if denoise_ticks else None,
        padding=padding / (rows + padding) if rows + padding else None,
        ticks_per_s=ticks / seconds if is_known else None,
    )


def increase(before: int | None, now: int) -> int:
    """Of a counter; all of it where it has begun anew, 0 where there was no look before."""
    if before is None:
        return 0
    return now - before if now >= before else now


def screen(before: Look | None, now: Look) -> RenderableType:
    """What is shown of two looks, or of the first one."""
    snapshot, status = now.snapshot, now.snapshot.status
    if status is None:
        return Text(f"gateway {_words(snapshot.gateway_health)}; the batcher at {snapshot.batcher} cannot be reached")
    old = before.snapshot.status if before else None
    seconds = now.at_s - before.at_s if before else 0.0
    state = "draining" if status.is_draining else "up"
    title = Text(f"gateway {_words(snapshot.gateway_health)} at {snapshot.gateway}, batcher {state}; Ctrl-C ends this")
    models = (models_table(snapshot.models), Text()) if snapshot.models else ()
    workers, counters = _workers(old, status, seconds), _counters(old, status, seconds)
    return Group(title, Text(), workers, Text(), *models, _tiers(status), Text(), counters)


def watch(
    look: Callable[[], Snapshot],
    console: Console,
    interval_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Looks again and again until it is interrupted. Into a file or a pipe each look is written below the last.

    Args:
        look: what is there now.
        console: where it is shown.
        interval_s: seconds between looks.
        sleep: waits; of tests.
        clock: seconds; of tests.
    """
    before: Look | None = None
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                now = Look(clock(), look())
                shown = screen(before, now)
                if console.is_terminal:
                    live.update(shown, refresh=True)
                else:
                    console.print(shown)
                    console.print()
                before = now if now.snapshot.status is not None else None
                sleep(interval_s)
    except KeyboardInterrupt:
        return


def _workers(old: pb.StatusResponse | None, status: pb.StatusResponse, seconds: float) -> Table:
    before = {worker.address: worker for worker in old.workers} if old else {}
    table = Table(
        "worker", "state", "slots", "busy", "rows per tick", "padding", "ticks/s", box=None, pad_edge=False
    )  # fmt: skip
    for worker in status.workers:
        figures = worker_figures(before.get(worker.address), worker, seconds)
        table.add_row(
            worker.address,
            worker_state(worker),
            f"{worker.slots_used}/{worker.slots}",
            _share(figures.busy),
            _number(figures.rows_per_tick),
            _share(figures.padding),
            _number(figures.ticks_per_s),
        )
    return table


def _tiers(status: pb.StatusResponse) -> Table:
    table = Table("tier", "queued", "at most", "running", box=None, pad_edge=False)
    for tier in status.tiers:
        table.add_row(tier.name, str(tier.queued), str(tier.max_queued), str(tier.running))
    return table


def _counters(old: pb.StatusResponse | None, status: pb.StatusResponse, seconds: float) -> Table:
    names: Sequence[str] = ("submitted", "finished", "failed", "cancelled", "expired")
    rows = [(name, getattr(old, name) if old else None, getattr(status, name)) for name in names]
    for cause, count in sorted(status.refused.items()):
        rows.append((f"refused: {cause}", old.refused.get(cause, 0) if old else None, count))
    if not status.refused:
        rows.append(("refused", 0 if old else None, 0))
    table = Table("jobs", "now", "a second", "since start", box=None, pad_edge=False)
    for name, before, count in rows:
        more = increase(before, count)
        is_known = before is not None and seconds > 0
        table.add_row(
            name, f"+{more}" if is_known else _NONE, _number(more / seconds if is_known else None), str(count)
        )
    return table


def _words(health: str) -> str:
    return health.lower().replace("_", " ")


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"
