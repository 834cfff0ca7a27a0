"""The command line. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from steploom.exit_codes import MEANINGS, CommandError, ExitCode
from steploom.load_commands import commands as load_commands
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
    override,
    runtime_folder,
)
from steploom.simulation_commands import register as register_simulation

EPILOG = "Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()) + "."

app = typer.Typer(
    name="steploom",
    help="Edits pictures by instruction: starts the services on this machine, asks them, and shows what they do.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class SizeRule(StrEnum):
    """How a picture becomes the square that the model takes."""

    CROP = "crop"
    PAD = "pad"
    STRETCH = "stretch"


class Sampler(StrEnum):
    """The numerical method."""

    DDIM = "ddim"
    EULER = "euler"
    DPMPP_2M = "dpmpp_2m"


class Precision(StrEnum):
    """What an engine computes in."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"


class NetworkName(StrEnum):
    """A network of a model."""

    TEXT_ENCODER = "text_encoder"
    VAE_ENCODER = "vae_encoder"
    UNET = "unet"
    VAE_DECODER = "vae_decoder"


class Format(StrEnum):
    """How the configuration is printed."""

    TOML = "toml"
    MARKDOWN = "markdown"


@app.command()
def up(
    config: ConfigFile = None,
    listen: Annotated[str | None, typer.Option(help="host:port of the gateway; port 0: a free one.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="host:port of the metrics; empty: none.")] = None,
    engine: Annotated[str | None, typer.Option(help="torch, tensorrt, or fake for tests of the rest.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory; default: the embedded model.")] = None,
    workers: Annotated[int | None, typer.Option(help="Engine workers to start, one a device; 0: none.")] = None,
    models: Annotated[str | None, typer.Option(help="Folder of plain models, as a repository of Triton's.")] = None,
    runtime_dir: RuntimeFolder = None,
) -> None:
    """Start gateway, batcher and engine workers on this machine, and keep them up.

    Runs in the foreground. A service that crashes is started again.

    Ctrl-C or SIGTERM lets running requests end; a second one ends at once.

    Options win over the file.
    """
    from steploom.up import run_up
    from steploom_common.logs import set_up

    settings = configuration(config)
    set_up(settings.log, "up")
    settings = override(settings, "gateway", listen=listen, metrics_listen=metrics_listen)
    settings = override(settings, "worker", engine=engine, model=model)
    settings = override(settings, "up", workers=workers)
    settings = override(settings, "plain", models=models)
    raise typer.Exit(run_up(settings, runtime_folder(settings, runtime_dir).path))


@app.command()
def restart(
    worker: Annotated[
        list[int] | None, typer.Option(min=0, help="This one alone, by its number; may be given again. Default: all.")
    ] = None,
    runtime_dir: RuntimeFolder = None,
    config: ConfigFile = None,
) -> None:
    """Replace the engine workers of the `steploom up` that runs here, one after the other; no request fails of it.

    SIGHUP to `steploom up` does the same for all. The configuration stays that with which it was started.
    """
    from steploom.control import run_restart

    run_restart(runtime_folder(configuration(config), runtime_dir).control, worker or ())


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG or WebP file.")],
    instruction: Annotated[str, typer.Argument(help='What to change, as in "put on sunglasses".')],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to; the suffix is the format.")],
    tier: Annotated[str | None, typer.Option(help="Class of service, as free or pro.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the tier's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise; default: drawn at random.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Pull towards the instruction, 1 to 30.")] = None,
    image_guidance_scale: Annotated[float | None, typer.Option(help="Pull towards the picture, 1 to 10.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Default: the model's.")] = None,
    size_rule: Annotated[SizeRule | None, typer.Option(help="How the picture is sized to the model.")] = None,
    model: Annotated[str | None, typer.Option(help="Model by name; default: the one that is served.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Low-rank adapter by name, or none; default: the tier's.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds; default: the tier's.")] = None,
    address: Address = None,
    tls: Secure = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    runtime_dir: RuntimeFolder = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the path alone.")] = False,
) -> None:
    """Edit IMAGE by INSTRUCTION and write the picture to OUTPUT.

    Shows a progress bar by step, then where the time went.

    Never overwrites the input, never leaves a partial file.
    """
    from steploom.edit import EditJob, run_edit
    from steploom.types import EditOptions

    options = EditOptions(
        tier=tier,
        steps=steps,
        seed=seed,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        sampler=sampler.value if sampler else None,
        size_rule=size_rule.value if size_rule else None,
        model=model,
        adapter=adapter,
    )
    access = access_of(tls, tls_ca, tls_cert, tls_key, token_file)
    gateway = gateway_address(address, runtime_dir, access)
    run_edit(EditJob(image, instruction, output, gateway, timeout, options, quiet, access))


@app.command("eval")
def evaluate(
    model: Annotated[Path | None, typer.Option(help="Model directory; default: the embedded model.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Attribute classifier; default: the one beside the embedded model.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Student by name; default: the model's first adapter.")] = None,
    full_student: Annotated[Path | None, typer.Option(help="Folder of a student with all weights trained.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Folder of pictures with metadata.jsonl, in place of drawn avatars.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Some alone, as in teacher-35,student-3; default: all there are.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, max=30, help="Pull towards the instruction; default: the model's.")
    ] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(min=1, max=10, help="Pull towards the picture; default: the model's.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures for each edit and language; not with --pairs.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/eval"),
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda where there is one.")] = None,
    font: Annotated[Path | None, typer.Option(help="TrueType font with Hangul, for Korean captions.")] = None,
    require_bars: Annotated[
        bool, typer.Option("--require-bars", help="Exit with 1 where the student loses too much.")
    ] = False,
) -> None:
    """Compare a model with its few-step student: quality, edit success, speed on this device.

    Prints a table; writes evaluation.md, evaluation.json and a picture to OUT.
    """
    from steploom.eval import EvalOptions, run_eval

    options = EvalOptions(
        model=model,
        judge=judge,
        adapter=adapter,
        full_student=full_student,
        pairs=pairs,
        variants=variants,
        guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale,
        count=count,
        seed=seed,
        out=out,
        device=device,
        font=font,
        require_bars=require_bars,
    )
    raise typer.Exit(run_eval(options))


@app.command("build-engine")
def build_engine(
    model: Annotated[
        Path | None, typer.Argument(help="Model directory; default: the embedded model.", show_default=False)
    ] = None,
    buckets: Annotated[str, typer.Option(help="Rows of a denoise tick, an engine each.")] = "1,3,6,12",
    encode_buckets: Annotated[str, typer.Option(help="Jobs of an encode tick.")] = "1,4",
    decode_buckets: Annotated[str, typer.Option(help="Jobs of a decode tick.")] = "1,4",
    precision: Annotated[
        Precision, typer.Option(help="Of weights and activations; fp8: of the UNet's transformers.")
    ] = Precision.FP16,
    out: Annotated[Path | None, typer.Option(help="Folder of the engines; default: MODEL/engines.")] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(help="Of the GPU, as in 8.9; default: of the one here. With tensorrt_rtx none need be here."),
    ] = None,
    only: Annotated[
        list[NetworkName] | None, typer.Option(help="This network alone; may be given again. Default: all.")
    ] = None,
    one_engine: Annotated[
        bool,
        typer.Option(
            "--one-engine",
            help="One engine a network with a profile a bucket, not one a bucket: weights are in memory once.",
        ),
    ] = False,
    optimization_level: Annotated[
        int, typer.Option("--level", min=0, max=5, help="How long the builder looks for faster kernels.")
    ] = 3,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Hold the exported networks against torch on the CPU.")
    ] = True,
) -> None:
    """Build TensorRT engines of MODEL, for workers with `engine = "tensorrt"`.

    Engines that are there and fit are kept; what is stale, damaged or from elsewhere is built again.

    Needs a TensorRT: see docs/tensorrt.md.
    """
    from steploom.build_engine import BuildOptions, run_build_engine

    options = BuildOptions(
        model=model,
        buckets=buckets,
        encode_buckets=encode_buckets,
        decode_buckets=decode_buckets,
        precision=precision.value,
        out=out,
        compute_capability=compute_capability,
        only=[network.value for network in only or ()],
        one_engine=one_engine,
        optimization_level=optimization_level,
        check=check,
    )
    run_build_engine(options)


@app.command()
def status(
    address: Address = None,
    tls: Secure = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    runtime_dir: RuntimeFolder = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    is_watched: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between looks of --watch.")] = 2.0,
) -> None:
    """Show services, slots, queue and rows per tick. Exits with 3 where no request would be taken."""
    from steploom.status import run_status, take_snapshot

    access = access_of(tls, tls_ca, tls_cert, tls_key)
    runtime = runtime_folder(configuration(config), runtime_dir)
    if is_watched and as_json:
        raise CommandError("--watch is for people, --json for scripts: take one", ExitCode.USAGE)
    if is_watched:
        from rich.console import Console

        from steploom.watch import watch

        watch(lambda: take_snapshot(runtime, address, access.tls), Console(), interval_s)
    else:
        run_status(runtime, address, as_json, access.tls)


@app.command("config")
def show_config(
    config: ConfigFile = None,
    check: Annotated[
        bool, typer.Option("--check", help="Say whether the file is right, and print nothing else.")
    ] = False,
    format: Annotated[Format, typer.Option(help="toml, or markdown for the reference of all keys.")] = Format.TOML,
) -> None:
    """Print the effective configuration as commented TOML."""
    from steploom.reference import configuration_page
    from steploom_common.settings import to_toml

    settings = configuration(config)
    if check:
        print(f"{config or 'the default configuration'} is right")
    elif format is Format.MARKDOWN:
        print(configuration_page(), end="")
    else:
        print(to_toml(settings), end="")


tokens = typer.Typer(help="Make the bearer tokens that callers show.", no_args_is_help=True)
app.add_typer(tokens, name="token")


@tokens.callback()
def token_commands() -> None:
    """Make the bearer tokens that callers show."""


@tokens.command("new")
def new_token(
    name: Annotated[str, typer.Argument(help="Who will show it; in logs and messages.")],
    tier: Annotated[
        list[str] | None,
        typer.Option(help="Tier that it may ask for; repeatable, the first where a request names none; default: all."),
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second in the long run; 0: no bound.")] = 0.0,
    burst: Annotated[int, typer.Option(help="Requests at once after a pause; 0: those of a second.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Requests open at once; 0: gateway.max_calls_per_token.")] = 0,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload models, and change settings.")] = False,
    file: Annotated[Path | None, typer.Option(help="The gateway's file of tokens; default: gateway.tokens.")] = None,
    config: ConfigFile = None,
) -> None:
    """Print a new token, once, and put its hash and limits into the gateway's file of tokens.

    A gateway that runs takes it at the next call.
    """
    from steploom.tokens import run_new_token

    limits = {"tiers": tuple(tier or ()), "rate": rate, "burst": burst, "concurrency": concurrency, "admin": admin}
    path = file or Path(configuration(config).gateway.tokens)
    run_new_token(path if path.name else None, name, limits)


app.add_typer(load_commands, name="load")
register_simulation(app)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"steploom {installed('steploom')}")


def main() -> None:
    """Entry point: errors of a person, of the service and of the configuration become a message and an exit code."""
    import os

    # gRPC writes a line to standard error whenever a peer ends; it reads this when it is imported, here and in services
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from steploom_common.settings import ConfigError

    try:
        app(prog_name="steploom")
    except CommandError as error:
        _say(str(error), error.hint)
        sys.exit(error.code)
    except ConfigError as error:
        _say(f"configuration: {error}", "`steploom config` prints all keys with their bounds")
        sys.exit(ExitCode.USAGE)


def _say(message: str, hint: str) -> None:
    print(f"steploom: {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
