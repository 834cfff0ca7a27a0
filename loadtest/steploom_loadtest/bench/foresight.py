"""The simulator against the live service on the same traces: how near its throughput and latencies are."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Stage, StageCosts
from steploom_loadtest.bench.outcome import Bar, Options, Outcome
from steploom_loadtest.bench.settings import model_tables
from steploom_loadtest.cost_tables import CostTable, DeviceCosts
from steploom_loadtest.live import Load, run_live
from steploom_loadtest.measured_costs import mean_costs, table_of
from steploom_loadtest.open_loop import run_closed_loop
from steploom_loadtest.report_figures import figures
from steploom_loadtest.report_model import Report
from steploom_loadtest.services import Watch
from steploom_loadtest.simulated import SimulatedLoad, Site, run_simulated
from steploom_loadtest.stack import Stack, running
from steploom_loadtest.target import Target
from steploom_loadtest.traces import MIXES, Arrival, RequestClass, patient, poisson

NAME = "foresight"
MAX_THROUGHPUT_ERROR = 0.05
MAX_P95_ERROR = 0.10
ROUNDS = 3  # traces, each with a seed of its own
PERCENTILES = ("p50", "p95")

_CALLERS = 24  # that keep the engine busy until the batcher's estimates have settled
_WARM_S = 12.0


@dataclass(frozen=True)
class Round:
    """One trace: what came of it, and what would have by two tables of costs."""

    live: Report
    before: Report  # simulated with what the batcher believed before the trace
    behind: Report  # simulated with the mean of the ticks that the trace had


def run(options: Options) -> Outcome:
    """Warms up, then sends each trace to the service and through the simulator."""
    mix = MIXES[options.mix]
    rounds = []
    with running(options.directory, model_tables(options), ready_s=180.0) as stack:
        options.say(f"{NAME}: {_CALLERS} callers for {_WARM_S:.0f} s, for the batcher's estimates")
        kinds = [patient(kind) for kind in mix for _ in range(kind.weight)]
        asyncio.run(run_closed_loop(stack.gateway, kinds, _CALLERS, _WARM_S))
        for number in range(ROUNDS):
            stack.wait_until(lambda status: all(worker.slots_used == 0 for worker in status.workers), 60.0)
            costs = _costs(stack)
            rate = options.load / _busy_s(mix, costs.devices[0].seconds)
            trace = poisson(mix, rate, options.seconds, options.seed + number)
            options.say(f"{NAME}: {len(trace)} requests at {rate:.2f}/s, {number + 1} of {ROUNDS}")
            rounds.append(_round(stack, costs, trace, rate, options.seconds))
    return _outcome(options, rounds)


def _costs(stack: Stack) -> CostTable:
    table = table_of(stack.status(), "the service's own estimates")
    assert table is not None
    return table


def _busy_s(mix: Sequence[RequestClass], costs: StageCosts) -> float:
    """Device seconds of a request of the mix where every tick is full."""
    row_s = {stage: min(seconds / bucket for bucket, seconds in table.items()) for stage, table in costs.items()}
    total = sum(kind.weight for kind in mix)
    rows = sum(kind.weight * kind.steps * kind.rows for kind in mix) / total
    return row_s[Stage.ENCODE] + rows * row_s[Stage.DENOISE] + row_s[Stage.DECODE]


def _round(stack: Stack, costs: CostTable, trace: Sequence[Arrival], rate: float, seconds: float) -> Round:
    load = Load(trace, rate, seconds)
    live = asyncio.run(run_live(Target(stack.gateway), load, Watch(batcher=stack.batcher)))
    device = costs.devices[0]
    seen = DeviceCosts(device.name, device.slots, mean_costs(live.ticks, device.seconds))
    simulated = SimulatedLoad(trace, rate, seconds)
    before, behind = (
        run_simulated(Site(SchedulerConfig(), CostTable("", [item]), 1), simulated) for item in (device, seen)
    )
    return Round(live, before, behind)


def _outcome(options: Options, rounds: Sequence[Round]) -> Outcome:
    found = [{name: _figures(report) for name, report in vars(item).items()} for item in rounds]
    names = list(found[0]["live"])
    title = f"{ROUNDS} traces of {options.seconds:.0f} s at {options.load:.0%} of full ticks, live and simulated"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    for number in range(ROUNDS):
        for column in (f"live {number + 1}", "foreseen", "with its ticks"):
            table.add_column(column, justify="right")
    for name in names:
        cells = []
        for item in found:
            live = item["live"][name]
            ratios = [item[kind][name] / max(1e-9, live) - 1.0 for kind in ("before", "behind")]
            cells += [f"{live:.3f}", *(f"{ratio:+.1%}" for ratio in ratios)]
        table.add_row(name, *cells)
    errors = {
        name: statistics.median(abs(item["behind"][name] / max(1e-9, item["live"][name]) - 1.0) for item in found)
        for name in names
    }
    bars = [
        Bar("throughput, median error of the rounds:", errors["pictures/s"], MAX_THROUGHPUT_ERROR),
        *(
            Bar(f"{name}, median error of the rounds:", errors[name], MAX_P95_ERROR)
            for name in names
            if name.startswith("p95")
        ),
    ]
    told: dict[str, Any] = {"engine": options.engine, "mix": options.mix, "load": options.load, "rounds": found}
    return Outcome(NAME, told, [table], bars)


def _figures(report: Report) -> Mapping[str, float]:
    found = figures(report)
    told = {"pictures/s": found.achieved_rate}
    if found.devices:
        told["rows a tick"] = found.devices.rows_per_tick
    elif report.ticks:
        rows = [tick.rows for tick in report.ticks if tick.stage == "denoise"]
        told["rows a tick"] = sum(rows) / max(1, len(rows))
    for tier in found.tiers:
        told |= {f"{name} {tier.tier}, s": tier.percentiles_s[name] for name in PERCENTILES}
    return told
