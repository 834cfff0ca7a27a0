"""One stream to a worker, from its first words to its end: commands out, reports in, and a watch on what is owed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from steploom_batcher.device_use import DeviceUse
from steploom_batcher.messages import (
    AdapterChanged,
    Command,
    Leaving,
    Prepared,
    Preparing,
    Ready,
    Report,
    TickReport,
)
from steploom_batcher.roster import Link
from steploom_batcher.types import Tick
from steploom_common.patience import Overdue, Patience

_MAX_COMMANDS = 16  # in a message: pictures may travel in them, and a message has a bound
_LOOK_S = 1.0  # between looks at whether a tick is overdue


class Listener(Protocol):
    """Who is told what happens on a link: the driver."""

    def worker_up(self, name: str, ready: Ready, link: Link, home: str = "") -> None:
        """The worker can take ticks. Raises ValueError where it cannot be used."""

    def worker_leaving(self, name: str) -> None:
        """It takes no more jobs."""

    def worker_down(self, name: str, error: str) -> None:
        """It is lost, or has left."""

    def report(self, name: str, report: TickReport) -> None:
        """A tick is done."""

    def prepared(self, name: str, prepared: Prepared) -> None:
        """Ticks of the worker cost less from now on."""

    def adapter_changed(self, name: str, changed: AdapterChanged) -> None:
        """It has loaded or dropped an adapter, or cannot."""


class Session(Protocol):
    """One stream to a worker, from its first answer to its loss; both verbs then raise ConnectionError."""

    ready: Ready

    async def write(self, commands: Sequence[Command]) -> None:
        """Sends one message; returns when the transport takes more."""

    async def read(self) -> Report:
        """The next report."""


class Conversation:
    """See the module. It is the driver's `Link` while it lasts.

    Args:
        name: of the worker, towards the listener.
        session: that is open.
        listener: hears of everything.
        overdue: bounds the wait for a tick.
        use: counts what the device did.
        on_tick_done: hears of each tick that is back.
        leaving: is set when the worker takes no more jobs.
    """

    def __init__(
        self,
        name: str,
        session: Session,
        listener: Listener,
        overdue: Overdue,
        use: DeviceUse,
        on_tick_done: Callable[[Tick, TickReport], None],
        leaving: asyncio.Event,
    ) -> None:
        self.name = name
        self.ready = session.ready
        self._session = session
        self._listener = listener
        self._overdue = overdue
        self._use = use
        self._on_tick_done = on_tick_done
        self._leaving = leaving
        self._owed: dict[int, Tick] = {}  # sent, and without an answer; the oldest first
        self._patience = Patience(_LOOK_S)  # with the worker's silence while something is owed
        self._outbox: deque[Command] = deque()
        self._outbox_filled = asyncio.Event()
        self._is_over = asyncio.Event()  # nothing is left to say

    def __repr__(self) -> str:
        return f"Conversation({self.name}, owed={len(self._owed)}, {self._patience})"

    @property
    def is_leaving(self) -> bool:
        """The worker takes no more jobs."""
        return self._leaving.is_set()

    @property
    def num_owed(self) -> int:
        """Ticks that are sent and without an answer."""
        return len(self._owed)

    def send(self, commands: list[Command]) -> None:
        """Puts commands in line for the one writer."""
        if not self._owed:
            self._patience.heard()
        self._owed |= {command.tick_id: command for command in commands if isinstance(command, Tick)}
        self._outbox += commands
        self._outbox_filled.set()

    def hang_up(self) -> None:
        """Ends the stream."""
        self._is_over.set()

    async def run(self) -> None:
        """Reads, writes and watches until the stream breaks, or is hung up.

        Raises:
            ConnectionError: it is broken, or the worker says nothing more.
        """
        parts = (self._read, self._write, self._watch, self._is_over.wait)
        tasks = [asyncio.create_task(part(), name=self.name) for part in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            report = await self._session.read()
            self._patience.heard()
            match report:
                case TickReport():
                    tick = self._owed.pop(report.tick_id, None)
                    if tick is not None:
                        self._use.add(tick, report)
                        self._on_tick_done(tick, report)
                    self._listener.report(self.name, report)
                case Prepared():
                    self.ready = replace(self.ready, progress=report.progress, memory=report.memory)
                    self._listener.prepared(self.name, report)
                case AdapterChanged():
                    self.ready = replace(self.ready, memory=report.memory)
                    self._listener.adapter_changed(self.name, report)
                case Leaving():
                    self._listener.worker_leaving(self.name)
                    self._leaving.set()
                case Preparing():
                    pass  # that something was heard is all there is to it

    async def _write(self) -> None:
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                count = min(len(self._outbox), _MAX_COMMANDS)
                await self._session.write([self._outbox.popleft() for _ in range(count)])

    async def _watch(self) -> None:
        """Keepalive sees a dead process, or one that stands still; this sees one whose driving thread hangs."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._owed:
                continue
            limit_s = self._overdue.limit_s(next(iter(self._owed.values())).predicted_s)
            if self._patience.look(clock()) > limit_s:
                raise ConnectionError(f"no answer to a tick for {limit_s:g} s")
