"""For tests of faults: callers around one, what each of them was told, and that nothing is left when it is over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from steploom.aio import Client
from steploom.errors import SteploomError
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, arenas_of
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse

# A service that is not back by then is not coming. Far above what is measured: a machine may stand still for a while.
BACK_S = 60.0
JOBS = 16  # that are open when a fault comes under load
_PATIENCE_S = 120.0  # of a caller
_AGAIN_S = 0.05  # between a caller's tries
_LAST_LINES = 60  # of the log, in messages

BAD_WORDS = ("Traceback", "Task was destroyed", "never retrieved", "never awaited")


@dataclass(frozen=True)
class End:
    """What became of a request."""

    status: str  # of gRPC; OK: it got its picture
    details: str = ""
    retry_after: float | None = None  # seconds

    @property
    def is_ok(self) -> bool:
        """It got its picture."""
        return self.status == "OK"


@dataclass
class Outcome:
    """What became of all requests around a fault."""

    open: list[End] = field(default_factory=list)  # when it came
    later: list[End] = field(default_factory=list)  # from then on until it was over, the last with its picture
    back_s: float = 0.0  # from the fault to the first picture that was asked for after it

    def __str__(self) -> str:
        failed = failures(self.open), failures(self.later)
        counts = Counter((end.status, end.details) for end in (*failed[0], *failed[1]))
        told = "".join(f"\n  {count} x {status}: {details}" for (status, details), count in counts.items())
        return (
            f"back after {self.back_s:.2f} s; {len(failed[0])} of {len(self.open)} open requests failed, "
            f"{len(failed[1])} of {len(self.later)} later ones{told}"
        )


def failures(ends: Iterable[End]) -> list[End]:
    """Those without a picture."""
    return [end for end in ends if not end.is_ok]


async def ask(client: Client, seed: int, instruction: str = "put on sunglasses", steps: int | None = None) -> End:
    """One request, and its end."""
    steps = steps or 3 + seed % 8
    try:
        await client.edit(portrait(), instruction, seed=seed, steps=steps, tier="free", timeout=_PATIENCE_S)
    except SteploomError as error:
        return End(error.status.name, str(error), error.retry_after)
    return End("OK")


async def ask_until_back(stack: Stack, client: Client, outcome: Outcome) -> None:
    """One request after the other, until one gets its picture."""
    begin = time.monotonic()
    try:
        async with asyncio.timeout(BACK_S):
            while True:
                outcome.later.append(end := await ask(client, 1))
                if end.is_ok:
                    break
                await asyncio.sleep(_AGAIN_S)
    except TimeoutError:
        said = "\n".join(stack.log.splitlines()[-_LAST_LINES:])
        raise AssertionError(f"not {outcome}\nprocesses: {stack.pids()}\n{said}") from None
    outcome.back_s = time.monotonic() - begin


@asynccontextmanager
async def open_requests(stack: Stack, client: Client, outcome: Outcome) -> AsyncIterator[None]:
    """Requests in every stage, some of which are open as long as the block lasts; their ends are known after it."""
    before = await asyncio.to_thread(stack.status)
    asked = [asyncio.create_task(ask(client, seed)) for seed in range(JOBS)]

    def are_open(status: StatusResponse) -> bool:
        """None is on its way still, where who drains would refuse it."""
        return status.ticks >= before.ticks + 5 and status.submitted >= before.submitted + JOBS

    await asyncio.to_thread(stack.wait_until, are_open, BACK_S)
    with stack.paused("worker-0"):
        asked.append(asyncio.create_task(ask(client, JOBS)))  # the others may have ended before the pause

        def all_have_come(status: StatusResponse) -> bool:
            return num_jobs(status) == sum(not task.done() for task in asked)

        await asyncio.to_thread(stack.wait_until, all_have_come, BACK_S)
        yield
    outcome.open += await asyncio.gather(*asked)


def num_jobs(status: StatusResponse) -> int:
    """Jobs that the batcher has."""
    return sum(tier.queued + tier.running for tier in status.tiers)


class Traces:
    """What a system had of processes, files and open files before a fault.

    Args:
        stack: the system, idle.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.pids = stack.pids()
        self._files = files_of(stack)
        self._open = {name: num_open_files(pid) for name, pid in self.pids.items()}

    async def assert_none(self, may_trace: bool = False) -> None:
        """Nothing of the fault and of its requests is left.

        Args:
            may_trace: whether a traceback may be in the log: it is of a fault that was wanted.
        """
        stack = self._stack
        await eventually(lambda: stack.pids().keys() == self.pids.keys(), lambda: f"these run: {stack.pids()}")
        await eventually(lambda: files_of(stack) == self._files, lambda: f"these lie there: {files_of(stack)}")
        await asyncio.to_thread(stack.wait_serving, BACK_S)
        await asyncio.to_thread(stack.wait_metric, "steploom_gateway_in_flight", 0, BACK_S)
        await asyncio.to_thread(stack.wait_until, has_nothing_left, BACK_S)
        await asyncio.to_thread(stack.wait_metric, "steploom_gateway_arena_blocks_used", 0, BACK_S)
        now = stack.pids()
        lost = [pid for name, pid in self.pids.items() if now[name] != pid]
        assert not [pid for pid in lost if is_alive(pid)]
        assert not [file for pid in lost for file in arenas_of(pid)]
        assert set(processes_of(stack)) == {stack.pid, *now.values()}
        for name, pid in now.items():
            if pid == self.pids[name]:
                bound = self._open[name] + 2  # the peers' connections may be others than before
                await eventually(lambda pid=pid, bound=bound: num_open_files(pid) <= bound, lambda name=name: name)  # type: ignore[misc]
        words = BAD_WORDS[may_trace:]
        assert not [word for word in words if word in stack.log], stack.log


def has_nothing_left(status: StatusResponse) -> bool:
    """Workers are up and hold no slot and no tick; no job lives, and each that came has had one end."""
    ended = status.finished + status.failed + status.cancelled + status.expired + sum(status.refused.values())
    is_free = all(worker.slots_used == worker.ticks_in_flight == 0 for worker in status.workers)
    is_up = all(worker.is_up for worker in status.workers)
    return (
        is_up
        and is_free
        and all(tier.queued == tier.running == 0 for tier in status.tiers)
        and status.submitted == ended
    )


def files_of(stack: Stack) -> set[str]:
    """What lies in a system's folder."""
    return {str(path.relative_to(stack.directory)) for path in stack.directory.rglob("*")}


def processes_of(stack: Stack) -> Iterable[int]:
    """All that run for a system, whoever their parent is."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)) and str(stack.directory) in _command_line(entry):
            yield int(entry.name)


def _command_line(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """It runs, and is not just waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def num_open_files(pid: int) -> int:
    """Sockets included; 0 where the process is gone."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


async def eventually(holds: Callable[[], bool], complaint: Callable[[], str]) -> None:
    """Returns when it holds, which no event tells: it is another process's matter."""
    deadline = time.monotonic() + BACK_S
    while not holds():
        assert time.monotonic() < deadline, complaint()
        await asyncio.sleep(0.02)
