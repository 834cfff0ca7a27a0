"""`steploom eval`: a model's teacher and students on the same pictures; how good each is, and how fast here."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from safetensors import SafetensorError

from steploom.exit_codes import CommandError, ExitCode
from steploom_common.settings import ConfigError
from steploom_distill import samples
from steploom_distill.classifier import Classifier, load_classifier
from steploom_distill.compare import Part, Result, avatar_parts, batch_size, compare, folder_parts, total_rows
from steploom_distill.compare_report import Setting, as_json, bars, main_table, markdown
from steploom_distill.pairs import PairsError
from steploom_distill.sampling import Editor, Guidance
from steploom_distill.student import Student, build_student
from steploom_distill.training import prepare_device
from steploom_distill.variants import (
    STUDENT,
    TEACHER,
    Source,
    Variant,
    VariantError,
    choose_variants,
)
from steploom_engine_worker.adapter_files import FOLDER, read_adapter
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.manifest import read_manifest
from steploom_engine_worker.model_files import embedded_model, weights_sha256
from steploom_engine_worker.torch_engine import usable_device

JUDGE = "avatar-judge"  # beside the embedded model
NAME = "evaluation"  # of the files that are written
_SHOWN = (TEACHER, "teacher-3", STUDENT, "full-3")  # in the picture
_SHOWN_PAIRS = 8  # at most


@dataclass(frozen=True)
class EvalOptions:
    """What was asked for; None: the default."""

    model: Path | None  # the embedded model
    judge: Path | None  # beside the embedded model
    adapter: str | None  # the model's first
    full_student: Path | None  # none
    pairs: Path | None  # rendered avatars
    variants: str | None  # all that can be sampled
    guidance_scale: float | None  # the model's default
    image_guidance_scale: float | None  # the model's default
    count: int  # pictures for each edit and language
    seed: int  # of the noise
    out: Path  # folder
    device: str | None  # cuda where there is one
    font: Path | None  # with Hangul; captions are English alone
    require_bars: bool


def run_eval(options: EvalOptions) -> ExitCode:
    """Compares, prints the table and writes `evaluation.md`, `.json` and `.png`.

    Returns:
        FAILED where the bars are required and one is missed, else OK.

    Raises:
        CommandError: an argument, the model or another folder is wrong.
    """
    with _usage_errors():
        task = _prepare(options)
    console = Console(highlight=False)
    for note in task.setting.notes:
        console.print(note)
    with _usage_errors():
        results = _compare(task, options.seed)
    console.print(_rich_table(results))
    found = bars(results)
    for bar in found:
        console.print(str(bar))
    with _usage_errors(), console.status("drawing the picture"):
        _write(task, results, options)
    console.print(f"written: {options.out / NAME}.md, .json and .png")
    return ExitCode.FAILED if options.require_bars and not all(bar.is_met for bar in found) else ExitCode.OK


@dataclass(frozen=True)
class _Task:
    """What is compared on what."""

    editor: Editor
    judge: Classifier | None
    parts: Sequence[Part]
    variants: Sequence[Variant]
    setting: Setting


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What a person can put right, as a message."""
    try:
        yield
    except (ModelError, VariantError, PairsError, ConfigError) as error:
        raise CommandError(str(error), ExitCode.USAGE) from None


def _prepare(options: EvalOptions) -> _Task:
    root = options.model or embedded_model()
    device = _device(options.device)
    _check_options(options)
    editor = Editor.load(root, device)
    students = _students(root, editor, options)
    defaults = editor.model.defaults
    guidance = Guidance(
        options.guidance_scale or defaults.guidance_scale,
        options.image_guidance_scale or defaults.image_guidance_scale,
    )
    names = options.variants.split(",") if options.variants else None
    variants, notes = choose_variants(names, students, guidance)
    _check_bars(options, variants)
    if options.pairs:
        judge, parts = None, folder_parts(options.pairs, editor.model.side, device)
    else:
        judge, parts = _judge(options.judge, device), avatar_parts(options.count, editor.model.side, device)
    setting = Setting(
        model=editor.model.name,
        adapter=students[Source.STUDENT].name if Source.STUDENT in students else "",
        full_student=students[Source.FULL].name if Source.FULL in students else "",
        device=_describe(device),
        batch=batch_size(editor),
        seed=options.seed,
        guidance_scale=guidance.text,
        image_guidance_scale=guidance.image,
        notes=tuple(notes),
    )
    return _Task(editor, judge, parts, variants, setting)


def _check_options(options: EvalOptions) -> None:
    if options.pairs and options.judge:
        raise CommandError("--judge does not go with --pairs: it reads avatars alone", ExitCode.USAGE)
    if options.pairs and options.require_bars:
        raise CommandError("--require-bars does not go with --pairs: success cannot be read there", ExitCode.USAGE)
    if options.font and not options.font.is_file():
        raise CommandError(f"there is no font {options.font}", ExitCode.USAGE)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {options.out}: {error.strerror}", ExitCode.USAGE) from None


def _check_bars(options: EvalOptions, variants: Sequence[Variant]) -> None:
    missing = {TEACHER, STUDENT} - {variant.name for variant in variants}
    if options.require_bars and missing:
        raise CommandError(
            f"--require-bars needs the variants {TEACHER} and {STUDENT}; there is no {min(missing)}", ExitCode.USAGE
        )


def _device(name: str | None) -> torch.device:
    try:
        device = usable_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except ValueError as error:
        raise CommandError(f"--device is {name!r}, {error}", ExitCode.USAGE) from None
    prepare_device(device)
    return device


def _describe(device: torch.device) -> str:
    """The device for a reader of the report."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    return f"{device}, {platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def _students(root: Path, editor: Editor, options: EvalOptions) -> dict[Source, Student]:
    folders = {}
    adapter = _adapter_name(root, options.adapter)
    if adapter:
        folders[Source.STUDENT] = root / FOLDER / adapter
    if options.full_student:
        folders[Source.FULL] = options.full_student
    if not folders:
        return {}
    base = weights_sha256(root)
    return {source: _student(source, folder, base, editor) for source, folder in folders.items()}


def _adapter_name(root: Path, name: str | None) -> str | None:
    known = read_manifest(root).adapters
    if name is not None and name not in known:
        listed = f"it has: {', '.join(known)}" if known else "it has none"
        raise CommandError(f"the model has no adapter {name!r}; {listed}", ExitCode.USAGE)
    return name or next(iter(known), None)


def _student(source: Source, folder: Path, base: str, editor: Editor) -> Student:
    files = read_adapter(folder, base)
    student = Student(folder, files.manifest, build_student(files, editor.model.unet, editor.device))
    if source is Source.FULL and not student.has_own_unet:
        raise CommandError(
            f"--full-student {folder}: has no folder unet: it is no full-weights student", ExitCode.USAGE
        )
    return student


def _judge(folder: Path | None, device: torch.device) -> Classifier:
    folder = folder or embedded_model().parent / JUDGE
    try:
        return load_classifier(folder, device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        hint = "name the folder of the attribute classifier by --judge, or pictures of your own by --pairs"
        raise CommandError(f"no judge in {folder}: {error}", ExitCode.USAGE, hint) from None


def _compare(task: _Task, seed: int) -> list[Result]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("UNet rows", total=total_rows(task.parts, task.variants))
        return compare(
            task.editor, task.judge, task.parts, task.variants, seed, lambda rows: progress.advance(bar, rows)
        )


def _rich_table(results: Sequence[Result]) -> Table:
    headings, rows = main_table(results, is_short=True)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _write(task: _Task, results: Sequence[Result], options: EvalOptions) -> None:
    path = options.out / NAME
    path.with_suffix(".md").write_text(markdown(task.setting, results), encoding="utf-8")
    report = json.dumps(as_json(task.setting, results), indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(report + "\n", encoding="utf-8")
    _grid(task, options).save(path.with_suffix(".png"), optimize=True)


def _grid(task: _Task, options: EvalOptions) -> Image.Image:
    """The input and what each variant makes of it."""
    captions: Sequence[tuple[str, str]]
    if options.pairs:
        shown = task.parts[:_SHOWN_PAIRS]
        before = torch.cat([part.load()[0] for part in shown])
        texts = [part.texts[0] for part in shown]
        captions = [(text, "") for text in texts]
    else:
        before, texts = samples.shown_inputs(task.editor.model.side)
        captions = samples.CAPTIONS
    columns = [("input", [samples.to_image(picture) for picture in before])]
    for variant in task.variants:
        if variant.name in _SHOWN:
            pictures = variant.edit(task.editor, before, texts, options.seed)
            title = "\n".join(variant.plan.title.split(", "))
            columns.append((title, [samples.to_image(picture) for picture in pictures]))
    return samples.column_grid(columns, captions, options.font)
