"""`steploom build-engine`: TensorRT engines of a model, for one kind of GPU, beside the model or elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from steploom.exit_codes import CommandError, ExitCode
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model_files import check_directory, embedded_model
from steploom_engine_worker.tensorrt.builder import BuildSettings
from steploom_engine_worker.tensorrt.device import NoCuda, open_device
from steploom_engine_worker.tensorrt.flavour import Flavour, NoTensorRT, find_flavour
from steploom_engine_worker.tensorrt.plan_store import FOLDER

if TYPE_CHECKING:
    from steploom_engine_worker.export.engines import Request
    from steploom_engine_worker.export.onnx_graph import Graph
    from steploom_engine_worker.tensorrt.plan_store import Plan, PlanStore

MOST_ROWS = 4096  # of a bucket, as in the worker's settings
_EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class BuildOptions:
    """What was asked for; None: the default."""

    model: Path | None  # the embedded model
    buckets: str
    encode_buckets: str
    decode_buckets: str
    precision: str
    out: Path | None  # `engines` in the model directory
    compute_capability: str | None  # that of the GPU here
    only: Sequence[str]  # networks; empty: all
    one_engine: bool
    optimization_level: int
    check: bool


def run_build_engine(options: BuildOptions, console: Console | None = None) -> None:
    """Builds what is missing, and says what it did.

    Raises:
        CommandError: an option is wrong, TensorRT is not there, or the build fails.
    """
    console = console or Console(soft_wrap=True)
    buckets = {
        name: parse_buckets(f"--{name}", text)
        for name, text in (
            ("buckets", options.buckets),
            ("encode-buckets", options.encode_buckets),
            ("decode-buckets", options.decode_buckets),
        )
    }
    given = None if options.compute_capability is None else parse_capability(options.compute_capability)
    try:
        root = options.model or embedded_model()
        check_directory(root)
        flavour = find_flavour()
    except ModelError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    except NoTensorRT as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    capability = target_capability(flavour, given)
    _require_export_packages()
    from steploom_engine_worker.export.engines import EngineBuildError, Request, build_engines
    from steploom_engine_worker.export.networks import NETWORKS
    from steploom_engine_worker.export.onnx_graph import ExportError
    from steploom_engine_worker.tensorrt.builder import BuildError
    from steploom_kernels.aot import ExportError as KernelError

    request = Request(
        model=root,
        folder=options.out or root / FOLDER,
        capability=capability,
        precision=options.precision,
        unet_buckets=buckets["buckets"],
        encode_buckets=buckets["encode-buckets"],
        decode_buckets=buckets["decode-buckets"],
        networks=[name for name in NETWORKS if not options.only or name in options.only],
        is_shared=options.one_engine,
        is_checked=options.check,
        settings=BuildSettings(optimization_level=options.optimization_level),
    )
    console.print(
        f"{flavour}, for compute capability {capability[0]}.{capability[1]}, {request.precision}", highlight=False
    )
    begin = time.monotonic()
    with Teller(console) as teller:
        try:
            store = build_engines(request, flavour, teller)
        except (ExportError, KernelError, BuildError, EngineBuildError) as error:
            raise CommandError(str(error), ExitCode.FAILED) from None
        except ValueError as error:  # a ModelError too
            raise CommandError(str(error), ExitCode.USAGE) from None
        except KeyboardInterrupt:
            hint = "the same command goes on where it was"
            raise CommandError("interrupted", ExitCode.INTERRUPTED, hint) from None
        except OSError as error:
            raise CommandError(f"{error.filename or request.folder}: {error.strerror}", ExitCode.FAILED) from None
    _conclude(console, request, store, time.monotonic() - begin)


def parse_buckets(option: str, text: str) -> tuple[int, ...]:
    """A rising list of numbers of rows, as in 1,3,6.

    Raises:
        CommandError: it is none.
    """
    words = [word.strip() for word in text.split(",")]
    numbers = [int(word) for word in words if re.fullmatch("[0-9]{1,9}", word)]
    is_rising = numbers == sorted(set(numbers))
    if len(numbers) != len(words) or not is_rising or not all(1 <= number <= MOST_ROWS for number in numbers):
        problem = f"is {text!r}, must be a rising list of numbers from 1 to {MOST_ROWS}, as in 1,3,6"
        raise CommandError(f"{option} {problem}", ExitCode.USAGE)
    return tuple(numbers)


def parse_capability(text: str) -> tuple[int, int]:
    """A compute capability, as in 8.9.

    Raises:
        CommandError: it is none.
    """
    found = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    if not found:
        raise CommandError(f"--compute-capability is {text!r}, must be two numbers, as in 8.9", ExitCode.USAGE)
    return int(found[1]), int(found[2])


def target_capability(
    flavour: Flavour, given: tuple[int, int] | None, here: Callable[[], tuple[int, int]] | None = None
) -> tuple[int, int]:
    """The compute capability of the GPU that engines are built for.

    Args:
        flavour: that builds them.
        given: on the command line.
        here: that of this machine's GPU.

    Raises:
        CommandError: there is no GPU and there must be one, or it is not the one that was given.
    """
    try:
        capability = given if given is not None and flavour.is_rtx else (here or _capability_here)()
    except NoCuda as error:
        hint = "name the GPU's with --compute-capability" if flavour.is_rtx else "build on a machine with that GPU"
        problem = "which GPU it is to be for is not known" if flavour.is_rtx else f"{flavour} builds on a GPU alone"
        raise CommandError(f"{problem}: {error}", ExitCode.USAGE, hint) from None
    if given is not None and given != capability:
        raise CommandError(
            f"--compute-capability is {given[0]}.{given[1]}, but {flavour} builds for the GPU at hand, "
            f"whose is {capability[0]}.{capability[1]}",
            ExitCode.USAGE,
        )
    problem = flavour.cannot_target(capability)
    if problem:
        raise CommandError(problem, ExitCode.USAGE)
    return capability


def _capability_here() -> tuple[int, int]:
    return open_device().capability


def _require_export_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in _EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise CommandError(
            f"networks cannot be exported: {', '.join(missing)} is not installed",
            ExitCode.USAGE,
            'pip install "steploom[export]"',
        )


class Teller:
    """Says what happens, with a bar for the engine that is being built; see `export.engines.Reporter`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        )

    def __enter__(self) -> Teller:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def kept(self, plan: Plan) -> None:
        self._say(f"[green]there[/]     {plan}")

    def dropped(self, what: str, reason: str) -> None:
        self._say(f"[yellow]given up[/]  {what}: {escape(reason)}")

    def compiled(self) -> None:
        self._say("compiled  the Triton kernels around the engines")

    def exported(self, graph: Graph, seconds: float) -> None:
        nodes = f"{graph.nodes_before} nodes folded to {graph.nodes_after}"
        self._say(f"exported  {graph.network.name} in {seconds:.1f} s: {nodes}")

    def checked(self, name: str, error: float) -> None:
        self._say(f"checked   {name}: off by {error:.1e} of what torch gives")

    def building(self, name: str, buckets: tuple[int, ...]) -> PhaseBar:
        return PhaseBar(self._progress, f"{name} {','.join(map(str, buckets))}")

    def built(self, plan: Plan) -> None:
        size = f"{plan.num_bytes / 1e6:.1f} MB, {plan.num_layers} layers"
        self._say(f"[green]built[/]     {plan} in {plan.build_s:.1f} s: {size}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False)


class PhaseBar:
    """A bar for the outermost phase of a build, which names the innermost; see `builder.Watcher`."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title
        self._outermost = ""
        self._open: list[str] = []
        self._task: TaskID | None = None

    def start(self, phase: str, parent: str, steps: int) -> None:
        if not parent:
            self._outermost = phase
            self._task = self._progress.add_task(self._title, total=max(steps, 1))
        self._open.append(phase)
        self._name()

    def advance(self, phase: str) -> None:
        if phase == self._outermost and self._task is not None:
            self._progress.advance(self._task)

    def finish(self, phase: str) -> None:
        if phase in self._open:
            self._open.remove(phase)
        self._name()
        if phase == self._outermost and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _name(self) -> None:
        if self._task is not None:
            inner = self._open[-1] if self._open else ""
            self._progress.update(self._task, description=f"{self._title}: {inner}")


def _conclude(console: Console, request: Request, store: PlanStore, seconds: float) -> None:
    total = sum(plan.num_bytes for plan in store.plans)
    console.print(
        f"{len(store.plans)} engines, {total / 1e6:.0f} MB, in {escape(str(request.folder))} after {seconds:.0f} s",
        highlight=False,
    )
