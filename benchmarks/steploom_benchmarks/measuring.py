"""One peer under one load: the sweep of its settings, then the figures with the best of them."""

from __future__ import annotations

import asyncio
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from steploom_benchmarks.driving import Timings, check_answers, drive
from steploom_benchmarks.loads import Load
from steploom_benchmarks.peers import Peer, Setting
from steploom_benchmarks.process_tree import Usage
from steploom_benchmarks.server_process import ServerError, ServerProcess

_CHECK_ROUNDS = 4
_LATE_SHARE = 0.02  # of an open loop's requests that may fail before a setting does not keep up


@dataclass(frozen=True)
class Figures:
    """What one server did with one setting. Latencies are of good answers; NaN: none."""

    setting: str
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_s_per_1000: float  # user and system, of all its processes
    client_cpu_s_per_1000: float
    mean_batch: float  # NaN: it does not batch
    memory_mb: float
    processes: int
    answers: int
    errors: int
    first_error: str = ""


@dataclass(frozen=True)
class Comparison:
    """One peer, one load."""

    peer: str
    load: str
    best: Figures
    sweep: list[Figures] = field(default_factory=list)


@dataclass(frozen=True)
class Times:
    """How long is measured."""

    warm_s: float = 1.0
    seconds: float = 5.0
    sweep_s: float = 1.5


def compare(peer: Peer, load: Load, times: Times, sweeps: bool, say: Callable[[str], None]) -> Comparison:
    """Tries the settings for a short time each, then measures the best.

    Raises:
        ServerError: a server did not come up.
        WrongAnswer: answers are wrong.
        CallError: it answers nothing.
    """
    settings = peer.settings(load)
    tried = []
    if sweeps and len(settings) > 1:
        working = []
        for setting in settings:
            say(f"{peer.name}, {load.name}: trying {setting}")
            try:
                tried.append(measure(peer, load, setting, times.warm_s / 2, times.sweep_s))
            except ServerError as error:  # a setting that does not come up is none to choose
                say(str(error))
                continue
            working.append(setting)
        if working:
            settings = [working[best_of(load, tried)]]
    say(f"{peer.name}, {load.name}: {settings[0]}")
    return Comparison(peer.name, load.name, measure(peer, load, settings[0], times.warm_s, times.seconds), tried)


def best_of(load: Load, tried: list[Figures]) -> int:
    """The most answers a second of a closed loop; of an open one the lowest p99 among those that keep up."""
    if not load.is_open:
        return max(range(len(tried)), key=lambda at: tried[at].requests_per_s)

    def lateness(at: int) -> tuple[bool, float]:
        one = tried[at]
        return one.errors > _LATE_SHARE * (one.answers + one.errors), one.p99_ms

    return min(range(len(tried)), key=lateness)


def measure(peer: Peer, load: Load, setting: Setting, warm_s: float, seconds: float) -> Figures:
    """Starts a server, checks its answers, measures, ends it."""
    directory = Path(tempfile.mkdtemp(prefix="steploom-peer-"))
    try:
        with ServerProcess(peer, load, setting, directory) as server:
            return asyncio.run(_measure(server, load, setting, warm_s, seconds))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _measure(server: ServerProcess, load: Load, setting: Setting, warm_s: float, seconds: float) -> Figures:
    payloads = load.payloads()
    caller = server.caller(payloads)
    marks: list[tuple[Usage, tuple[int, int], float]] = []
    try:
        await server.wait_ready(caller, payloads[0])
        for _ in range(_CHECK_ROUNDS):
            await check_answers(caller, payloads)
        timings = await drive(
            caller,
            load,
            payloads,
            warm_s,
            seconds,
            lambda: marks.append((server.usage(), server.batches(), own_cpu_s())),
        )
    finally:
        await caller.close()
    (used, ran, ours), (used_then, ran_then, ours_then) = marks
    return figures(
        str(setting),
        timings,
        server_cpu_s=used_then.cpu_s - used.cpu_s,
        client_cpu_s=ours_then - ours,
        batches=(ran_then[0] - ran[0], ran_then[1] - ran[1]),
        usage=used_then,
    )


def figures(
    setting: str, timings: Timings, server_cpu_s: float, client_cpu_s: float, batches: tuple[int, int], usage: Usage
) -> Figures:
    """From what was counted."""
    answers = len(timings.latencies_s)
    return Figures(
        setting=setting,
        requests_per_s=answers / timings.seconds,
        p50_ms=1000 * percentile(timings.latencies_s, 0.50),
        p99_ms=1000 * percentile(timings.latencies_s, 0.99),
        server_cpu_s_per_1000=1000 * server_cpu_s / answers if answers else float("nan"),
        client_cpu_s_per_1000=1000 * client_cpu_s / answers if answers else float("nan"),
        mean_batch=batches[1] / batches[0] if batches[0] else float("nan"),
        memory_mb=usage.memory_mb,
        processes=usage.processes,
        answers=answers,
        errors=timings.errors,
        first_error=timings.first_error,
    )


def percentile(values: list[float], share: float) -> float:
    """The smallest of them that `share` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else float("nan")


def own_cpu_s() -> float:
    """What this process, which sends the load, has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
