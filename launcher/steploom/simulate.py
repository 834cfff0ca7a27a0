"""`steploom simulate`: a load on simulated workers, and its report."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console

from steploom.exit_codes import CommandError, ExitCode
from steploom_batcher.config import SchedulerConfig
from steploom_loadtest.cost_tables import CostTable, TableError, read_table
from steploom_loadtest.mix import Wishes, WrongOption, read_by_tier, read_mix, words_of
from steploom_loadtest.report_figures import figures
from steploom_loadtest.report_files import write_report
from steploom_loadtest.report_model import Point, Report
from steploom_loadtest.report_table import tables
from steploom_loadtest.simulated import SimulatedLoad, Site, run_simulated, trace_with_rows, with_rows
from steploom_loadtest.sweep import SweepPlan, sweep
from steploom_loadtest.trace_file import WrongTrace, read_trace
from steploom_loadtest.traces import Arrival, RequestClass, bursty, poisson, steady

MAX_REQUESTS = 5_000_000  # of a run: they are all held in memory
_SECONDS = 60.0
_WIDTH = 132  # of tables that go into a file or a pipe
_MAX_ROWS = 3  # of a step: the scheduler knows no more branches


@dataclass(frozen=True)
class Plan:
    """What serves and what is asked for, as options say it."""

    config: SchedulerConfig
    costs: str  # name or file of a table
    workers: int | None  # of a host; None: as many as the table has
    nodes: int
    spread: str
    mix: str
    wishes: Wishes
    rows: str  # of a step, for all tiers or by tier; empty: by adapter
    arrivals: str
    cv: float
    seed: int
    price: float | None = None

    @cached_property
    def table(self) -> CostTable:
        """Of the workers.

        Raises:
            CommandError: there is none of that name, or it is wrong.
        """
        try:
            return read_table(self.costs)
        except TableError as error:
            raise CommandError(f"--costs: {error}", ExitCode.USAGE) from None

    @cached_property
    def site(self) -> Site:
        """What serves.

        Raises:
            CommandError: the table does not go with the settings.
        """
        try:
            workers = self.workers or len(self.table.devices)
            return Site(self.config, self.table, workers, self.nodes, self.spread)
        except WrongOption as error:
            raise CommandError(str(error), ExitCode.USAGE) from None

    def rows_of(self, tiers: Sequence[str]) -> Mapping[str, int]:
        """Rows of a step that were asked for, of these tiers.

        Raises:
            CommandError: the option is wrong.
        """
        try:
            return read_by_tier("--rows", self.rows, tiers, 1, _MAX_ROWS)
        except WrongOption as error:
            raise CommandError(str(error), ExitCode.USAGE) from None

    @cached_property
    def classes(self) -> Sequence[RequestClass]:
        """Of the mix, with their rows.

        Raises:
            CommandError: an option is wrong.
        """
        try:
            mix = read_mix(self.mix, self.wishes, self.config.tiers)
            return with_rows(mix, self.config.tiers, self.rows_of([kind.tier for kind in mix]))
        except WrongOption as error:
            raise CommandError(str(error), ExitCode.USAGE) from None

    def trace(self, rate: float, seconds: float) -> list[Arrival]:
        """Arrivals of the mix.

        Raises:
            CommandError: they are too many.
        """
        if rate * seconds > MAX_REQUESTS:
            problem = f"{rate:g}/s for {seconds:g} s are {rate * seconds:.0f} requests, must be at most {MAX_REQUESTS}"
            raise CommandError(f"--rate: {problem}", ExitCode.USAGE)
        if self.arrivals == "bursty":
            return bursty(self.classes, rate, seconds, self.cv, self.seed)
        make = steady if self.arrivals == "steady" else poisson
        return make(self.classes, rate, seconds, self.seed)

    @property
    def told(self) -> dict[str, str]:
        """What serves, as reports show it."""
        site = self.site
        hosts = f"{site.nodes} hosts, requests {site.spread}" if site.nodes > 1 else "one host"
        names = dict.fromkeys(device.name for device in site.costs.workers(site.workers))
        return {
            "workers": f"{site.workers} of {', '.join(names)}; {hosts}",
            "costs": f"{self.costs}: {site.costs.source}",
            "policy": site.config.policy,
        }

    @property
    def told_of_mix(self) -> dict[str, str]:
        """What is asked for, as reports show it."""
        told = {"mix": words_of(self.classes), "arrivals": self.arrivals, "seed": str(self.seed)}
        if self.arrivals == "bursty":
            told["coefficient of variation"] = f"{self.cv:g}"
        for kind in self.classes:
            cancels = (
                f", {kind.cancel_share:.0%} cancelled within {kind.cancel_within_s:g} s" if kind.cancel_share else ""
            )
            told[f"{kind.tier} {kind.steps} steps"] = f"{kind.rows} rows, deadline {kind.deadline_s:g} s{cancels}"
        return told


def run_simulate(
    plan: Plan,
    *,
    rate: float | None,
    seconds: float | None,
    has_sweep: bool,
    trace: Path | None,
    speed: float,
    has_ticks: bool,
    require_in_time: float | None,
    out: Path | None,
    is_quiet: bool,
) -> ExitCode:
    """Simulates, prints the tables and writes the files that were asked for.

    Raises:
        CommandError: an option or a file is wrong, nothing got a picture, or too little was in time.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=max(_WIDTH, int(os.environ.get("COLUMNS", "0") or 0)))
    try:
        with Console(stderr=True).status("simulating"):
            if has_sweep:
                report = _swept(plan, rate, seconds, is_quiet)
            elif trace is not None:
                report = _of_file(plan, trace, speed, seconds, has_ticks)
            else:
                assert rate is not None
                report = _one(plan, rate, seconds or _SECONDS, has_ticks)
    except KeyboardInterrupt:
        raise CommandError("interrupted", ExitCode.INTERRUPTED) from None
    if not is_quiet:
        for table in tables(report):
            console.print(table)
            console.print()
    if out is not None:
        _write(report, out, console)
    return _verdict(report, require_in_time)


def _one(plan: Plan, rate: float, seconds: float, has_ticks: bool) -> Report:
    trace = plan.trace(rate, seconds)
    if not trace:
        raise CommandError(f"no request falls into {seconds:g} s", ExitCode.USAGE, "give a longer --seconds")
    told = plan.told | plan.told_of_mix | {"rate": f"{rate:g} requests/s", "seconds": f"{seconds:g}"}
    load = SimulatedLoad(trace, rate, seconds, _title(plan), told, plan.seed, plan.price, has_ticks)
    return run_simulated(plan.site, load)


def _of_file(plan: Plan, path: Path, speed: float, seconds: float | None, has_ticks: bool) -> Report:
    tiers = plan.config.tiers
    try:
        trace = read_trace(path, tiers, speed)
        trace = trace_with_rows(trace, tiers, plan.rows_of(list(dict.fromkeys(item.tier for item in trace))))
    except (WrongTrace, WrongOption) as error:
        raise CommandError(f"--trace: {error}", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"--trace: {path} cannot be read: {error.strerror}", ExitCode.USAGE) from None
    trace = [item for item in trace if seconds is None or item.at < seconds]
    if not trace:
        raise CommandError(f"no request falls into {seconds:g} s", ExitCode.USAGE, "give a longer --seconds")
    length_s = seconds or max(trace[-1].at, 1e-3)
    told = plan.told | {"trace": str(path), "speed": f"{speed:g}"}
    load = SimulatedLoad(trace, len(trace) / length_s, length_s, _title(plan), told, plan.seed, plan.price, has_ticks)
    return run_simulated(plan.site, load)


def _swept(plan: Plan, rate: float | None, seconds: float | None, is_quiet: bool) -> Report:
    """The rates that a live sweep would try."""
    limits = SweepPlan(
        first=rate or float(plan.site.workers * plan.nodes),
        highest=1_000_000.0,
        precision=0.05,
        seconds=seconds or _SECONDS,
        max_seconds=max(seconds or 0.0, 10 * _SECONDS),
        samples=200,
    )

    async def measure(at: float) -> Report:
        return _one(plan, at, limits.length_s(at, plan.classes), False)

    def said(point: Point) -> None:
        if is_quiet:
            return
        held = ", ".join(f"{tier.tier} {tier.in_time:.1%}{'' if tier.holds else ' no'}" for tier in point.tiers)
        Console(stderr=True).print(f"{point.rate:10.2f}/s: {held}", highlight=False)

    best, found = asyncio.run(sweep(measure, limits, said))
    assert best is not None
    return replace(best, sweep=found)


def _title(plan: Plan) -> str:
    return f"simulated load on {plan.site.workers * plan.nodes} workers"


def _write(report: Report, folder: Path, console: Console) -> None:
    try:
        paths = write_report(report, folder)
    except OSError as error:
        raise CommandError(
            f"--out: cannot write {error.filename or folder}: {error.strerror}", ExitCode.USAGE
        ) from None
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


def _verdict(report: Report, bound: float | None) -> ExitCode:
    found = figures(report)
    if not found.done:
        raise CommandError(f"no request got a picture: {found.refused or found.statuses}", ExitCode.FAILED)
    late = [tier for tier in found.tiers if bound is not None and tier.in_time_share < bound]
    if late and bound is not None:
        told = ", ".join(f"{tier.tier} {tier.in_time_share:.2%}" for tier in late)
        raise CommandError(f"in time: {told}; --require-in-time asks for {bound:.2%}", ExitCode.FAILED)
    return ExitCode.OK
