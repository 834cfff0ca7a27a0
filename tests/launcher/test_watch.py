"""`steploom status --watch`: figures between two looks, what is shown of them, and how it ends."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from steploom.status import Snapshot
from steploom.watch import Look, WorkerFigures, increase, screen, watch, worker_figures
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse
from steploom_protos.worker.v1 import worker_pb2

WorkerStatus = StatusResponse.WorkerStatus
ENCODE, DENOISE = worker_pb2.STAGE_ENCODE, worker_pb2.STAGE_DENOISE


def worker(denoise_ticks: int, rows: int, busy_s: float, padding: int = 0, encode_ticks: int = 0) -> WorkerStatus:
    """One that has done so much since the batcher's start."""
    use = StatusResponse.StageUse
    return WorkerStatus(
        address="w", is_up=True, slots=8, slots_used=3,
        stages=[
            use(stage=ENCODE, ticks=encode_ticks, rows=encode_ticks),
            use(stage=DENOISE, ticks=denoise_ticks, rows=rows, busy_s=busy_s, padding=padding),
        ],
    )  # fmt: skip


def status(of: WorkerStatus | None = None, **fields: object) -> StatusResponse:
    tiers = [StatusResponse.Tier(name="free", queued=7, running=2, max_queued=256)]
    return StatusResponse(tiers=tiers, workers=[of or worker(0, 0, 0.0)], **fields)  # type: ignore[arg-type]


def snapshot(answer: StatusResponse | None) -> Snapshot:
    return Snapshot("127.0.0.1:8001", "SERVING", "unix:/run/batcher.sock", answer)


def shown(before: Look | None, now: Look) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(screen(before, now))
    return captured.get()


def line(text: str, start: str) -> list[str]:
    """The words of the line that begins so."""
    (found,) = (row.split() for row in text.splitlines() if row.startswith(start))
    return found


def test_figures_are_of_the_time_between_two_looks() -> None:
    figures = worker_figures(worker(10, 100, 4.0), worker(14, 120, 5.0, padding=4, encode_ticks=4), 2.0)
    assert figures == WorkerFigures(busy=0.5, rows_per_tick=5.0, padding=4 / 28, ticks_per_s=4.0)


def test_a_batcher_that_began_anew_is_counted_from_its_start() -> None:
    figures = worker_figures(worker(10, 100, 4.0), worker(2, 12, 1.0), 2.0)
    assert figures == WorkerFigures(busy=0.5, rows_per_tick=6.0, padding=0.0, ticks_per_s=1.0)
    assert increase(10, 4) == 4


def test_a_worker_without_ticks_has_no_rows_and_overlap_is_no_more_than_all() -> None:
    nothing = worker_figures(worker(10, 100, 4.0), worker(10, 100, 4.0), 2.0)
    assert nothing == WorkerFigures(busy=0.0, rows_per_tick=None, padding=None, ticks_per_s=0.0)
    assert worker_figures(worker(10, 100, 4.0), worker(11, 103, 9.0), 2.0).busy == 1.0


def test_the_first_look_tells_rows_since_the_start_and_no_rates() -> None:
    figures = worker_figures(None, worker(10, 60, 4.0), 0.0)
    assert figures == WorkerFigures(busy=None, rows_per_tick=6.0, padding=0.0, ticks_per_s=None)


def test_the_screen_has_workers_queue_and_refusals() -> None:
    before = Look(10.0, snapshot(status(worker(10, 60, 1.0), submitted=5, refused={"deadline": 1})))
    later = status(worker(20, 180, 3.0), submitted=15, finished=4, refused={"deadline": 3, "queue_full": 2})
    text = shown(before, Look(14.0, snapshot(later)))
    assert line(text, "w ") == ["w", "up", "3/8", "50%", "12.00", "0%", "2.50"]
    assert line(text, "free") == ["free", "7", "256", "2"]
    assert line(text, "submitted") == ["submitted", "+10", "2.50", "15"]
    assert line(text, "refused: deadline")[2:] == ["+2", "0.50", "3"]
    assert line(text, "refused: queue_full")[2:] == ["+2", "0.50", "2"]


def test_a_batcher_that_is_away_is_told_and_what_was_before_is_forgotten() -> None:
    text = shown(None, Look(0.0, snapshot(None)))
    assert "cannot be reached" in text


def looking(*answers: StatusResponse | None) -> Callable[[], Snapshot]:
    """Gives the answers, then Ctrl-C."""
    left: Iterator[StatusResponse | None] = iter(answers)

    def look() -> Snapshot:
        for answer in left:
            return snapshot(answer)
        raise KeyboardInterrupt

    return look


@pytest.mark.parametrize("is_terminal", [True, False])
def test_it_looks_until_it_is_interrupted(is_terminal: bool) -> None:
    waits: list[float] = []
    out, clock = io.StringIO(), iter(range(0, 100, 2))
    console = Console(file=out, force_terminal=is_terminal, width=120, color_system=None)
    answers = (status(submitted=1), None, status(submitted=5), status(submitted=12))
    watch(looking(*answers), console, 2.0, waits.append, lambda: float(next(clock)))
    assert waits == [2.0] * 4
    text = out.getvalue()
    assert text.count("cannot be reached") == 1
    assert "+7" in text  # from the last two
    assert "+4" not in text  # across the loss
    assert ("\x1b[?25h" in text) is is_terminal  # the cursor is there again


def test_control_c_ends_it_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steploom", "status", "--watch", "--interval", "0.1", "--address", "127.0.0.1:1"]
    with subprocess.Popen(
        [*command, "--runtime-dir", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "unreachable" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
