"""What is shown while a load runs: a line that moves, and lines that stay."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from steploom_loadtest.live import Load
from steploom_loadtest.report import OK, Record

_SHOW_S = 0.2  # between looks at the progress


class Display:
    """A line that moves while a load runs; as a context manager. Nothing where nobody looks.

    Args:
        console: where it is shown.
        is_quiet: nothing is said at all.
    """

    def __init__(self, console: Console, is_quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[told]}"),
        )
        self._console = console
        self._is_quiet = is_quiet
        is_shown = console.is_terminal and not is_quiet
        self._progress = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not is_shown)
        self._state: _Running | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, words: str) -> None:
        """A line that stays."""
        if not self._is_quiet:
            self._progress.console.print(words, highlight=False, soft_wrap=True)

    def following(self, load: Load) -> _Following:
        """Shows a load for the length of a block on the running event loop."""
        task = self._progress.add_task(f"{load.rate:.2f}/s", total=load.seconds, told="")
        self._state = _Running(load, task, self._progress)
        return _Following(self._state)

    def begin(self) -> None:
        """The trace begins."""
        if self._state is not None:
            self._state.begin()

    def hear(self, record: Record) -> None:
        """An end."""
        if self._state is not None:
            self._state.hear(record)


@dataclass
class _Running:
    load: Load
    task: TaskID
    progress: Progress
    begun_s: float | None = None  # of the loop's clock
    ends: Counter[str] = field(default_factory=Counter)
    num_good: int = 0

    def begin(self) -> None:
        self.begun_s = asyncio.get_running_loop().time()

    def hear(self, record: Record) -> None:
        self.ends[record.status] += 1
        self.num_good += record.is_good

    def show(self) -> None:
        if self.begun_s is None:
            return
        now = asyncio.get_running_loop().time() - self.begun_s
        sent = bisect_right(self.load.trace, now, key=lambda arrival: arrival.at)
        ended, done = self.ends.total(), self.ends[OK]
        pictures = f"pictures {done}, in time {self.num_good}, without {ended - done}"
        told = f"sent {sent}, open {max(0, sent - ended)}, {pictures}"
        self.progress.update(self.task, completed=min(now, self.load.seconds), told=told, refresh=True)


class _Following:
    def __init__(self, state: _Running) -> None:
        self._state = state
        self._looking: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._looking = asyncio.ensure_future(self._look())

    def __exit__(self, *_: object) -> None:
        assert self._looking
        self._looking.cancel()
        self._state.progress.remove_task(self._state.task)

    async def _look(self) -> None:
        while True:
            self._state.show()
            await asyncio.sleep(_SHOW_S)
