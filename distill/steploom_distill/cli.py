"""The command line: one command for each stage of making the embedded model and its student."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .config import Config, ConfigError, load_config

if TYPE_CHECKING:
    from .distillation import Loss, Paths

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RunOption = Annotated[Path, typer.Option("--run", help="Folder of checkpoints, logs and trained parts.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file; without one, the defaults.")]
MinutesOption = Annotated[float | None, typer.Option(help="Wall-clock budget; the schedule spends it in full.")]
StepsLimit = Annotated[int | None, typer.Option("--max-steps", help="Stop after this many steps (0: no limit).")]
DeviceOption = Annotated[str | None, typer.Option(help="cuda or cpu; without it, cuda where there is one.")]
ModelOption = Annotated[Path, typer.Option("--model", help="Model directory in diffusers' layout.")]
JudgeOption = Annotated[Path, typer.Option("--judge", help="Folder of the attribute classifier.")]

RUN = Path("runs/avatar-edit")
MODEL = Path("models/avatar-edit")
JUDGE = Path("models/avatar-judge")


def _config(path: Path | None, stage: str, minutes: float | None, max_steps: int | None) -> Config:
    try:
        config = load_config(path)
    except (ConfigError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    given = {"minutes": minutes, "max_steps": max_steps}
    changes = {key: value for key, value in given.items() if value is not None}
    settings = dataclasses.replace(getattr(config, stage), **changes)
    return dataclasses.replace(config, **{stage: settings})


@app.command("train-vae")
def train_vae(
    run: RunOption = RUN, config: ConfigOption = None, minutes: MinutesOption = None, max_steps: StepsLimit = None,
    init: Annotated[Path | None, typer.Option(help="Autoencoder folder to start from, in place of chance.")] = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Train the autoencoder on rendered scenes; goes on from a checkpoint in RUN."""
    from .training import pick_device
    from .vae import train_vae as train

    train(_config(config, "vae", minutes, max_steps), run, pick_device(device), init)


@app.command("train-teacher")
def train_teacher(
    run: RunOption = RUN, config: ConfigOption = None, minutes: MinutesOption = None, max_steps: StepsLimit = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Train UNet and text encoder on RUN's autoencoder; goes on from a checkpoint in RUN."""
    from .teacher import train_teacher as train
    from .training import pick_device

    train(_config(config, "teacher", minutes, max_steps), run, pick_device(device))


@app.command("train-classifier")
def train_classifier(
    run: RunOption = RUN, config: ConfigOption = None, minutes: MinutesOption = None, max_steps: StepsLimit = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Train the attribute classifier that judges edits."""
    from .classifier import train_classifier as train
    from .training import pick_device

    train(_config(config, "classifier", minutes, max_steps), run, pick_device(device))


TeacherOption = Annotated[
    Path | None, typer.Option("--teacher", help="Student of an earlier stage to imitate; without one, MODEL itself.")
]
InitOption = Annotated[Path | None, typer.Option("--init", help="Student to go on from; without one, MODEL itself.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the student, its checkpoint and its log.")]
PairsOption = Annotated[
    Path | None, typer.Option("--pairs", help="Folder of pictures with metadata.jsonl; without one, rendered pairs.")
]
RankOption = Annotated[int | None, typer.Option(min=0, help="Of the student's weight changes; 0: weights of its own.")]
FromOption = Annotated[int, typer.Option("--from", min=1, help="Steps of the teacher.")]
ToOption = Annotated[int, typer.Option("--to", min=1, help="Steps of the student; a divisor of the teacher's.")]


@app.command("distill-guidance")
def distill_guidance(
    out: OutOption, model: ModelOption = MODEL, init: InitOption = None, pairs: PairsOption = None,
    rank: RankOption = None, config: ConfigOption = None, minutes: MinutesOption = None, max_steps: StepsLimit = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """First stage: one row a step instead of three, with the guidance scales as inputs."""
    from .distillation import Paths
    from .losses import guidance_loss

    settings = _with_rank(_config(config, "guidance", minutes, max_steps), rank)
    _run("guidance", Paths(model, out, init=init, pairs=pairs), settings, 1000, guidance_loss, device)


@app.command("distill-steps")
def distill_steps(
    out: OutOption, from_steps: FromOption, to_steps: ToOption, model: ModelOption = MODEL,
    teacher: TeacherOption = None, init: InitOption = None, pairs: PairsOption = None, rank: RankOption = None,
    config: ConfigOption = None, minutes: MinutesOption = None, max_steps: StepsLimit = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Second stage, once or more: one step learns where several of the teacher's lead."""
    from .distillation import Paths
    from .losses import steps_loss

    settings = _with_rank(_config(config, "steps", minutes, max_steps), rank)
    paths = Paths(model, out, teacher, init, pairs)
    _run("steps", paths, settings, to_steps, steps_loss(from_steps, to_steps), device)


@app.command("distill-rollout")
def distill_rollout(
    out: OutOption, from_steps: FromOption, to_steps: ToOption, model: ModelOption = MODEL,
    teacher: TeacherOption = None, init: InitOption = None, pairs: PairsOption = None, rank: RankOption = None,
    judge: Annotated[Path | None, typer.Option(help="Attribute classifier, for rollout.perceptual_weight.")] = None,
    config: ConfigOption = None, minutes: MinutesOption = None, max_steps: StepsLimit = None,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Last stage: the student walks from noise by its own steps, as it does when it serves."""
    from .distillation import Paths
    from .losses import rollout_loss

    settings = _with_rank(_config(config, "rollout", minutes, max_steps), rank)
    paths = Paths(model, out, teacher, init, pairs)
    _run("rollout", paths, settings, to_steps, rollout_loss(from_steps, to_steps, judge), device)


def _with_rank(config: Config, rank: int | None) -> Config:
    return (
        config if rank is None else dataclasses.replace(config, student=dataclasses.replace(config.student, rank=rank))
    )


def _run(stage: str, paths: Paths, config: Config, max_steps: int, loss: Loss, device: str | None) -> None:
    from steploom_engine_worker.errors import ModelError

    from .distillation import DistillationError, run_stage
    from .pairs import PairsError
    from .training import pick_device

    try:
        run_stage(stage, paths, config, getattr(config, stage), max_steps, loss, pick_device(device))
    except (ModelError, DistillationError, PairsError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command("add-adapter")
def add_adapter(
    student: Annotated[Path, typer.Argument(help="Folder of a student of low rank.")],
    name: Annotated[str, typer.Option(help="Name of the adapter.")] = "few-step",
    model: ModelOption = MODEL,
) -> None:
    """Put a student into MODEL's folder of adapters, and its name into steploom.json."""
    from steploom_engine_worker.errors import ModelError

    from .pack import install_adapter

    try:
        install_adapter(model, student, name)
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def evaluate(
    model: ModelOption = MODEL, judge: JudgeOption = JUDGE,
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and metrics.md.")] = RUN / "evaluation",
    count: Annotated[int, typer.Option(min=1, help="Pictures for each edit and language.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps.")] = 35,
    guidance_scale: Annotated[float | None, typer.Option(help="Text guidance; with the next one, no sweep.")] = None,
    image_guidance_scale: Annotated[float | None, typer.Option(help="Image guidance.")] = None,
    sweep_count: Annotated[int, typer.Option(min=1, help="Pictures for each edit and language in the sweep.")] = 4,
    device: DeviceOption = None,
) -> None:  # fmt: skip
    """Score MODEL on held-out faces and sentences: PSNR to the truth and edit success."""
    from . import evaluate as evaluation
    from .sampling import Guidance
    from .training import pick_device

    given = guidance_scale is not None and image_guidance_scale is not None
    guidance = Guidance(guidance_scale or 0.0, image_guidance_scale or 0.0) if given else None
    report = evaluation.evaluate(model, judge, out, count, steps, guidance, sweep_count, pick_device(device))
    typer.echo((out / "metrics.md").read_text())
    typer.echo(json.dumps({key: value for key, value in report.items() if key not in ("scores", "sweep")}))


@app.command()
def samples(
    model: ModelOption = MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/images"),
    font: Annotated[Path | None, typer.Option(help="TrueType font with Hangul, for the Korean captions.")] = None,
    device: DeviceOption = None,
) -> None:
    """Draw the demo's pictures and the grid of edits with MODEL's default settings."""
    from . import samples as pictures
    from .pack import default_guidance, read_manifest
    from .sampling import Editor
    from .training import pick_device

    pictures.write_inputs(out)
    guidance, steps = default_guidance(read_manifest(model))
    editor = Editor.load(model, pick_device(device))
    pictures.edit_grid(editor, guidance, steps, font).save(out / "avatar-edit-grid.png", optimize=True)


@app.command()
def pack(
    run: RunOption = RUN,
    out: Annotated[Path, typer.Option(help="Model directory to write.")] = MODEL,
    judge: JudgeOption = JUDGE,
    metrics: Annotated[Path | None, typer.Option(help="metrics.json whose guidance becomes the default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Default steps.")] = 35,
    guidance_scale: Annotated[float, typer.Option(help="Default text guidance, without METRICS.")] = 2.0,
    image_guidance_scale: Annotated[float, typer.Option(help="Default image guidance, without METRICS.")] = 1.0,
) -> None:
    """Gather RUN's parts into a model directory in half precision, and the classifier beside it."""
    import shutil

    from . import pack as packing
    from .sampling import Guidance

    guidance = Guidance(guidance_scale, image_guidance_scale)
    if metrics is not None:
        report = json.loads(metrics.read_text())
        guidance = Guidance(report["guidance_scale"], report["image_guidance_scale"])
        steps = report["steps"]
    packing.pack(run, out, out.name, steps, guidance)
    if (run / "judge").is_dir():
        shutil.copytree(run / "judge", judge, dirs_exist_ok=True)
