"""The `step` policy against `request` on the same trace, on the same machine, in the same run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from steploom_loadtest.bench.outcome import Bar, Options, Outcome
from steploom_loadtest.bench.settings import model_tables
from steploom_loadtest.open_loop import run_closed_loop, run_open_loop
from steploom_loadtest.report import LoadReport, summarize, table
from steploom_loadtest.stack import Stack, running
from steploom_loadtest.traces import MIXES, Arrival, RequestClass, patient, poisson

NAME = "policies"
MAX_SHARE = 1 / 3  # of the p95 latency of few steps under `request`
MIN_THROUGHPUT = 0.98  # of that under `request`: of one trace, but for its last requests

_CALLERS = 24  # that keep the engine busy while capacity is measured
_WINDOWS = 4  # in which capacity is measured
_WARM_S = 4.0  # until the mix of jobs in the slots is that of the requests


def run(options: Options) -> Outcome:
    """Finds the capacity, then runs one trace under both policies."""
    mix = MIXES[options.mix]
    with _stack(options, "step") as stack:
        options.say(f"{NAME}: capacity of the 9:1 mix, {options.seconds / 2 + _WARM_S:.0f} s")
        capacity = _capacity(stack, mix, options.seconds / 2)
        rate = options.load * capacity
        trace = poisson(mix, rate, options.seconds, options.seed)
        options.say(
            f"{NAME}: {capacity:.2f} requests/s; {len(trace)} requests at {options.load:.0%} of it, policy step"
        )
        step = _load(stack, trace)
    with _stack(options, "request") as stack:
        options.say(f"{NAME}: the same trace, policy request")
        request = _load(stack, trace)
    return _outcome(options, capacity, len(trace), {"step": step, "request": request})


def _stack(options: Options, policy: str) -> Any:
    return running(options.directory / policy, model_tables(options, policy=policy), ready_s=180.0)


def _capacity(stack: Stack, mix: Sequence[RequestClass], seconds: float) -> float:
    """Requests of the mix a second when there is always more to do, from the rows that were computed.

    The best of some windows: what else runs on the machine for a moment is no limit of the service.
    """
    kinds = [patient(kind) for kind in mix for _ in range(kind.weight)]
    rows_a_request = sum(kind.steps * kind.rows for kind in kinds) / len(kinds)

    async def measure() -> float:
        load = asyncio.create_task(run_closed_loop(stack.gateway, kinds, _CALLERS, _WARM_S + seconds))
        await asyncio.sleep(_WARM_S)
        rates = [await _rows_a_second(stack, seconds / _WINDOWS) for _ in range(_WINDOWS)]
        await load
        return max(rates) / rows_a_request

    return asyncio.run(measure())


async def _rows_a_second(stack: Stack, seconds: float) -> float:
    clock = asyncio.get_running_loop().time
    before, began = await asyncio.to_thread(stack.status), clock()
    await asyncio.sleep(seconds)
    after, ended = await asyncio.to_thread(stack.status), clock()
    return (after.rows - before.rows) / (ended - began)


def _load(stack: Stack, trace: Sequence[Arrival]) -> LoadReport:
    stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0)
    return summarize(asyncio.run(run_open_loop(stack.gateway, trace)))


def _outcome(options: Options, capacity: float, count: int, reports: Mapping[str, LoadReport]) -> Outcome:
    few, many = MIXES[options.mix]
    step, request = reports["step"], reports["request"]
    share = step.of(few.steps).p95_s / max(1e-9, request.of(few.steps).p95_s)
    throughput = step.throughput / max(1e-9, request.throughput)
    figures = {
        "engine": options.engine,
        "mix": options.mix,
        "capacity_per_s": capacity,
        "requests": count,
        "load": options.load,
        "p95_share_of_few_steps": share,
        "throughput_ratio": throughput,
        **{name: asdict(report) for name, report in reports.items()},
    }
    bars = (
        Bar(f"p95 of {few.steps} steps under step, as a share of that under request:", share, MAX_SHARE),
        Bar("throughput under step, as a share of that under request:", throughput, MIN_THROUGHPUT, at_most=False),
    )
    steps = " and ".join(f"{kind.steps} steps of {kind.rows}" for kind in (few, many))
    title = f"9:1 mix of {steps} rows at {options.load:.0%} of {capacity:.2f} requests/s"
    tables = [table(report, f"policy {name}: {title}") for name, report in reports.items()]
    return Outcome(NAME, figures, [*tables, _comparison(reports, (few, many))], bars)


def _comparison(reports: Mapping[str, LoadReport], kinds: Sequence[RequestClass]) -> Table:
    result = Table(title="step beside request", title_justify="left")
    result.add_column("figure")
    for name in (*reports, "ratio"):
        result.add_column(name, justify="right")
    for kind in kinds:
        for field in ("p50_s", "p95_s", "p99_s"):
            figures = [getattr(report.of(kind.steps), field) for report in reports.values()]
            result.add_row(f"{field.removesuffix('_s')} {kind.steps} steps, s", *_with_ratio(*figures))
    result.add_row("pictures/s", *_with_ratio(*(report.throughput for report in reports.values())))
    return result


def _with_ratio(step: float, request: float) -> tuple[str, str, str]:
    return f"{step:.3f}", f"{request:.3f}", f"{step / max(1e-9, request):.2f}"
