"""The commands below `steploom load`, with their options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steploom.exit_codes import CommandError, ExitCode
from steploom.options import (
    Address,
    ConfigFile,
    RuntimeFolder,
    Secure,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    TokenFile,
    access_of,
    configuration,
    gateway_address,
    runtime_folder,
)

if TYPE_CHECKING:
    from steploom.access import Access
    from steploom.load import Service
    from steploom_loadtest.services import Watch

commands = typer.Typer(
    help="Put a load on a gateway that serves, and report what it does. Needs no model here.", no_args_is_help=True
)


class Arrivals(StrEnum):
    """How requests follow each other."""

    POISSON = "poisson"
    BURSTY = "bursty"
    STEADY = "steady"


class Answer(StrEnum):
    """In which format pictures come back."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    RAW = "raw"


BY_TIER = "for all tiers, or as free=…,pro=…"
Mix = Annotated[
    str, typer.Option(help="Shares, as numbers or percentages: TIER=SHARE, TIER:STEPS=SHARE or TIER:STEPSxSIDE=SHARE.")
]
Steps = Annotated[str, typer.Option(help=f"Denoising steps, {BY_TIER}; default: the tier's.")]
Deadline = Annotated[str, typer.Option(help=f"Seconds, {BY_TIER}; default: the tier's.")]
Size = Annotated[str, typer.Option(help=f"Pixels of a side of the pictures that are sent, {BY_TIER}; default: 128.")]
Cancel = Annotated[str, typer.Option(help=f"Share of requests that is cancelled, {BY_TIER}.")]
CancelWithin = Annotated[str, typer.Option(help=f"Seconds within which they are, {BY_TIER}; default: 1.")]
Adapter = Annotated[str, typer.Option(help=f"Low-rank adapter by name, or none, {BY_TIER}; default: the tier's.")]
HowArrivals = Annotated[Arrivals, typer.Option(help="How requests follow each other.")]
Variation = Annotated[
    float, typer.Option(min=0.01, max=100, help="Coefficient of variation of the gaps of bursty arrivals; 1: poisson.")
]
Seed = Annotated[int, typer.Option(min=0, help="The same one sends the same requests at the same moments.")]
ModelName = Annotated[str, typer.Option(help="Model by name; default: the one that is served.")]
Instruction = Annotated[str, typer.Option(help="What every request asks for.")]
Picture = Annotated[Path | None, typer.Option(help="Picture that every request carries; default: a drawn portrait.")]
AnswerFormat = Annotated[Answer, typer.Option(help="Format in which pictures come back.")]
Connections = Annotated[int, typer.Option(min=1, max=256, help="Connections that the requests are spread over.")]
Price = Annotated[float | None, typer.Option(min=0.0, help="Of a device for an hour: tells what pictures cost.")]
Devices = Annotated[int, typer.Option(min=0, help="Devices that are paid for; default: the workers that are up.")]
MetricsPage = Annotated[
    str, typer.Option(help="URL of the gateway's metrics; default: those of the gateway that runs here.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for report.json, requests.csv and report.html.")]
Token = Annotated[
    str | None, typer.Option(help="Your token. Other users of this machine can see it: better --token-file.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the paths of the report alone.")]


@commands.callback()
def load_commands() -> None:
    """Put a load on a gateway that serves, and report what it does."""


@commands.command("run")
def run(
    rate: Annotated[float | None, typer.Option(help="Requests a second, all tiers together.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of the load; default: 30, or the whole trace.")] = None,
    mix: Mix = "free=9,pro=1",
    steps: Steps = "",
    deadline: Deadline = "",
    size: Size = "",
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
    model: ModelName = "",
    instruction: Instruction = "",
    picture: Picture = None,
    answer: AnswerFormat = Answer.PNG,
    connections: Connections = 2,
    price: Price = None,
    devices: Devices = 0,
    require_in_time: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Exit with 1 where a tier has a smaller share in time.")
    ] = None,
    out: Out = Path("out/load"),
    quiet: Quiet = False,
    address: Address = None,
    tls: Secure = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    token: Token = None,
    metrics: MetricsPage = "",
    config: ConfigFile = None,
    runtime_dir: RuntimeFolder = None,
) -> None:
    """Send requests at their moments, whatever becomes of those before, and report what came of them.

    Latencies count from the moment at which a request was to be sent.

    Ctrl-C ends it early; the report has what there was until then.
    """
    from steploom.load import Manner, Shape, run_load
    from steploom_loadtest.mix import Wishes

    if trace is None:
        _check_rate("--rate", rate)
    elif rate is not None:
        raise CommandError(
            "--rate: is of no use with --trace, whose lines have their moments", ExitCode.USAGE, "see --speed"
        )
    if seconds is not None:
        _check_positive("--seconds", seconds)
    access = access_of(tls, tls_ca, tls_cert, tls_key, token_file, token)
    shape = Shape(mix, Wishes(steps, deadline, size, cancel, cancel_within, adapter), arrivals.value, cv, seed)
    manner = Manner(
        out, model, instruction, picture, answer.value, connections, price, devices, quiet, require_in_time
    )  # fmt: skip
    service = _service(address, runtime_dir, config, access, metrics)
    raise typer.Exit(run_load(service, shape, manner, rate, seconds, trace, speed))


@commands.command("sweep")
def find_limits(
    start: Annotated[float, typer.Option(help="Requests a second to begin with; doubled until no tier holds.")] = 1.0,
    max_rate: Annotated[float, typer.Option(help="Requests a second that are never exceeded.")] = 1000.0,
    precision: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share by which a rate that fails is above one that holds at most.")
    ] = 0.1,
    seconds: Annotated[float, typer.Option(help="Length of each rate at least.")] = 20.0,
    max_seconds: Annotated[float, typer.Option(help="Length of each rate at most.")] = 120.0,
    samples: Annotated[
        int, typer.Option(min=10, help="Requests of each tier in a run, as long as --max-seconds allows.")
    ] = 100,
    mix: Mix = "free=9,pro=1",
    steps: Steps = "",
    deadline: Deadline = "",
    size: Size = "",
    cancel: Cancel = "",
    cancel_within: CancelWithin = "",
    adapter: Adapter = "",
    arrivals: HowArrivals = Arrivals.POISSON,
    cv: Variation = 3.0,
    seed: Seed = 0,
    model: ModelName = "",
    instruction: Instruction = "",
    picture: Picture = None,
    answer: AnswerFormat = Answer.PNG,
    connections: Connections = 2,
    price: Price = None,
    devices: Devices = 0,
    out: Out = Path("out/load"),
    quiet: Quiet = False,
    address: Address = None,
    tls: Secure = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    token: Token = None,
    metrics: MetricsPage = "",
    config: ConfigFile = None,
    runtime_dir: RuntimeFolder = None,
) -> None:
    """Find the knee, and the highest rate at which 99 of 100 requests of each tier get their picture in time.

    Rates double until no tier holds; then the gap of each tier is halved until it is as narrow as --precision.
    """
    from steploom.load import Manner, Shape, run_sweep
    from steploom_loadtest.mix import Wishes
    from steploom_loadtest.sweep import SweepPlan

    _check_rate("--start", start)
    _check_rate("--max-rate", max_rate)
    _check_positive("--seconds", seconds)
    if max_seconds < seconds:
        raise CommandError(
            f"--max-seconds: is {max_seconds:g}, must be at least --seconds, {seconds:g}", ExitCode.USAGE
        )
    access = access_of(tls, tls_ca, tls_cert, tls_key, token_file, token)
    shape = Shape(mix, Wishes(steps, deadline, size, cancel, cancel_within, adapter), arrivals.value, cv, seed)
    manner = Manner(out, model, instruction, picture, answer.value, connections, price, devices, quiet)
    service = _service(address, runtime_dir, config, access, metrics)
    plan = SweepPlan(start, max_rate, precision, seconds, max_seconds, samples)
    raise typer.Exit(run_sweep(service, shape, manner, plan))


@commands.command("show")
def show(
    report: Annotated[Path, typer.Argument(help="report.json of a run, a sweep or a simulation.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write its files into again.")] = None,
) -> None:
    """Print the tables of a report that was written before."""
    from steploom.load import show_report

    raise typer.Exit(show_report(report, out))


def _service(
    address: str | None, runtime_dir: Path | None, config: Path | None, access: Access, metrics: str
) -> Service:
    """Where the load goes; tiers are those of --config, else of the system that runs here, else the defaults."""
    from steploom.load import Service

    settings = configuration(config)
    runtime = runtime_folder(settings, runtime_dir)
    services = runtime.read_services()
    gateway = gateway_address(address, runtime_dir, access)
    is_here = services is not None and gateway in (services.gateway, services.local)
    if is_here and config is None:
        settings = configuration(runtime.config_file)
    page = metrics or (_page(settings.gateway.metrics_listen) if is_here else "")
    return Service(
        gateway, access, _watch(page, services.batcher if is_here and services else ""), settings.batcher.tiers
    )


def _watch(metrics: str, batcher: str) -> Watch:
    from steploom_loadtest.services import Watch

    return Watch(metrics, batcher)


def _page(listen: str) -> str:
    from steploom.channel import local

    return f"http://{local(listen)}/metrics" if listen else ""


def _check_rate(option: str, rate: float | None) -> None:
    if rate is None:
        raise CommandError(f"{option}: is missing", ExitCode.USAGE, "say how many requests a second, or give a --trace")
    _check_positive(option, rate, 100_000.0)


def _check_positive(option: str, value: float, at_most: float = 604_800.0) -> None:
    if not 0 < value <= at_most:  # that is no number is refused too
        raise CommandError(f"{option}: is {value:g}, must be above 0, at most {at_most:g}", ExitCode.USAGE)
