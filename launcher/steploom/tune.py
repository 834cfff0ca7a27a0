"""`steploom tune`: settings of the batcher that suit a load, searched in the simulator and confirmed live."""

from __future__ import annotations

import asyncio
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from steploom.config import SteploomConfig
from steploom.exit_codes import CommandError, ExitCode
from steploom.simulate import Plan
from steploom_batcher.config import SchedulerConfig
from steploom_batcher.types import Stage
from steploom_common.settings import to_toml
from steploom_loadtest.child import StackError
from steploom_loadtest.cost_tables import CostTable
from steploom_loadtest.live import Load, WrongRequest, run_live
from steploom_loadtest.measured_costs import table_of
from steploom_loadtest.open_loop import run_closed_loop
from steploom_loadtest.report_figures import figures
from steploom_loadtest.stack import Stack, running
from steploom_loadtest.target import Target, Unreachable
from steploom_loadtest.traces import Arrival, RequestClass, patient
from steploom_loadtest.tune_report import as_json, chosen, gain, page, table
from steploom_loadtest.tuner import Candidate, Goal, Score, Traces, Tuning, knobs, mean_score, tune

_WARM_S = 10.0  # of load, until the batcher's estimates of costs have settled
_CALLERS = 16
_ALL_ROWS = 4096  # with which a batcher uses, and tells, every bucket that its workers have
_WIDTH = 132  # of tables that go into a file or a pipe
NAMES = ("steploom.toml", "tune.json", "tune.html")


@dataclass(frozen=True)
class TuneOptions:
    """What was asked for beside what serves and what is asked of it."""

    settings: SteploomConfig
    rate: float | None  # requests a second; None: a little more than full ticks could do
    seconds: float  # of each trace
    trials: int
    top: int  # candidates that are held against other traces, and confirmed live
    max_loss: float  # of each tier's share in time
    is_live: bool  # the services are started here, measured where no table is given, and confirm
    out: Path
    is_quiet: bool


def run_tune(plan: Plan, options: TuneOptions) -> ExitCode:
    """Searches, confirms, prints, and writes the files of NAMES; no steploom.toml where nothing is better.

    Raises:
        CommandError: an option is wrong, Optuna is missing, or the services do not come up.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=max(_WIDTH, int(os.environ.get("COLUMNS", "0") or 0)))
    say = _quiet if options.is_quiet else lambda words: Console(stderr=True).print(words, highlight=False)
    with _told(), tempfile.TemporaryDirectory(prefix="steploom-tune-") as folder:
        if not plan.costs:
            say(f"starting the services to measure what ticks take, {_WARM_S:.0f} s of load")
            plan = replace(plan, costs=_measured(options.settings, plan.classes, Path(folder), options.out))
        rate = options.rate or 1.1 * _capacity(plan)
        tuning = _search(plan, options, rate)
        live = _confirm(plan, options, tuning, rate, Path(folder), say) if options.is_live else {}
    best = _winner(tuning, live)
    if not options.is_quiet:
        console.print(table(tuning, live))
    start, place = _score(tuning, live, 0), chosen(tuning).index(best) if best else 0
    if best:
        console.print(f"candidate {place}: {gain(_score(tuning, live, place), start)}", highlight=False)
    else:
        console.print("nothing that was tried is better than the settings as they are", highlight=False)
    _write(plan, options, tuning, live, best, console)
    return ExitCode.OK


# ---- the search


def _search(plan: Plan, options: TuneOptions, rate: float) -> Tuning:
    tiers = list(dict.fromkeys(kind.tier for kind in plan.classes))

    def traces(first: int) -> Traces:
        arrivals = [replace(plan, seed=first + number).trace(rate, options.seconds) for number in range(2)]
        if not all(arrivals):
            raise CommandError(f"no request falls into {options.seconds:g} s", ExitCode.USAGE, "give longer --seconds")
        return Traces(arrivals, rate, options.seconds)

    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=options.is_quiet) as progress:
        bar = progress.add_task("settings tried", total=options.trials)
        return tune(
            plan.site,
            knobs(plan.site, tiers),
            traces(plan.seed),
            traces(plan.seed + 1000),
            Goal(rate, options.max_loss),
            trials=options.trials,
            top=options.top,
            seed=plan.seed,
            on_trial=lambda number, _: progress.update(bar, completed=number),
        )


def _capacity(plan: Plan) -> float:
    """Requests of the mix a second if every tick ran where a row is cheapest, on all workers."""
    total = sum(kind.weight for kind in plan.classes)
    rows = sum(kind.weight * kind.steps * kind.rows for kind in plan.classes) / total
    rate = 0.0
    for device in plan.site.devices:
        row_s = {
            stage: min(seconds / bucket for bucket, seconds in costs.items())
            for stage, costs in device.true_costs.items()
        }
        rate += 1.0 / max(1e-9, row_s[Stage.ENCODE] + rows * row_s[Stage.DENOISE] + row_s[Stage.DECODE])
    return rate * plan.nodes


def _winner(tuning: Tuning, live: Mapping[int, Score]) -> Candidate | None:
    """The best that is better than the start: where it was confirmed live, there; else on other traces."""
    start = _score(tuning, live, 0)
    better = [
        (-_score(tuning, live, place).worth(start, tuning.goal), place)
        for place in range(1, len(tuning.best) + 1)
        if _score(tuning, live, place).is_better(start, tuning.goal)
    ]
    return tuning.best[min(better)[1] - 1] if better else None


def _score(tuning: Tuning, live: Mapping[int, Score], place: int) -> Score:
    item = chosen(tuning)[place]
    assert item.held_out is not None
    return live.get(place, item.held_out)


# ---- the services


def _confirm(plan: Plan, options: TuneOptions, tuning: Tuning, rate: float, folder: Path, say: Any) -> dict[int, Score]:
    """The start and each candidate live, on a trace that the search has not seen."""
    trace = replace(plan, seed=plan.seed + 2000).trace(rate, options.seconds)
    found = {}
    for place, item in enumerate(chosen(tuning)):
        say(f"live, {options.seconds:.0f} s: {'the settings as they are' if not place else f'candidate {place}'}")
        with _services(options.settings, item.config, folder / str(place)) as stack:
            found[place] = _live_score(stack, trace, rate, options.seconds)
    return found


def _live_score(stack: Stack, trace: Sequence[Arrival], rate: float, seconds: float) -> Score:
    report = asyncio.run(run_live(Target(stack.gateway), Load(trace, rate, seconds)))
    return mean_score([figures(report)], seconds)


def _measured(settings: SteploomConfig, mix: Sequence[RequestClass], folder: Path, out: Path) -> str:
    """The file with what ticks of the services took."""
    kinds = [patient(kind) for kind in mix for _ in range(kind.weight)]
    whole = replace(settings.batcher, max_rows=_ALL_ROWS)
    with _services(settings, whole, folder / "measured") as stack:
        asyncio.run(run_closed_loop(stack.gateway, kinds, _CALLERS, _WARM_S))
        found = table_of(stack.status(), "measured by steploom tune")
    assert found is not None  # it has served
    path = out / "costs.json"
    _write_file(path, _of_one_host(found).to_json())
    return str(path)


def _of_one_host(found: CostTable) -> CostTable:
    """The same, with names that tell nothing of temporary folders."""
    return replace(found, devices=[replace(device, name=device.name.split(" at ")[0]) for device in found.devices])


def _services(settings: SteploomConfig, scheduler: SchedulerConfig, folder: Path) -> Any:
    """The configured services with other settings of the scheduler, on free ports."""
    whole = _with(settings, scheduler)
    tables = {name: tomllib.loads(to_toml(getattr(whole, name))) for name in ("batcher", "worker")}
    return running(folder, {**tables, "up": {"workers": whole.up.workers}}, ready_s=whole.up.ready_s)


def _with(settings: SteploomConfig, scheduler: SchedulerConfig) -> SteploomConfig:
    """The whole configuration with these settings of the scheduler."""
    names = SchedulerConfig.__dataclass_fields__
    batcher = replace(settings.batcher, **{name: getattr(scheduler, name) for name in names})
    return replace(settings, batcher=batcher)


@contextmanager
def _told() -> Iterator[None]:
    """What can go wrong, as a message."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        hint = "install it by: pip install 'steploom[tune]'"
        raise CommandError("searching settings needs Optuna, which is not installed", ExitCode.USAGE, hint) from None
    except (StackError, Unreachable) as error:
        hint = "`--no-live` searches in the simulator alone"
        raise CommandError(f"the services do not come up: {error}", ExitCode.UNAVAILABLE, hint) from None
    except WrongRequest as error:
        raise CommandError(f"the services take no such request: {error}", ExitCode.USAGE) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted", ExitCode.INTERRUPTED) from None


# ---- what is written


def _write(
    plan: Plan,
    options: TuneOptions,
    tuning: Tuning,
    live: Mapping[int, Score],
    best: Candidate | None,
    console: Console,
) -> None:
    told = plan.told | plan.told_of_mix | {"rate": f"{tuning.goal.rate:.4g} requests/s"}
    told |= {"seconds": f"{options.seconds:g}", "settings tried": str(len(tuning.tried))}
    texts = {"tune.json": as_json(tuning, live, told), "tune.html": page(tuning, live, told)}
    if best:
        texts["steploom.toml"] = _toml(options.settings, tuning, live, best, told)
    for name in NAMES:
        if name in texts:
            _write_file(options.out / name, texts[name])
            console.print(str(options.out / name), highlight=False, soft_wrap=True)


def _write_file(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise CommandError(f"--out: cannot write {path}: {error.strerror}", ExitCode.USAGE) from None
    finally:
        draft.unlink(missing_ok=True)


def _toml(
    settings: SteploomConfig, tuning: Tuning, live: Mapping[int, Score], best: Candidate, told: Mapping[str, str]
) -> str:
    """The whole configuration, with what has changed and why in front."""
    place = chosen(tuning).index(best)
    how = "live" if place in live else "in the simulator, on traces that the search had not seen"
    changed = [
        f"#   batcher.{name}: {value:.4g}, was {tuning.start.values[name]:.4g}"
        for name, value in best.values.items()
        if value != tuning.start.values[name]
    ]
    lines = [
        "# Written by `steploom tune`.",
        f"# {gain(_score(tuning, live, place), _score(tuning, live, 0))}, {how}.",
        "# For this load:",
        *(f"#   {name}: {value}" for name, value in told.items()),
        "# What it has changed:",
        *changed,
        "",
    ]
    return "\n".join(lines) + to_toml(_with(settings, best.config))


def _quiet(words: str) -> None:
    del words
