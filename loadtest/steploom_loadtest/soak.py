"""`python -m steploom_loadtest.soak`: mixed load with cancels, lost callers and killed workers, as long as wanted.

At the end processes must be as large as they were, have as many files open, and every request must be accounted for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from steploom_loadtest.books import Books
from steploom_loadtest.child import StackError
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables, arenas_of, running
from steploom_loadtest.steadiness import Bound, Trend, trend
from steploom_protos.batcher.v1 import batcher_pb2 as batcher_pb
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

READY_S = 180.0
CALL_S = 120.0  # a deadline that is met even where the machine stalls
QUIET_S = 60.0  # for the last requests to end
WARM_SHARE = 1 / 3  # of the time, in which nothing is held against a process
WATCHED_S = 120.0  # that the size of a process must be watched at least: before, it says nothing of a leak
LIVED_SHARE = 0.5  # of the watched time: a process that has lived shorter is not judged
BYTES = Bound(4 * 2**20, 0.05)
FILES = Bound(4)

_BAD_WORDS = ("Traceback", "Task was destroyed", "never retrieved", "never awaited")
_KEPT = "worker-0"  # is never killed, so that a worker is watched too
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Plan:
    """What is done, and how often. Seconds."""

    seconds: float
    workers: int = 3
    callers: int = 8  # that wait for their answers
    cancel_every_s: float = 0.2
    leave_every_s: float = 1.0  # a connection with open calls is closed
    kill_every_s: float = 10.0  # a worker, but the first
    look_every_s: float = 1.0
    seed: int = 7

    @property
    def tables(self) -> Tables:
        """Settings of the services."""
        costs = {"encode_s": 0.004, "denoise_s": 0.008, "denoise_row_s": 0.001, "decode_s": 0.004}
        return {
            "worker": {"engine": "fake", "slots": 8, "fake": costs},
            "up": {"workers": self.workers, "min_backoff_s": 0.1, "max_backoff_s": 0.5, "stable_s": 0.0},
        }


@dataclass
class Series:
    """What a process was seen to have."""

    name: str
    times: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)  # resident
    files: list[float] = field(default_factory=list)  # open, sockets included


@dataclass
class Seen:
    """What a run has shown."""

    began: float = field(default_factory=time.monotonic)
    told: Counter[str] = field(default_factory=Counter)  # callers who stayed, by status
    num_cancelled: int = 0
    num_left: int = 0
    num_killed: int = 0
    processes: dict[int, Series] = field(default_factory=dict)  # by pid
    page: str = ""  # of metrics, when all is quiet
    faults: list[str] = field(default_factory=list)  # what else was wrong


async def soak(stack: Stack, plan: Plan) -> Seen:
    """Runs a plan against a system of its own."""
    seen, dice = Seen(), random.Random(plan.seed)
    end = time.monotonic() + plan.seconds
    async with grpc.aio.insecure_channel(stack.gateway) as channel:
        stub = ImageServiceStub(channel)
        await asyncio.gather(
            *(_call(stack.gateway, dice, seen, end) for _ in range(plan.callers)),
            _every(plan.cancel_every_s, end, lambda: _cancel(stub, dice, seen)),
            _every(plan.leave_every_s, end, lambda: _leave(stack.gateway, dice, seen)),
            _every(plan.kill_every_s, end, lambda: _kill(stack, dice, seen)),
            _every(plan.look_every_s, end, lambda: _look(stack, seen)),
        )
    await asyncio.to_thread(stack.wait_metric, "steploom_gateway_in_flight", 0, QUIET_S)
    await asyncio.to_thread(stack.wait_metric, "steploom_gateway_arena_blocks_used", 0, QUIET_S)
    await asyncio.to_thread(stack.wait_until, _is_quiet, QUIET_S)
    seen.page = await asyncio.to_thread(stack.metrics_page)
    return seen


def run(plan: Plan) -> Seen:
    """Starts a system, soaks it, ends it, and looks at what is left of it.

    Raises:
        StackError: it does not come up, become quiet, or end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="steploom-soak-") as folder,
        running(Path(folder), plan.tables, READY_S) as stack,
    ):
        seen = asyncio.run(soak(stack, plan))
        gateway = stack.pids()["gateway"]
        code = stack.stop()
        if code:
            seen.faults.append(f"`steploom up` ended with exit code {code}")
        if arenas_of(gateway):
            seen.faults.append(f"shared memory is left: {arenas_of(gateway)}")
        if list(Path(folder).rglob("*.sock")):
            seen.faults.append("sockets are left")
        seen.faults += [f"the log has {word!r}" for word in _BAD_WORDS if word in stack.log]
    return seen


def problems(seen: Seen, plan: Plan) -> list[str]:
    """All that is wrong, in words; empty: the run is a success."""
    found = [*seen.faults, *Books(seen.page).mistakes(seen.told)]
    if not seen.told["OK"]:
        found.append("no caller got a picture")
    if not seen.num_killed or not seen.num_cancelled or not seen.num_left:
        found.append("the run was too short for a cancel, a lost caller and a killed worker")
    for name, unit, figure in trends(seen, plan):
        if not figure.is_flat:
            found.append(f"{unit} of {name} rose by {figure.rise:.3g}, may rise by {figure.bound:.3g}")
    return found


def trends(seen: Seen, plan: Plan) -> list[tuple[str, str, Trend]]:
    """Of each process that has lived long enough: its name, what is told of it, and how that went after the warm-up."""
    watched_s = plan.seconds * (1 - WARM_SHARE)
    rows = []
    for series in seen.processes.values():
        warm = [i for i, at in enumerate(series.times) if at >= plan.seconds * WARM_SHARE]
        if not warm or series.times[-1] - series.times[warm[0]] < watched_s * LIVED_SHARE:
            continue
        times = [series.times[i] for i in warm]
        if watched_s >= WATCHED_S:
            rows.append((series.name, "bytes", trend(times, [series.bytes[i] for i in warm], BYTES)))
        rows.append((series.name, "open files", trend(times, [series.files[i] for i in warm], FILES)))
    return rows


def report(seen: Seen, plan: Plan) -> str:
    """What a person wants to know of a run."""
    books = Books(seen.page)
    told = ", ".join(f"{count} {status}" for status, count in seen.told.most_common())
    ended = ", ".join(f"{count} {outcome}" for outcome, count in books.outcomes.most_common())
    lines = [
        f"{plan.seconds / 60:g} minutes, {plan.callers} callers, {plan.workers} workers",
        f"callers who stayed were told: {told}",
        f"calls cancelled: {seen.num_cancelled}, connections closed: {seen.num_left}; "
        f"workers killed: {seen.num_killed}",
        f"jobs submitted: {books.submitted} = {books.refused} refused, {ended}",
    ]
    for name, unit, figure in trends(seen, plan):
        scale, shown = (2**20, "MiB") if unit == "bytes" else (1, unit)
        first, last, rise, bound = (value / scale for value in (figure.first, figure.last, figure.rise, figure.bound))
        lines.append(f"{name:<10} {first:8.1f} -> {last:8.1f} {shown}; slope x time {rise:.2f}, bound {bound:.2f}")
    return "\n".join(lines)


async def _every(seconds: float, end: float, action: Callable[[], Awaitable[None]]) -> None:
    """Does something again and again, and waits for it."""
    while time.monotonic() + seconds < end:
        await asyncio.sleep(seconds)
        await action()


def _request(dice: random.Random) -> pb.EditRequest:
    tier, steps = dice.choice([("free", 3), ("free", dice.randint(1, 8)), ("pro", dice.randint(8, 40))])
    return pb.EditRequest(
        image=pb.Image(encoded=portrait()),
        instruction="put on sunglasses",
        tier=tier,
        steps=steps,
        seed=dice.getrandbits(60),
        preview_every=dice.choice([0, 0, 2]),
        output_format=dice.choice([pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_RAW]),
    )


def _start(stub: Any, dice: random.Random) -> Any:
    return dice.choice([stub.Edit, stub.EditStream])(_request(dice), timeout=CALL_S)


async def _status(call: Any) -> str:
    try:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def _call(address: str, dice: random.Random, seen: Seen, end: float) -> None:
    """Requests of one caller, each after the last."""
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = ImageServiceStub(channel)
        while time.monotonic() < end:
            seen.told[await _status(_start(stub, dice))] += 1


async def _cancel(stub: Any, dice: random.Random, seen: Seen) -> None:
    call = _start(stub, dice)
    ending = asyncio.ensure_future(_status(call))
    await asyncio.sleep(dice.uniform(0.0, 0.2))
    call.cancel()
    await asyncio.wait({ending})
    seen.num_cancelled += 1


async def _leave(address: str, dice: random.Random, seen: Seen) -> None:
    channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    endings = [asyncio.ensure_future(_status(_start(ImageServiceStub(channel), dice))) for _ in range(3)]
    await asyncio.sleep(dice.uniform(0.0, 0.3))
    await channel.close()
    await asyncio.wait(endings)
    seen.num_left += 1


async def _kill(stack: Stack, dice: random.Random, seen: Seen) -> None:
    names = sorted(name for name in stack.pids() if name.startswith("worker-") and name != _KEPT)
    with suppress(KeyError, ProcessLookupError):  # it has ended meanwhile
        if names:
            stack.kill_service(dice.choice(names))
            seen.num_killed += 1


async def _look(stack: Stack, seen: Seen) -> None:
    await asyncio.to_thread(_look_at_processes, stack, seen)


def _look_at_processes(stack: Stack, seen: Seen) -> None:
    for name, pid in {"up": stack.pid, **stack.pids()}.items():
        with suppress(OSError):  # it has ended meanwhile
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
            num_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            series = seen.processes.setdefault(pid, Series(name))
            series.times.append(time.monotonic() - seen.began)
            series.bytes.append(resident)
            series.files.append(num_files)


def _is_quiet(status: batcher_pb.StatusResponse) -> bool:
    return all(worker.is_up and worker.slots_used == worker.ticks_in_flight == 0 for worker in status.workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 where all is well, 1 where something is wrong, 3 where the services do not come up."""
    parser = argparse.ArgumentParser(prog="python -m steploom_loadtest.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long requests come; default: 20")
    parser.add_argument("--kill-every", type=float, default=Plan.kill_every_s, metavar="S", help="default: %(default)s")
    given = parser.parse_args(arguments)
    plan = Plan(60 * given.minutes, kill_every_s=given.kill_every)
    try:
        seen = run(plan)
    except StackError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 3
    print(report(seen, plan))
    found = problems(seen, plan)
    for problem in found:
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
