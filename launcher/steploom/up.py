"""`steploom up`: the three services on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from steploom.channel import local
from steploom.config import SteploomConfig
from steploom.control import listening
from steploom.exit_codes import CommandError, ExitCode
from steploom.plain_models import plain_models, ready_words
from steploom.plan import Plan, plan, with_free_ports
from steploom.runtime import AlreadyRunning, RuntimeDir
from steploom.service import NotReplaced, Service
from steploom.supervisor import Supervisor
from steploom_common.logs import json_line
from steploom_common.rpc import Shutdown
from steploom_common.settings import ConfigError, replace, to_toml

log = logging.getLogger(__name__)

_CHECK_S = 120.0  # for a look at the machine, libraries of a GPU included
_ANSWER_S = 2.0  # for the names of plain models
_NAME_WIDTH = 9  # of the prefix of a log line: "worker-99"


def run_up(config: SteploomConfig, runtime_path: Path, ready: Callable[[], None] | None = None) -> ExitCode:
    """Runs the services until SIGTERM or SIGINT.

    Args:
        ready: called once all services answer, beside the table that is printed.

    Raises:
        ConfigError: the configuration cannot be used on this machine.
        CommandError: a service cannot come up, or another `up` holds the runtime folder.
    """
    runtime = RuntimeDir(runtime_path)
    try:
        with with_free_ports(_within_the_grace(config)) as settled:
            runtime.create()
            with runtime.locked():
                return _run_locked(settled, runtime, ready)
    except AlreadyRunning as error:
        raise CommandError(
            str(error), ExitCode.USAGE, "stop that one with Ctrl-C or SIGTERM, or choose another --runtime-dir"
        ) from None


def _within_the_grace(config: SteploomConfig) -> SteploomConfig:
    """No service takes longer to end than the supervisor waits: it tells those who are cut off itself, by then."""
    grace_s = config.up.drain_s
    gateway = replace(config.gateway, drain_s=min(config.gateway.drain_s, grace_s))
    batcher = replace(config.batcher, drain_s=min(config.batcher.drain_s, grace_s))
    worker = replace(config.worker, drain_s=min(config.worker.drain_s, grace_s))
    plain = replace(config.plain, drain_s=min(config.plain.drain_s, grace_s))
    return replace(config, gateway=gateway, batcher=batcher, worker=worker, plain=plain)


def _run_locked(config: SteploomConfig, runtime: RuntimeDir, ready: Callable[[], None] | None) -> ExitCode:
    planned = plan(config, runtime)

    def prepare() -> None:
        # the services read what was checked here, whatever happens to the user's file meanwhile; and again before each
        # restart, because a cleaner of old files may have been in the folder
        runtime.create()
        runtime.restore(to_toml(config), planned.services(os.getpid()))

    try:
        runtime.clear()
        prepare()
    except OSError as error:
        raise ConfigError("up.runtime_dir", f"{error.filename} cannot be used: {error.strerror}") from None
    try:
        _check_machine(planned, config, runtime)
        return asyncio.run(_supervise(planned, config, runtime.control, prepare, ready))
    finally:
        runtime.clear()


def _check_machine(planned: Plan, config: SteploomConfig, runtime: RuntimeDir) -> None:
    """Asks for what workers need before any service is started; in a process of its own: a GPU is let go when it ends.

    Raises:
        CommandError: this machine does not have it.
    """
    if config.worker.engine != "tensorrt" or not planned.workers or config.batcher.workers:
        return
    command = [sys.executable, "-P", "-m", "steploom_engine_worker", "--config", str(runtime.config_file), "--check"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=_CHECK_S)
    except subprocess.TimeoutExpired:
        return
    if done.returncode == ExitCode.USAGE:  # what else ends it may pass: a worker is started again
        raise CommandError(done.stderr.strip().splitlines()[-1].removeprefix("error: "), ExitCode.USAGE)


async def _supervise(
    planned: Plan, config: SteploomConfig, control: Path, prepare: Callable[[], None], ready: Callable[[], None] | None
) -> ExitCode:
    shutdown = Shutdown()
    is_json = config.log.format == "json"
    supervisor = Supervisor(planned, config.up, _json_line if is_json else _log_line, prepare)
    restarts = Restarts(supervisor)
    _listen(shutdown, restarts)

    def announce(services: Sequence[Service]) -> None:
        if is_json:
            log.info("all services are ready, the gateway at %s", config.gateway.listen)
        else:
            with suppress(OSError):  # a full disk under the log ends no service
                _print_ready(services, planned, config)
        if ready is not None:
            ready()

    log.info("starting %s", ", ".join(service.spec.name for service in supervisor.services))
    async with listening(control, supervisor.replace):
        running = asyncio.create_task(supervisor.run(shutdown, announce))
        await _before_the_end(shutdown, running)
        await restarts.cancel()
        await running
    log.info("all services have ended")
    return ExitCode.INTERRUPTED if shutdown.forced.is_set() else ExitCode.OK


class Restarts:
    """Restarts that a signal has asked for, one at a time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Replaces all workers one after the other, unless that is being done."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="restart")
        else:
            log.info("workers are being replaced already")

    async def cancel(self) -> None:
        """What is not replaced stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            await self._supervisor.replace()
        except NotReplaced as error:
            log.error("%s", error)


def _listen(shutdown: Shutdown, restarts: Restarts) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    shutdown.listen()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup it is ignored, and stays so
        return
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]

    def hang_up() -> None:
        """A terminal that closes says SIGHUP too: then there is nobody left for whom to run."""
        if terminals and not any(os.isatty(number) for number in terminals):
            shutdown.signal()
        else:
            restarts.begin()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)


async def _before_the_end(shutdown: Shutdown, running: asyncio.Task[None]) -> None:
    """Returns when the end is asked for, or has come."""
    asked = asyncio.create_task(shutdown.requested.wait())
    await asyncio.wait({asked, running}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()


def _log_line(name: str, line: str) -> None:
    _write(f"{name:<{_NAME_WIDTH}} | {line}\n")


def _json_line(name: str, line: str) -> None:
    """Each line names its service itself."""
    _write(json_line(name, line) + "\n")


def _write(line: str) -> None:
    with suppress(OSError):  # a terminal that has gone reads nothing more
        sys.stderr.write(line)
        sys.stderr.flush()


def _print_ready(services: Sequence[Service], planned: Plan, config: SteploomConfig) -> None:
    table = Table("service", "state", "pid", "address", box=None, pad_edge=False)
    for service in services:
        table.add_row(service.spec.name, service.life.state.value, str(service.pid or ""), service.spec.address)
    if config.gateway.metrics_listen:
        table.add_row("metrics", "", "", f"http://{config.gateway.metrics_listen}/metrics")
    console = Console(stderr=True)
    console.print(table)
    words = ['try: steploom edit IMAGE "put on sunglasses" -o OUT.png'] if planned.workers else []
    if planned.has_hosts:
        words.append(ready_words(plain_models(planned.batcher, _ANSWER_S), local(config.gateway.listen)))
    console.print("\n".join(f"ready; {line}" for line in words), highlight=False, markup=False, soft_wrap=True)
