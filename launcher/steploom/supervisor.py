"""Runs the services of a plan as child processes until told to stop: restarts what crashes, drains in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

from steploom.config import UpConfig
from steploom.exit_codes import ExitCode
from steploom.plan import Plan, ServiceSpec
from steploom.service import NotReplaced, Service, ServiceFailed
from steploom_common.rpc import Shutdown

log = logging.getLogger(__name__)

_LAST_GRACE_S = 2.0  # that each service has at least, once those in front of it have used up the grace
_LAST_WORDS_S = 5.0  # beyond the grace, for what is cut off at its end to be told so

LogSink = Callable[[str, str], None]  # takes a service's name and a line of its log


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
        self._replacing = asyncio.Lock()
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

    async def replace(self, names: Collection[str] = (), say: Callable[[str], None] = log.info) -> None:
        """Replaces services one after the other; the first that cannot be ends it.

        Args:
            names: of the services; empty: all that can be replaced.
            say: hears how far it is.

        Raises:
            NotReplaced: a service goes on as it was; those behind it too.
        """
        known = {service.spec.name: service for service in self.services if service.spec.can_be_replaced}
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise NotReplaced(f"{', '.join(unknown)} cannot be replaced; there is: {', '.join(known) or 'nothing'}")
        if not known:
            raise NotReplaced("there is nothing to replace: all workers run elsewhere")
        async with self._replacing:
            for name in sorted(names or known, key=list(known).index):
                say(f"{name}: replacing it")
                try:
                    await known[name].replace()
                except NotReplaced as error:
                    raise NotReplaced(f"{name} is not replaced: {error}") from None
                say(f"{name}: replaced")

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
        deadline = _now() + (grace_s + _LAST_WORDS_S if grace_s else 0.0)
        for group in self._groups:
            left_s = max(_LAST_GRACE_S, deadline - _now())
            await asyncio.gather(*(service.stop(left_s, forced) for service in group))


def _supervised(spec: ServiceSpec, config: UpConfig, sink: LogSink, prepare: Callable[[], None]) -> Service:
    return Service(spec, config, lambda line: sink(spec.name, line), prepare)


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


def _now() -> float:
    return asyncio.get_running_loop().time()
