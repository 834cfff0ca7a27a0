"""How far one batcher goes, and what many of them do, simulated with an H100's costs: what breaks first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from steploom_batcher.config import SchedulerConfig
from steploom_loadtest.bench.outcome import Options, Outcome
from steploom_loadtest.cost_tables import read_table
from steploom_loadtest.fleet import LEAST_LOADED, ROUND_ROBIN, TWO_CHOICES
from steploom_loadtest.report_figures import figures
from steploom_loadtest.simulated import SimulatedLoad, Site, run_simulated
from steploom_loadtest.traces import MIXES, poisson

NAME = "capacity"
COSTS = "h100"
RATE = 26.4  # requests of the mix a second for each device: 80 % of what full ticks could do
SECONDS = 20.0  # of each trace
# CPU seconds of the batcher's process for a request and for a tick: what fits the control plane's table best, see
# docs/capacity.md
REQUEST_S, TICK_S = 0.00067, 0.00033


@dataclass(frozen=True)
class Case:
    """A site that is simulated."""

    nodes: int
    workers: int  # of each
    spread: str = ROUND_ROBIN


CASES = (
    *(Case(1, workers) for workers in (1, 2, 4, 8, 16, 32, 64)),
    *(Case(nodes, 4, spread) for nodes, spread in ((2, ROUND_ROBIN), (2, LEAST_LOADED))),
    *(Case(8, 8, spread) for spread in (ROUND_ROBIN, TWO_CHOICES, LEAST_LOADED)),
)


def run(options: Options) -> Outcome:
    """One batcher with more and more workers, then several."""
    figures_of: dict[str, Any] = {"costs": COSTS, "rate_of_a_device": RATE, "mix": options.mix}
    table = Table(title=f"{RATE} requests/s for each device, {SECONDS:.0f} s of them, mix {options.mix}, costs {COSTS}")
    heads = ("hosts x workers", "spread", "requests/s", "in time", "p50 free", "p99 free", "p50 pro", "p99 pro")
    for head in (*heads, "ticks/s", "µs a request", "µs a tick", "batcher's core"):
        table.add_column(head, justify="right")
    for case in CASES:
        options.say(f"{NAME}: {case.nodes} hosts of {case.workers} workers, {case.spread}")
        found = _measured(case, options)
        figures_of[f"{case.nodes}x{case.workers} {case.spread}"] = found
        table.add_row(*_cells(case, found))
    return Outcome(NAME, figures_of, [table])


def _measured(case: Case, options: Options) -> dict[str, Any]:
    site = Site(SchedulerConfig(), read_table(COSTS), case.workers, case.nodes, case.spread)
    rate = RATE * case.nodes * case.workers
    load = SimulatedLoad(poisson(MIXES[options.mix], rate, SECONDS, options.seed), rate, SECONDS)
    began = time.thread_time()
    report = run_simulated(site, load)
    cpu_s = time.thread_time() - began
    found = figures(report)
    ticks = sum(stage.ticks for stage in report.work.stages.values()) if report.work else 0
    return {
        "rate": rate,
        "in_time": sum(tier.in_time for tier in found.tiers) / found.sent,
        "tiers": {tier.tier: dict(tier.percentiles_s) for tier in found.tiers},
        "ticks_per_s": ticks / found.seconds,
        "us_a_request": 1e6 * cpu_s / found.sent,
        "us_a_tick": 1e6 * cpu_s / max(1, ticks),
        "batcher_core": (found.sent * REQUEST_S + ticks * TICK_S) / found.seconds / case.nodes,
    }


def _cells(case: Case, found: dict[str, Any]) -> Sequence[str]:
    tiers = found["tiers"]
    return (
        f"{case.nodes} x {case.workers}",
        case.spread if case.nodes > 1 else "",
        f"{found['rate']:.0f}",
        f"{found['in_time']:.1%}",
        *(f"{tiers[tier][name]:.3f} s" for tier in ("free", "pro") for name in ("p50", "p99")),
        f"{found['ticks_per_s']:.0f}",
        f"{found['us_a_request']:.0f}",
        f"{found['us_a_tick']:.0f}",
        f"{found['batcher_core']:.0%}",
    )
