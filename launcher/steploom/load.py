"""`steploom load`: a load on a live gateway, with progress while it runs and a report behind it, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from steploom.access import Access, authorization
from steploom.channel import local
from steploom.exit_codes import CommandError, ExitCode
from steploom.health import check
from steploom.load_display import Display
from steploom_batcher.config import TierConfig
from steploom_loadtest.live import Load, WrongRequest, run_live
from steploom_loadtest.mix import Wishes, WrongOption, read_mix, words_of
from steploom_loadtest.open_loop import Payload
from steploom_loadtest.report_figures import figures
from steploom_loadtest.report_files import write_report
from steploom_loadtest.report_model import LIVE, Origin, Point, Report
from steploom_loadtest.report_table import tables
from steploom_loadtest.services import Watch
from steploom_loadtest.sweep import SweepPlan, sweep
from steploom_loadtest.target import Target, Unreachable
from steploom_loadtest.trace_file import WrongTrace, read_trace
from steploom_loadtest.traces import Arrival, RequestClass, bursty, exactly, poisson, steady
from steploom_protos.v1 import image_pb2 as pb

_WIDTH = 132  # of tables that go into a file or a pipe
MAX_REQUESTS = 2_000_000  # of a trace
ANSWERS = {
    "png": pb.IMAGE_FORMAT_PNG,
    "jpeg": pb.IMAGE_FORMAT_JPEG,
    "webp": pb.IMAGE_FORMAT_WEBP,
    "raw": pb.IMAGE_FORMAT_RAW,
}


@dataclass(frozen=True)
class Service:
    """Where the load goes."""

    address: str  # host:port of the gateway
    access: Access
    watch: Watch  # where the services tell what they do
    tiers: Mapping[str, TierConfig]  # as far as they are known here


@dataclass(frozen=True)
class Shape:
    """What is asked for, and when."""

    mix: str
    wishes: Wishes
    arrivals: str = "poisson"  # poisson, bursty, steady
    cv: float = 3.0  # of bursty
    seed: int = 0


@dataclass(frozen=True)
class Manner:
    """How it is sent and told of."""

    out: Path
    model: str = ""  # empty: the one that is served
    instruction: str = ""  # empty: one that is always the same
    picture: Path | None = None  # None: a drawn portrait of the size that is asked for
    answer: str = "png"  # of ANSWERS
    connections: int = 2
    price: float | None = None  # of a device for an hour
    devices: int = 0  # 0: the workers that are up
    is_quiet: bool = False
    require_in_time: float | None = None  # least share of each tier

    def load(
        self, arrivals: Sequence[Arrival], rate: float, seconds: float, settings: dict[str, str], title: str
    ) -> Load:
        """What is sent, of these arrivals.

        Raises:
            CommandError: the picture cannot be read.
        """
        return Load(
            arrivals, rate, seconds, title, settings, self._payload(), self.connections, self.price, self.devices
        )

    def _payload(self) -> Payload:
        image = None
        if self.picture is not None:
            try:
                image = pb.Image(encoded=self.picture.read_bytes())
            except OSError as error:
                raise CommandError(
                    f"--picture: {self.picture} cannot be read: {error.strerror}", ExitCode.USAGE
                ) from None
        words = {"instruction": self.instruction} if self.instruction else {}
        return Payload(image=image, output_format=ANSWERS[self.answer], model=self.model, **words)


def run_load(
    service: Service,
    shape: Shape,
    manner: Manner,
    rate: float | None,
    seconds: float | None,
    trace: Path | None,
    speed: float = 1.0,
) -> ExitCode:
    """`steploom load run`: one run and its report.

    Args:
        rate: requests a second; None with a trace.
        seconds: of the load; None: 30, or the whole trace.
        trace: file of requests, in place of a rate and a mix.
        speed: of the trace.

    Raises:
        CommandError: an option or a file is wrong, nobody answers, or no request can be right.
    """
    settings: dict[str, str] = {"address": service.address, "connections": str(manner.connections)}
    if trace is not None:
        arrivals = _from_file(trace, service.tiers, speed)
        arrivals = [item for item in arrivals if seconds is None or item.at < seconds]
        length_s = seconds or arrivals[-1].at or 1.0  # of a trace whose requests all come at once
        offered = len(arrivals) / length_s
        settings |= {"trace": str(trace), "speed": f"{speed:g}"}
    else:
        assert rate is not None
        length_s, offered = seconds or 30.0, rate
        mix = _mix(shape, service.tiers)
        arrivals = _arrivals(shape, mix, rate, length_s)
        settings |= _told(shape, mix, manner) | {"rate": f"{rate:g} requests/s", "seconds": f"{length_s:g}"}
    if not arrivals:
        raise CommandError(f"no request falls into {length_s:g} s", ExitCode.USAGE, "give a longer --seconds")
    title = f"load on {service.address}"
    load = manner.load(arrivals, offered, length_s, settings, title)
    _check_serving(service)
    console = _console()
    with Display(Console(stderr=True), manner.is_quiet) as display:
        report = _guarded(lambda stop: _one(service, load, stop, display))
    return _conclude(report, manner, console)


def run_sweep(service: Service, shape: Shape, manner: Manner, plan: SweepPlan) -> ExitCode:
    """`steploom load sweep`: many runs, what each tier bears, and the report of the best run.

    Raises:
        CommandError: as `run_load`.
    """
    mix = _mix(shape, service.tiers)
    settings = {"address": service.address, "connections": str(manner.connections), **_told(shape, mix, manner)}
    settings["precision"] = f"{plan.precision:.0%}"
    longest = plan.highest * plan.length_s(plan.highest, mix)
    if longest > MAX_REQUESTS:
        problem = f"--max-rate: that would be {longest:.0f} requests in a run, must be at most {MAX_REQUESTS}"
        raise CommandError(problem, ExitCode.USAGE)
    _check_serving(service)
    console = _console()
    with Display(Console(stderr=True), manner.is_quiet) as display:

        def said(point: Point) -> None:
            held = ", ".join(f"{tier.tier} {tier.in_time:.1%}{'' if tier.holds else ' no'}" for tier in point.tiers)
            display.say(
                f"{point.rate:8.2f}/s for {point.seconds:.0f} s: {point.achieved:.2f} pictures/s, in time: {held}"
            )

        async def search(stop: asyncio.Event) -> Report:
            async def measure(rate: float) -> Report:
                seconds = plan.length_s(rate, mix)
                arrivals = _arrivals(shape, mix, rate, seconds)
                told = settings | {"rate": f"{rate:g} requests/s", "seconds": f"{seconds:g}"}
                load = manner.load(arrivals, rate, seconds, told, f"sweep of {service.address}")
                if stop.is_set():
                    return Report(Origin(LIVE, ""), rate, seconds, (), is_interrupted=True)
                return await _one(service, load, stop, display)

            best, found = await sweep(measure, plan, said)
            assert best is not None
            return replace(best, sweep=found if found.points else None, is_interrupted=stop.is_set())

        report = _guarded(search)
    return _conclude(report, manner, console)


def show_report(path: Path, out: Path | None) -> ExitCode:
    """`steploom load show`: the tables of a report that was written before, and its files again where asked for.

    Raises:
        CommandError: it cannot be read or written.
    """
    from steploom_loadtest.report_model import WrongReport

    try:
        report = Report.from_json(path.read_bytes())
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", ExitCode.USAGE) from None
    except WrongReport as error:
        raise CommandError(f"{path}: {error}", ExitCode.USAGE) from None
    console = _console()
    _print(report, console)
    if out is not None:
        _write(report, out, console)
    return ExitCode.OK


# ---- what is sent


def _mix(shape: Shape, tiers: Mapping[str, TierConfig]) -> tuple[RequestClass, ...]:
    try:
        return read_mix(shape.mix, shape.wishes, tiers)
    except WrongOption as error:
        raise CommandError(str(error), ExitCode.USAGE) from None


def _arrivals(shape: Shape, mix: Sequence[RequestClass], rate: float, seconds: float) -> list[Arrival]:
    if rate * seconds > MAX_REQUESTS:
        problem = f"{rate:g}/s for {seconds:g} s are more than {MAX_REQUESTS} requests"
        raise CommandError(f"--rate: {problem}", ExitCode.USAGE)

    def draw(length_s: float) -> list[Arrival]:
        if shape.arrivals == "bursty":
            return bursty(mix, rate, length_s, shape.cv, shape.seed)
        return poisson(mix, rate, length_s, shape.seed)

    if shape.arrivals == "steady":
        return steady(mix, rate, seconds, shape.seed)
    return exactly(draw, rate, seconds)


def _from_file(path: Path, tiers: Mapping[str, TierConfig], speed: float) -> list[Arrival]:
    try:
        return read_trace(path, tiers, speed)
    except WrongTrace as error:
        raise CommandError(f"--trace: {error}", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"--trace: {path} cannot be read: {error.strerror}", ExitCode.USAGE) from None


def _told(shape: Shape, mix: Sequence[RequestClass], manner: Manner) -> dict[str, str]:
    told = {"mix": words_of(mix), "arrivals": shape.arrivals, "seed": str(shape.seed), "answer": manner.answer}
    if shape.arrivals == "bursty":
        told["coefficient of variation"] = f"{shape.cv:g}"
    for kind in mix:
        cancels = f", {kind.cancel_share:.0%} cancelled within {kind.cancel_within_s:g} s" if kind.cancel_share else ""
        told[f"{kind.tier} {kind.steps} steps"] = f"deadline {kind.deadline_s:g} s{cancels}"
    return told


# ---- the run


async def _one(service: Service, load: Load, stop: asyncio.Event, display: Display) -> Report:
    credentials = service.access.tls.credentials() if service.access.tls else None
    target = Target(local(service.address), credentials, authorization(service.access.token))
    with display.following(load):
        return await run_live(target, load, service.watch, on_begin=display.begin, on_record=display.hear, stop=stop)


def _check_serving(service: Service) -> None:
    """Raises:
    CommandError: no request would be taken now.
    """
    health = check(service.address, service.access.tls)
    if health != "SERVING":
        is_down = health == "unreachable"
        problem = (
            f"nothing answers at {service.address}" if is_down else f"the gateway at {service.address} does not serve"
        )
        hint = "start it with `steploom up`; with certificates, name their authority by --tls-ca"
        raise CommandError(problem, ExitCode.UNAVAILABLE, hint if is_down else "it may still warm up, or drain")


def _guarded(work: Callable[[asyncio.Event], Awaitable[Report]]) -> Report:
    """Runs `work` to its end, or until Ctrl-C or SIGTERM; a second one ends at once, without a report."""
    try:
        return asyncio.run(_stoppable(work))
    except Unreachable as error:
        raise CommandError(str(error), ExitCode.UNAVAILABLE, "start it with `steploom up`") from None
    except WrongRequest as error:
        is_unknown = error.status == "UNAUTHENTICATED"
        hint = "give a token by --token-file, or in STEPLOOM_TOKEN" if is_unknown else ""
        raise CommandError(f"the service takes no such request: {error}", ExitCode.USAGE, hint) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted", ExitCode.INTERRUPTED) from None


async def _stoppable(work: Callable[[asyncio.Event], Awaitable[Report]]) -> Report:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    working = asyncio.ensure_future(work(stop))

    def interrupt() -> None:
        if stop.is_set():
            working.cancel()
        stop.set()

    for number in signals:
        with suppress(RuntimeError):  # not on the main thread: there are no signals
            loop.add_signal_handler(number, interrupt)
    try:
        return await working
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


# ---- what is told


def _conclude(report: Report, manner: Manner, console: Console) -> ExitCode:
    if not manner.is_quiet:
        _print(report, console)
    _write(report, manner.out, console)
    if report.is_interrupted:
        raise CommandError("interrupted; the report has what there was until then", ExitCode.INTERRUPTED)
    found = figures(report)
    if not found.done:
        raise CommandError(f"no request got a picture: {found.refused or found.statuses}", ExitCode.FAILED)
    bound = manner.require_in_time
    late = [tier for tier in found.tiers if bound is not None and tier.in_time_share < bound]
    if late and bound is not None:
        told = ", ".join(f"{tier.tier} {tier.in_time_share:.2%}" for tier in late)
        raise CommandError(f"in time: {told}; --require-in-time asks for {bound:.2%}", ExitCode.FAILED)
    return ExitCode.OK


def _print(report: Report, console: Console) -> None:
    for table in tables(report):
        console.print(table)
        console.print()


def _write(report: Report, folder: Path, console: Console) -> None:
    try:
        paths = write_report(report, folder)
    except OSError as error:
        raise CommandError(
            f"--out: cannot write {error.filename or folder}: {error.strerror}", ExitCode.USAGE
        ) from None
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(_WIDTH, int(os.environ.get("COLUMNS", "0") or 0)))
