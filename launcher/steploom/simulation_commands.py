"""`steploom simulate`, `steploom tune` and `steploom costs`, with their options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from steploom.exit_codes import CommandError, ExitCode
from steploom.load_commands import (
    BY_TIER,
    Adapter,
    Arrivals,
    Cancel,
    CancelWithin,
    Deadline,
    HowArrivals,
    Mix,
    Price,
    Quiet,
    Seed,
    Steps,
    Variation,
)
from steploom.options import ConfigFile, RuntimeFolder, configuration, runtime_folder


class Spread(StrEnum):
    """By which rule requests get to hosts."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    TWO_CHOICES = "two-choices"


Costs = Annotated[
    str, typer.Option(help="What ticks take: a file that `steploom costs` wrote, or a table that comes along.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Workers of a host; default: as many as the table has.")
]
Nodes = Annotated[int, typer.Option(min=1, max=10_000, help="Hosts, each with a batcher and its workers.")]
SpreadRule = Annotated[Spread, typer.Option(help="By which rule requests get to hosts.")]
Rows = Annotated[
    str,
    typer.Option(help=f"UNet rows of a step, {BY_TIER}; default: 1 where an adapter draws it, else 3."),
]


def register(app: typer.Typer) -> None:
    """Puts the commands on the command line."""
    app.command("simulate")(simulate)
    app.command("tune")(tune)
    app.command("costs")(costs)


def simulate(
    rate: Annotated[float | None, typer.Option(help="Requests a second, all tiers together.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the load; default: 60, or the whole trace.")] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Find the highest rate of each tier in place of trying one.")
    ] = False,
    costs: Costs = "h100",
    workers: Workers = None,
    nodes: Nodes = 1,
    spread: SpreadRule = Spread.ROUND_ROBIN,
    mix: Mix = "free=9,pro=1",
    rows: Rows = "",
    steps: Steps = "",
    deadline: Deadline = "",
    cancel: Cancel = "",
    cancel_within: CancelWithin = "",
    adapter: Adapter = "",
    arrivals: HowArrivals = Arrivals.POISSON,
    cv: Variation = 3.0,
    trace: Annotated[
        Path | None, typer.Option(help="Requests of a file in place of --rate and --mix: .csv or .jsonl.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, max=1000, help="So many times as fast as the trace.")] = 1.0,
    seed: Seed = 0,
    price: Price = None,
    require_in_time: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Exit with 1 where a tier has a smaller share in time.")
    ] = None,
    ticks: Annotated[bool, typer.Option("--ticks", help="Put every tick into the report; on one host.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.json, requests.csv and report.html.")
    ] = None,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Run a load through the scheduler without any service: what these workers would do, in virtual time.

    It makes the decisions that a batcher with --config would make; ticks take what --costs says.

    The report is that of `steploom load`.
    """
    from steploom.simulate import Plan, run_simulate
    from steploom_loadtest.mix import Wishes

    if trace is None and rate is None and not sweep:
        hint = "say how many requests a second, give a --trace, or ask for a --sweep"
        raise CommandError("--rate: is missing", ExitCode.USAGE, hint)
    if trace is not None and (rate is not None or sweep):
        raise CommandError("--trace: goes neither with --rate nor with --sweep", ExitCode.USAGE, "see --speed")
    if ticks and (nodes > 1 or sweep):
        raise CommandError("--ticks: is for one run on one host", ExitCode.USAGE)
    check_positive("--rate", rate, 1_000_000.0)
    check_positive("--seconds", seconds, 604_800.0)
    plan = Plan(
        config=configuration(config).batcher,
        costs=costs,
        workers=workers,
        nodes=nodes,
        spread=spread.value,
        mix=mix,
        wishes=Wishes(steps, deadline, "", cancel, cancel_within, adapter),
        rows=rows,
        arrivals=arrivals.value,
        cv=cv,
        seed=seed,
        price=price,
    )
    code = run_simulate(
        plan,
        rate=rate,
        seconds=seconds,
        has_sweep=sweep,
        trace=trace,
        speed=speed,
        has_ticks=ticks,
        require_in_time=require_in_time,
        out=out,
        is_quiet=quiet,
    )
    raise typer.Exit(code)


def tune(
    rate: Annotated[
        float | None, typer.Option(help="Requests a second; default: a tenth more than full ticks could do.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each trace.")] = 30.0,
    costs: Annotated[
        str, typer.Option(help="What ticks take, as for `simulate`; default: measured, with --no-live h100.")
    ] = "",
    workers: Workers = None,
    nodes: Nodes = 1,
    mix: Mix = "free=9,pro=1",
    rows: Rows = "",
    steps: Steps = "",
    deadline: Deadline = "",
    cancel: Cancel = "",
    cancel_within: CancelWithin = "",
    adapter: Adapter = "",
    arrivals: HowArrivals = Arrivals.POISSON,
    cv: Variation = 3.0,
    trials: Annotated[int, typer.Option(min=2, max=10_000, help="Settings to try.")] = 60,
    top: Annotated[int, typer.Option(min=1, max=20, help="How many of the best are held against other traces.")] = 3,
    seed: Seed = 0,
    max_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How much of its share in time a tier may lose to the others.")
    ] = 0.01,
    live: Annotated[
        bool, typer.Option("--live/--no-live", help="Start the configured services here, and confirm the best there.")
    ] = True,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for steploom.toml, tune.json and tune.html.")] = Path(
        "out/tune"
    ),
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Search settings of the batcher under which more pictures of a load are in time, and write them down.

    Tries them in the simulator, holds the best against other traces, then against the live services.

    Starts at the settings of --config. Needs Optuna: pip install 'steploom[tune]'.
    """
    from steploom.simulate import Plan
    from steploom.tune import TuneOptions, run_tune
    from steploom_loadtest.mix import Wishes

    check_positive("--rate", rate, 1_000_000.0)
    check_positive("--seconds", seconds, 3600.0)
    if live and nodes > 1:
        raise CommandError("--nodes: services are started on this host alone", ExitCode.USAGE, "say --no-live")
    settings = configuration(config)
    if live and settings.batcher.workers:
        problem = "batcher.workers: these workers serve elsewhere, and are not for a search"
        raise CommandError(problem, ExitCode.USAGE, "say --no-live, and give their --costs")
    plan = Plan(
        config=settings.batcher,
        costs=costs or ("" if live else "h100"),
        workers=workers or (settings.up.workers if live else None),
        nodes=nodes,
        spread=Spread.ROUND_ROBIN.value,
        mix=mix,
        wishes=Wishes(steps, deadline, "", cancel, cancel_within, adapter),
        rows=rows,
        arrivals=arrivals.value,
        cv=cv,
        seed=seed,
    )
    raise typer.Exit(run_tune(plan, TuneOptions(settings, rate, seconds, trials, top, max_loss, live, out, quiet)))


def costs(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: print.")] = None,
    batcher: Annotated[
        str | None, typer.Option(help="Address of the batcher; default: that of the `steploom up` that runs here.")
    ] = None,
    runtime_dir: RuntimeFolder = None,
    config: ConfigFile = None,
) -> None:
    """Ask a running batcher what ticks of its workers take, for `steploom simulate` and `steploom tune`.

    As measured when the workers came up, and corrected by the ticks since: put a load on first.
    """
    from steploom.costs import run_costs

    runtime = runtime_folder(configuration(config), runtime_dir)
    services = runtime.read_services()
    run_costs(batcher or (services.batcher if services else runtime.address("batcher")), out)


def check_positive(option: str, value: float | None, at_most: float) -> None:
    """Raises:
    CommandError: an option was given that is not above 0, or too large.
    """
    if value is not None and not 0 < value <= at_most:  # what is no number is refused too
        raise CommandError(f"{option}: is {value:g}, must be above 0, at most {at_most:g}", ExitCode.USAGE)
