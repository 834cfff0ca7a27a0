"""Runs the services of a plan as child processes until told to stop: restarts what crashes, drains in order."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from steploom.config import UpConfig
from steploom.exit_codes import CommandError, ExitCode
from steploom.health import wait_serving
from steploom.lifecycle import GiveUp, Lifecycle, Restart, State, Stopped, describe_exit
from steploom.plan import Plan, ServiceSpec
from steploom.process import Process, Sink
from steploom_common.rpc import Shutdown
from steploom_common.settings import ConfigError

log = logging.getLogger(__name__)

_LAST_GRACE_S = 2.0  # that each service has at least, once those in front of it have used up the grace

_PROGRAM = re.compile(r"^(error|steploom[-_]\w+): ")  # before the message that a service ends with

LogSink = Callable[[str, str], None]  # takes a service's name and a line of its log


class ServiceFailed(CommandError):
    """A service cannot come up; everything ends."""


class Service:
    """One supervised process."""

    def __init__(self, spec: ServiceSpec, config: UpConfig, sink: Sink, prepare: Callable[[], None]) -> None:
        self.spec = spec
        self._prepare = prepare
        self.life = Lifecycle(config.backoff, config.start_tries, random.random)
        self.has_been_ready = asyncio.Event()
        self._sink = sink
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"Service({self.spec.name}, {self.life!r})"

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Keeps the process running until `stop`.

        Raises:
            ServiceFailed: it cannot come up.
        """
        try:
            while not self._stopping.is_set():
                verdict, process = await self._run_once()
                if isinstance(verdict, Stopped):
                    return
                if isinstance(verdict, GiveUp):
                    raise _failed(self.spec.name, verdict, process.last_words)
                await self._pause(verdict)
        finally:
            await self._end_process()
            self._ended.set()

    async def stop(self, grace_s: float, forced: asyncio.Event) -> None:
        """Asks the process to end; kills it after the grace, or at once when `forced` is set."""
        self._stopping.set()
        self.life.stop()
        if self._process is not None:
            self._process.ask_to_end()
        if not await _either(self._ended, forced, grace_s):
            log.warning("%s did not end in time: killing it", self.spec.name)
            self.kill()
        await self._ended.wait()

    def kill(self) -> None:
        """Ends the process without asking."""
        if self._process is not None:
            self._process.kill()

    async def _run_once(self) -> tuple[Stopped | GiveUp | Restart, Process]:
        self.life.started()
        try:
            self._prepare()
        except (OSError, ConfigError) as error:  # the service says itself what it lacks, and is tried again
            log.warning("the runtime folder cannot be restored: %s", error)
        process = self._process = await Process.start(self.spec.command, self._sink)
        if self._stopping.is_set():  # asked to end while the process was being made
            process.ask_to_end()
        watch = asyncio.create_task(self._watch())
        try:
            code = await process.wait()
        finally:
            watch.cancel()
        self._process = None
        verdict = self.life.exited(code, _now())
        if isinstance(verdict, Restart):
            log.warning("%s ended with %s; next try in %.1f s", self.spec.name, describe_exit(code), verdict.delay_s)
        return verdict, process

    async def _watch(self) -> None:
        await wait_serving(self.spec.probe)
        if self.life.state is State.STARTING:
            self.life.ready(_now())
            log.info("%s is up%s", self.spec.name, " again" if self.has_been_ready.is_set() else "")
            self.has_been_ready.set()

    async def _pause(self, verdict: Restart) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), verdict.delay_s)
        except TimeoutError:
            return

    async def _end_process(self) -> None:
        """What is left to do when `run` is cancelled: the process may still run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.ask_to_end()
        try:
            await asyncio.wait_for(process.wait(), _LAST_GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()


class Supervisor:
    """All services of a plan.

    Args:
        plan: what to run; its groups end one after the other.
        config: back-off and times.
        sink: takes the services' logs.
        prepare: called before a process is started: puts in place the files that it needs.
    """

    def __init__(self, plan: Plan, config: UpConfig, sink: LogSink, prepare: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self._groups = [[_supervised(spec, config, sink, prepare) for spec in group] for group in plan.groups]

    def __repr__(self) -> str:
        return f"Supervisor({', '.join(repr(service) for service in self.services)})"

    @property
    def services(self) -> list[Service]:
        """Front to back."""
        return [service for group in self._groups for service in group]

    async def run(self, shutdown: Shutdown, announce: Callable[[Sequence[Service]], None]) -> None:
        """Starts everything, calls `announce` when all are ready, and ends everything when `shutdown` is requested.

        Raises:
            ServiceFailed: a service cannot come up; the others have been ended.
        """
        running = [asyncio.create_task(service.run()) for service in self.services]
        announcing = asyncio.create_task(self._announce(announce))
        asked = asyncio.create_task(shutdown.requested.wait())
        try:
            failure = await _first_failure({*running, announcing}, asked)
            await self._drain(self._config.drain_s if failure is None else 0.0, shutdown.forced)
        finally:
            await _cancel([*running, announcing, asked])
        if failure is not None:
            raise failure

    async def _announce(self, announce: Callable[[Sequence[Service]], None]) -> None:
        try:
            async with asyncio.timeout(self._config.ready_s):
                for service in self.services:
                    await service.has_been_ready.wait()
        except TimeoutError:
            late = ", ".join(item.spec.name for item in self.services if not item.has_been_ready.is_set())
            raise ServiceFailed(
                f"not ready within {self._config.ready_s:g} s: {late}",
                ExitCode.UNAVAILABLE,
                "raise up.ready_s where the warm-up needs longer",
            ) from None
        announce(self.services)

    async def _drain(self, grace_s: float, forced: asyncio.Event) -> None:
        """Ends the groups front to back, so that nothing is left for the ones behind to do."""
        deadline = _now() + grace_s
        for group in self._groups:
            left_s = max(_LAST_GRACE_S, deadline - _now())
            await asyncio.gather(*(service.stop(left_s, forced) for service in group))


def _supervised(spec: ServiceSpec, config: UpConfig, sink: LogSink, prepare: Callable[[], None]) -> Service:
    return Service(spec, config, lambda line: sink(spec.name, line), prepare)


def _failed(name: str, verdict: GiveUp, last_words: str) -> ServiceFailed:
    code = ExitCode.USAGE if verdict.exit_code == ExitCode.USAGE else ExitCode.FAILED
    said = last_words.strip().splitlines()
    last = f": {_PROGRAM.sub('', said[-1])}" if said else ""
    return ServiceFailed(f"{name} cannot start: {verdict.reason}{last}", code)


async def _first_failure(tasks: set[asyncio.Task[None]], asked: asyncio.Task[Any]) -> BaseException | None:
    """Waits until a task fails, and gives its error, or until `asked` is done."""
    while not asked.done():
        done, _ = await asyncio.wait({*tasks, asked}, return_when=asyncio.FIRST_COMPLETED)
        for task in done & tasks:
            if error := task.exception():
                return error
        tasks = tasks - done
    return None


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _either(first: asyncio.Event, second: asyncio.Event, timeout_s: float) -> bool:
    """Waits for one of two events; True where the first is set."""
    waits = [asyncio.create_task(event.wait()) for event in (first, second)]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return first.is_set()


def _now() -> float:
    return asyncio.get_running_loop().time()
