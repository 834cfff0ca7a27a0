"""`steploom edit`: one picture, one instruction, a progress bar and the timings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from steploom.access import Access
from steploom.client import Client
from steploom.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SteploomError,
    Unauthenticated,
    Unavailable,
)
from steploom.exit_codes import CommandError, ExitCode
from steploom.pictures import format_of
from steploom.types import Done, EditEvent, EditOptions, EditResult, Queued, Started, Step, Timings

_CODES: tuple[tuple[type[SteploomError], ExitCode], ...] = (
    (InvalidArgument, ExitCode.USAGE),
    (NotFound, ExitCode.USAGE),
    (Unauthenticated, ExitCode.USAGE),
    (PermissionDenied, ExitCode.USAGE),
    (Unavailable, ExitCode.UNAVAILABLE),
    (DeadlineExceeded, ExitCode.DEADLINE),
    (ResourceExhausted, ExitCode.EXHAUSTED),
)


@dataclass(frozen=True)
class EditJob:
    """What the command line asks for."""

    image: Path
    instruction: str
    output: Path
    address: str
    timeout: float | None  # seconds; None: the tier's
    options: EditOptions
    is_quiet: bool = False  # print the path alone
    access: Access = field(default_factory=Access)  # certificates and token


def run_edit(job: EditJob) -> None:
    """Edits a picture and writes it.

    Raises:
        CommandError: a file cannot be used, or the request failed.
    """
    data = _read(job.image)
    _check_output(job)
    options = EditOptions(**(job.options | {"output_format": format_of(job.output)}))
    with _told(job.address), Client(job.address, tls=job.access.tls, token=job.access.token) as client:
        result = _follow(client.edit_stream(data, job.instruction, timeout=job.timeout, **options), job.is_quiet)
    _write(result, job.output)
    console = Console()
    console.print(str(job.output), highlight=False, soft_wrap=True)
    if not job.is_quiet:
        console.print(timings_table(result.timings))
        names = f"model {result.model}, adapter {result.adapter or 'none'}, tier {result.tier}, seed {result.seed}"
        console.print(names, highlight=False)


def timings_table(timings: Timings) -> Table:
    """Where the time went, a row a stage."""
    table = Table("stage", "ms", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name in ("queue", "encode", "denoise", "decode", "total"):
        table.add_row(name, f"{getattr(timings, f'{name}_s') * 1000:.1f}")
    table.add_row("ticks", str(timings.ticks))
    table.add_row("rows per tick", f"{timings.mean_rows_per_tick:.1f}")
    return table


def command_error(error: SteploomError, address: str) -> CommandError:
    """What a person reads when a request fails, and the exit code."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)
    if isinstance(error, Unavailable) and "handshake failed" in str(error).lower():
        hint = "name its authority by --tls-ca, and dial it by a name in its certificate"
        return CommandError(
            f"no secure connection to {address}: its certificate is not trusted, or it has none", code, hint
        )
    if isinstance(error, Unavailable) and error.retry_after is None:
        hint = "start it with `steploom up`; `steploom status` tells what runs"
        return CommandError(f"nothing answers at {address}, or the connection broke", code, hint)
    hint = f"try again in {error.retry_after:.1f} s" if error.retry_after is not None else ""
    if isinstance(error, DeadlineExceeded):
        needed = f"; it would take about {error.predicted_s:.1f} s" if error.predicted_s is not None else ""
        hint = f"give it a longer --timeout, fewer --steps or another --tier{needed}"
    if isinstance(error, Unauthenticated):
        hint = "give a token by --token-file, or in STEPLOOM_TOKEN"
    return CommandError(str(error), code, hint)


@contextmanager
def _told(address: str) -> Iterator[None]:
    try:
        yield
    except SteploomError as error:
        raise command_error(error, address) from error


def _follow(events: Iterator[EditEvent], is_quiet: bool) -> EditResult:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=is_quiet or not console.is_terminal) as progress:
        task = progress.add_task("sending", total=None)
        for event in events:
            if isinstance(event, Done):
                return event.result
            _show(progress, task, event)
    raise CommandError("the service ended the stream without a picture", ExitCode.FAILED)


def _show(progress: Progress, task: TaskID, event: EditEvent) -> None:
    if isinstance(event, Queued):
        progress.update(task, description="queued")
    elif isinstance(event, Started):
        progress.update(task, description="denoising")
    elif isinstance(event, Step):
        description = "decoding" if event.step == event.steps else "denoising"
        progress.update(task, description=description, completed=event.step, total=event.steps)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", ExitCode.USAGE) from None


def _check_output(job: EditJob) -> None:
    """Refuses an output that cannot be written before any work is done for it."""
    output = job.output
    try:
        format_of(output)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if output.exists() and output.samefile(job.image):
        raise CommandError(f"{output} is the input; it is not overwritten", ExitCode.USAGE, "name another file by -o")
    if output.is_dir():
        raise CommandError(f"{output} is a folder", ExitCode.USAGE, "name a file by -o")
    if not output.parent.is_dir():
        raise CommandError(f"there is no folder {output.parent}", ExitCode.USAGE, "make it first")
    if not os.access(output.parent, os.W_OK):
        raise CommandError(f"cannot write into {output.parent}: Permission denied", ExitCode.USAGE)


def _write(result: EditResult, output: Path) -> None:
    try:
        result.save(output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}", ExitCode.USAGE) from None
