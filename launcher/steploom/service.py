"""One supervised service: a process that is started again when it ends or hangs, and replaced when it is told to."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from steploom.attendance import Silence, attend
from steploom.config import UpConfig
from steploom.control import NotDone
from steploom.exit_codes import CommandError, ExitCode
from steploom.lifecycle import GiveUp, Lifecycle, Restart, State, Stopped, describe_exit
from steploom.plan import ServiceSpec
from steploom.process import Process, Sink
from steploom_common.settings import ConfigError

log = logging.getLogger(__name__)

_LAST_GRACE_S = 2.0  # for a process that must end because we do
_POLL_S = 0.05  # between looks at whether the next process is ready
_REPLACED_S = 15.0  # that a process has beyond the time for its jobs

# How a process ends that found no memory: a worker's own code, or the kernel's choice of a victim.
_NO_MEMORY = (3, -signal.SIGKILL)

_PROGRAM = re.compile(r"^(error|steploom[-_]\w+): ")  # before the message that a service ends with


class ServiceFailed(CommandError):
    """A service cannot come up; everything ends."""


class NotReplaced(NotDone):
    """A service goes on with the process that it had; says why."""


class Running:
    """A process of a service, and who attends to it.

    Args:
        process: that was started.
        turn: which of the service's homes it listens at.
        attendance: watches it.
    """

    def __init__(self, process: Process, turn: int, attendance: Coroutine[Any, Any, None]) -> None:
        self.process = process
        self.turn = turn
        self.is_up = asyncio.Event()
        self.has_ended = asyncio.Event()
        self.code = 0  # once it has ended
        self.is_hung = False  # it was killed because it said nothing any more
        self._attendance = asyncio.create_task(attendance)
        self._end = asyncio.create_task(self._wait())

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        await self.has_ended.wait()
        return self.code

    async def kill(self) -> None:
        """Ends it without asking."""
        self.process.kill()
        await self.has_ended.wait()

    async def end(self, grace_s: float) -> bool:
        """Asks it to end, and kills it after the grace; False where that was needed."""
        self.process.ask_to_end()
        if await _within(self.has_ended.wait(), grace_s):
            return True
        await self.kill()
        return False

    async def _wait(self) -> None:
        try:
            self.code = await self.process.wait()
        finally:
            self._attendance.cancel()
            self.has_ended.set()


class Service:
    """Keeps one process running.

    Args:
        spec: what to run.
        config: back-off and times.
        sink: takes the lines of its log.
        prepare: called before a process is started: puts in place the files that it needs.
    """

    def __init__(self, spec: ServiceSpec, config: UpConfig, sink: Sink, prepare: Callable[[], None]) -> None:
        self.spec = spec
        self.life = Lifecycle(config.backoff, config.start_tries, random.random)
        self.has_been_ready = asyncio.Event()
        self._config = config
        self._prepare = prepare
        self._sink = sink
        self._running: Running | None = None
        self._successor: Running | None = None  # ready, and to take over when the one that runs has ended
        self._starting: Running | None = None  # beside the one that runs
        self._is_recycling = False  # the one that runs ends to make room for the next
        self._turn = 0
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._replacing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Service({self.spec.name}, {self.life!r})"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._running.process.pid if self._running else None

    async def run(self) -> None:
        """Keeps the process running until `stop`.

        Raises:
            ServiceFailed: it cannot come up.
        """
        try:
            while not self._stopping.is_set():
                running = await self._next()
                verdict = await self._run_to_its_end(running)
                if isinstance(verdict, Stopped):
                    return
                if isinstance(verdict, GiveUp):
                    raise _failed(self.spec.name, verdict, running.process.last_words)
                if isinstance(verdict, Restart):
                    await _within(self._stopping.wait(), verdict.delay_s)
        finally:
            await self._end_all()
            self._ended.set()

    async def stop(self, grace_s: float, forced: asyncio.Event) -> None:
        """Asks the process to end; kills it after the grace, or at once when `forced` is set."""
        self._stopping.set()
        self.life.stop()
        for running in self._processes():
            running.process.ask_to_end()
        if not await _either(self._ended, forced, grace_s):
            log.warning("%s did not end in time: killing it", self.spec.name)
            self.kill()
        await self._ended.wait()

    def kill(self) -> None:
        """Ends the process without asking."""
        for running in self._processes():
            running.process.kill()

    async def replace(self) -> None:
        """Puts a new process in the place of the one that runs; returns when it is ready and the old one has gone.

        The old one takes no more jobs then, and has time for those that it has. Where there is not memory enough for
        both, or `up.beside` is false, it goes first; what comes meanwhile waits.

        Raises:
            NotReplaced: nothing has changed, or the new process is not ready yet.
        """
        async with self._replacing:
            if self.life.state in (State.STARTING, State.WAITING):  # it has crashed: what comes is new
                await self._until_up(None)
            elif self.life.state is not State.UP:
                raise NotReplaced(f"it is {self.life.state.value}")
            elif self._config.beside and await self._start_beside():
                await self._hand_over()
            else:
                await self._recycle()

    async def _start_beside(self) -> bool:
        """Whether a successor is ready; False where there was no memory for it.

        Raises:
            NotReplaced: it has failed otherwise.
        """
        log.info("%s: starting its successor", self.spec.name)
        successor = self._starting = await self._launch(1 - self._turn)
        try:
            if not await _either(successor.is_up, successor.has_ended, self._config.ready_s):
                if not successor.has_ended.is_set():
                    raise NotReplaced(f"its successor is not ready within {self._config.ready_s:g} s")
                if successor.is_hung or successor.code not in _NO_MEMORY:
                    raise NotReplaced(f"its successor ended with {describe_exit(successor.code)}")
                log.warning("%s: there is no memory for two of it; the old one goes first", self.spec.name)
                return False
            if self._stopping.is_set():
                raise NotReplaced("all services end")
            self.spec.publish(successor.turn)
            self._turn, self._successor = successor.turn, successor
            return True
        finally:
            self._starting = None
            if self._successor is not successor:
                await successor.kill()

    async def _hand_over(self) -> None:
        """Lets the old process end; `run` goes on with the successor."""
        old = self._running
        if old is not None and not await old.end(self._config.drain_s + _REPLACED_S):
            log.warning("%s: the old process did not end in time", self.spec.name)
        log.info("%s is replaced", self.spec.name)

    async def _recycle(self) -> None:
        """Ends the old process, and waits for the next."""
        old, self._is_recycling = self._running, True
        if old is not None:
            await old.end(self._config.drain_s + _REPLACED_S)
        await self._until_up(old)
        log.info("%s is replaced", self.spec.name)

    async def _until_up(self, old: Running | None) -> None:
        """Returns when another process than the old one is ready."""
        deadline = _now() + self._config.ready_s
        while self._running is None or self._running is old or not self._running.is_up.is_set():
            if self._stopping.is_set() or _now() > deadline:
                raise NotReplaced("the new process is not ready")
            await asyncio.sleep(_POLL_S)

    async def _next(self) -> Running:
        """The process to run now: the successor that is ready, or a new one."""
        successor, self._successor = self._successor, None
        if successor is not None:
            self.life.replaced(_now())
            return successor
        self.life.started()
        return await self._launch(self._turn)

    async def _run_to_its_end(self, running: Running) -> Stopped | GiveUp | Restart | None:
        """What to do now that it has ended; None: at once what is next."""
        self._running = running
        if self._stopping.is_set():  # asked to end while the process was being made
            running.process.ask_to_end()
        code = await running.wait()
        self._running = None
        if self._stopping.is_set():
            return self.life.exited(code, _now())
        if self._successor is not None:
            return None
        if self._is_recycling:
            self._is_recycling = False
            self.life.recycled()
            return None
        verdict = self.life.exited(code, _now())
        if isinstance(verdict, Restart):
            log.warning("%s ended with %s; next try in %.1f s", self.spec.name, describe_exit(code), verdict.delay_s)
        return verdict

    async def _launch(self, turn: int) -> Running:
        try:
            self._prepare()
            self.spec.publish(self._turn)
        except (OSError, ConfigError) as error:  # the service says itself what it lacks, and is tried again
            log.warning("the runtime folder cannot be restored: %s", error)
        process = await Process.start(self.spec.command_of(turn), self._sink)
        return self._attended(process, turn)

    def _attended(self, process: Process, turn: int) -> Running:
        async def attendance() -> None:
            silence = Silence(self._config.ready_s if self._config.hang_s else 0.0, self._config.hang_s)
            silent_s = await attend(self.spec.probe_of(turn), silence, lambda: self._serves(running))
            log.error("%s has said nothing for %.0f s: killing it", self.spec.name, silent_s)
            running.is_hung = True
            process.kill()

        running = Running(process, turn, attendance())
        return running

    def _serves(self, running: Running) -> None:
        """A process is ready: the one that runs, or one that is started beside it."""
        running.is_up.set()
        if running is self._running and self.life.state is State.STARTING:
            self.life.ready(_now())
            log.info("%s is up%s", self.spec.name, " again" if self.has_been_ready.is_set() else "")
            self.has_been_ready.set()

    def _processes(self) -> list[Running]:
        """All that live, or are about to end."""
        return [running for running in (self._running, self._successor, self._starting) if running is not None]

    async def _end_all(self) -> None:
        """What is left to do when `run` ends: with a successor, or because it is cancelled."""
        await asyncio.gather(*(running.end(_LAST_GRACE_S) for running in self._processes()))
        self._running = self._successor = None


def _failed(name: str, verdict: GiveUp, last_words: str) -> ServiceFailed:
    code = ExitCode.USAGE if verdict.exit_code == ExitCode.USAGE else ExitCode.FAILED
    said = last_words.strip().splitlines()
    last = f": {_PROGRAM.sub('', said[-1])}" if said else ""
    return ServiceFailed(f"{name} cannot start: {verdict.reason}{last}", code)


async def _within(work: Awaitable[Any], seconds: float) -> bool:
    """Whether `work` is done in time."""
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        return False
    return True


async def _either(first: asyncio.Event, second: asyncio.Event, timeout_s: float) -> bool:
    """Waits for one of two events; True where the first is set."""
    waits = [asyncio.create_task(event.wait()) for event in (first, second)]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return first.is_set()


def _now() -> float:
    return asyncio.get_running_loop().time()
