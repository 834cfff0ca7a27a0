"""From a light load to twice the capacity, simulated: who still gets a picture in time, by policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Key, Stage, WorkerProfile
from steploom_loadtest.bench.outcome import Bar, Options, Outcome
from steploom_loadtest.cost_tables import linear
from steploom_loadtest.report import LoadReport, records_of, summarize
from steploom_loadtest.simulator import Device, simulate
from steploom_loadtest.traces import MIXES, RequestClass, poisson

NAME = "overload"
LOADS = (0.3, 0.6, 0.8, 0.9, 1.0, 1.2, 2.0)  # of what full ticks could do
DURATION_S = 900.0

# Seconds of a tick, and seconds more for each row or job in it: a small model on two cores.
COSTS = linear(encode=(0.015, 0.045), denoise=(0.012, 0.018), decode=(0.010, 0.060))


def run(options: Options) -> Outcome:
    """The same traces under both policies, in virtual time."""
    mix = MIXES[options.mix]
    rate = _capacity(mix)
    rows = " and ".join(f"{kind.steps} steps of {kind.rows}" for kind in mix)
    title = f"9:1 mix of {rows} rows, simulated; capacity {rate:.2f} requests/s"
    table = Table(title=title, title_justify="left")
    for name in ("load", "policy", "3 in time", "35 in time", "p50 of 3, s", "p95 of 3, s", "rows/tick"):
        table.add_column(name, justify="right")
    figures: dict[str, Any] = {"mix": options.mix, "capacity_per_s": rate, "duration_s": DURATION_S}
    in_time: dict[tuple[float, str], float] = {}
    for load in LOADS:
        options.say(f"{NAME}: {load:.0%} of capacity")
        for policy in ("step", "request"):
            report, mean_rows = _simulated(mix, policy, load * rate, options.seed)
            few, many = report.of(3), report.of(35)
            in_time[load, policy] = report.goodput
            figures[f"{policy} {load}"] = {"rows_per_tick": mean_rows, **asdict(report)}
            shares = [f"{kind.good / max(1, kind.sent):.1%}" for kind in (few, many)]
            table.add_row(f"{load:.0%}", policy, *shares, f"{few.p50_s:.2f}", f"{few.p95_s:.2f}", f"{mean_rows:.1f}")
    worst = min(in_time[load, "step"] / in_time[load, "request"] for load in LOADS)
    bar = Bar("goodput under step, as a share of that under request, at the worst load:", worst, 0.99, at_most=False)
    return Outcome(NAME, figures, [table], [bar])


def _capacity(mix: Sequence[RequestClass]) -> float:
    """Requests of the mix a second if every tick ran at its cheapest cost per row."""
    cheapest = {stage: min(seconds / bucket for bucket, seconds in costs.items()) for stage, costs in COSTS.items()}
    total = sum(kind.weight for kind in mix)
    rows = sum(kind.weight * kind.steps * kind.rows for kind in mix) / total
    return 1.0 / (cheapest[Stage.ENCODE] + rows * cheapest[Stage.DENOISE] + cheapest[Stage.DECODE])


def _simulated(mix: Sequence[RequestClass], policy: str, rate: float, seed: int) -> tuple[LoadReport, float]:
    trace = poisson(mix, rate, DURATION_S, seed)
    device = Device(WorkerProfile("worker", Key("model", (4, 32, 32)), 32, COSTS))
    simulation = simulate(SchedulerConfig(policy=policy), [device], trace)
    return summarize(records_of(simulation)), simulation.stats.mean_rows_per_tick
