"""`make demo`: starts the services, edits a picture in two languages and two tiers, lets clients share ticks, stops."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.table import Table

from steploom.aio import Client
from steploom.errors import SteploomError
from steploom.exit_codes import CommandError, ExitCode
from steploom.health import wait_serving
from steploom.process import Process
from steploom.runtime import RuntimeDir
from steploom.types import EditResult, Timings

_ROOT = Path(__file__).resolve().parents[2]
_START_S = 300.0  # until the services must be ready
_END_S = 60.0  # until they must have ended
_SEED = 7
_AT_ONCE = 8  # clients of the second part
_SIDE = 128  # pixels of a picture in the overview

# as wide as the table, also where the output goes to a file
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True)
class Edit:
    """One picture to make."""

    name: str  # of its file
    instruction: str
    tier: str


INSTRUCTIONS = {
    "sunglasses": "put on sunglasses",
    "blond": "금발로 만들어 줘",
    "eyes-closed": "close the eyes",
    "flower": "꽃 추가",
    "illustration": "draw it as an illustration",
    "western": "서부 영화로 만들어 줘",
}
TIERS = ("free", "pro")
STAGES = ("queue", "encode", "denoise", "decode", "total")
EDITS = [Edit(f"{name}-{tier}", words, tier) for name, words in INSTRUCTIONS.items() for tier in TIERS]


def main() -> None:
    """Entry point."""
    arguments = _arguments()
    try:
        _prepare(arguments.image, arguments.out)
        asyncio.run(run(arguments.image, arguments.out, arguments.up))
    except CommandError as error:
        print(f"demo: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(error.code)
    except SteploomError as error:
        print(f"demo: a request failed: {error}", file=sys.stderr)
        sys.exit(ExitCode.FAILED)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


async def run(image: Path, out: Path, up: Sequence[str]) -> None:
    """The whole demo.

    Args:
        image: the picture to edit.
        out: the folder for the pictures and the services' log.
        up: further arguments for `steploom up`.

    Raises:
        CommandError: the services do not start or end as they should.
        SteploomError: a request failed.
    """
    console.print(f"starting the services; their log is {_shown(out / 'steploom.log')}")
    started = time.monotonic()
    async with _services(out / "steploom.log", up) as address, Client(address) as client:
        console.print(f"ready on {address} after {time.monotonic() - started:.1f} s\n")
        alone = await _one_by_one(client, image, out)
        await _together(client, image, out, mean(result.timings.mean_rows_per_tick for result in alone))
    overview = _overview(image, out)
    console.print(f"\npictures: {_shown(out)}/*.png, all in one: {_shown(overview)}")


def _prepare(image: Path, out: Path) -> None:
    if not image.is_file():
        raise CommandError(f"there is no picture {image}", ExitCode.USAGE, "name one by --image")
    out.mkdir(parents=True, exist_ok=True)


async def _one_by_one(client: Client, image: Path, out: Path) -> list[EditResult]:
    """Each edit on an idle service; the table grows as they end."""
    results = []
    table = _table()
    with Live(table, console=console, auto_refresh=False) as live:
        for edit in EDITS:
            results.append(await _edit(client, image, edit, out))
            table.add_row(*_row(edit, results[-1].timings))
            live.refresh()
    return results


async def _together(client: Client, image: Path, out: Path, alone: float) -> None:
    """Clients of both tiers at once: their rows ride in the same ticks."""
    edits = [EDITS[index % len(EDITS)] for index in range(_AT_ONCE)]
    started = time.monotonic()
    results = await asyncio.gather(*(_edit(client, image, edit, out) for edit in edits))
    seconds = time.monotonic() - started
    together = mean(result.timings.mean_rows_per_tick for result in results)
    console.print(f"\n{_AT_ONCE} clients at once, free and pro mixed: {seconds:.1f} s for all")
    console.print(f"mean rows per tick that a request rode in: {alone:.1f} alone, {together:.1f} at once")


async def _edit(client: Client, image: Path, edit: Edit, out: Path) -> EditResult:
    result = await client.edit(image, edit.instruction, tier=edit.tier, seed=_SEED, size_rule="crop")
    await asyncio.to_thread(result.save, out / f"{edit.name}.png")
    return result


@asynccontextmanager
async def _services(log: Path, up: Sequence[str]) -> AsyncIterator[str]:
    """`steploom up` in a runtime folder of its own, on free ports; yields the gateway's address."""
    folder = tempfile.mkdtemp(prefix="steploom-demo-")
    ports = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    try:
        with log.open("w", buffering=1) as file:
            process = await Process.start(
                ("-m", "steploom", "up", "--runtime-dir", folder, *ports, *up), lambda line: _write(file, line)
            )
            try:
                yield await _ready(process, RuntimeDir(Path(folder)))
            finally:
                await _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(file: object, line: str) -> None:
    print(line, file=file)  # type: ignore[call-overload]


async def _ready(process: Process, runtime: RuntimeDir) -> str:
    """The gateway's address once it serves."""
    ended = asyncio.create_task(process.wait())
    ready = asyncio.create_task(_gateway(runtime))
    await asyncio.wait({ended, ready}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        ended.cancel()
        return ready.result()
    ready.cancel()
    if ended.done():
        raise CommandError(f"the services ended at once:\n{process.last_words}", _code(ended.result()))
    ended.cancel()
    raise CommandError(f"not ready within {_START_S:g} s:\n{process.last_words}", ExitCode.UNAVAILABLE)


async def _gateway(runtime: RuntimeDir) -> str:
    while (services := runtime.read_services()) is None:  # noqa: ASYNC110  written by another process
        await asyncio.sleep(0.1)
    await wait_serving(services.gateway)
    return services.gateway


async def _end(process: Process) -> None:
    process.ask_to_end()
    try:
        code = await asyncio.wait_for(process.wait(), _END_S)
    except TimeoutError:
        process.kill()
        raise CommandError(f"the services did not end within {_END_S:g} s", ExitCode.FAILED) from None
    if code != 0 and sys.exc_info()[0] is None:
        raise CommandError(f"the services ended with {code}:\n{process.last_words}", ExitCode.FAILED)


def _code(code: int) -> ExitCode:
    return ExitCode.USAGE if code == ExitCode.USAGE else ExitCode.FAILED


def _table() -> Table:
    table = Table("instruction", "tier", *STAGES, "ticks", "rows/tick", box=None, pad_edge=False, title="milliseconds")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _row(edit: Edit, timings: Timings) -> tuple[str, ...]:
    milliseconds = (f"{getattr(timings, f'{stage}_s') * 1000:.0f}" for stage in STAGES)
    return (edit.instruction, edit.tier, *milliseconds, str(timings.ticks), f"{timings.mean_rows_per_tick:.1f}")


def _overview(image: Path, out: Path) -> Path:
    """One picture of all: a row a tier, the input first."""
    sheet = Image.new("RGB", (_SIDE * (1 + len(INSTRUCTIONS)), _SIDE * len(TIERS)), "white")
    for row, tier in enumerate(TIERS):
        for column, path in enumerate([image, *(out / f"{name}-{tier}.png" for name in INSTRUCTIONS)]):
            with Image.open(path) as picture:
                sheet.paste(picture.convert("RGB").resize((_SIDE, _SIDE)), (_SIDE * column, _SIDE * row))
    path = out / "overview.png"
    sheet.save(path)
    return path


def _shown(path: Path) -> Path:
    """`path` relative to where the person stands, where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m steploom.demo", description=__doc__)
    parser.add_argument("--image", type=Path, default=_ROOT / "docs" / "images" / "portrait.png")
    parser.add_argument("--out", type=Path, default=Path("out") / "demo")
    parser.add_argument("up", nargs="*", help="after --: arguments for `steploom up`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
