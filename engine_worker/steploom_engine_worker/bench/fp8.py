"""`python -m steploom_engine_worker.bench.fp8`: what pictures lose to linear layers in e4m3, from the same noise.

Each picture is drawn by each instruction, by the model alone and with each of its adapters: once as it is, once with
`worker.fp8 = "linear"`, and for comparison in another half precision. PSNR is of the bytes of the finished pictures. On
a CPU products of the same codes are computed in float32: rounding is the GPU's but for the order of sums.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.calibration import Observer, input_scales
from steploom_engine_worker.engine import Job, Pixels
from steploom_engine_worker.graph_engine import Buckets, GraphEngine
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_engine_worker.torch_engine import usable_device
from steploom_kernels.fp8 import LARGEST, cannot_multiply

INSTRUCTIONS = (
    "put on sunglasses",
    "make the hair blond",
    "close the eyes",
    "add a flower",
    "draw it as an illustration",
    "turn it into a western",
)
_TOGETHER = 4  # jobs that share ticks
_BUCKETS = Buckets(encode=(_TOGETHER,), denoise=(_TOGETHER, 3 * _TOGETHER), decode=(_TOGETHER,))
_EQUAL_DB = 100.0  # of equal pictures


@dataclass(frozen=True)
class Loss:
    """How far pictures of one form are from those of the model as it is."""

    form: str
    adapter: str  # empty: none
    pictures: int
    mean_db: float  # PSNR
    worst_db: float


@dataclass(frozen=True)
class Report:
    """A whole run."""

    device: str
    dtype: str  # of the model as it is
    losses: Sequence[Loss]
    fullest: float  # the largest input of these very jobs, as a share of what its scale can hold; above 1 it saturated

    def markdown(self) -> str:
        """For people."""
        text = f"Against {self.dtype} on {self.device}, from the same noise:\n\n"
        text += "| form | adapter | pictures | PSNR, mean | PSNR, worst |\n|---|---|---|---|---|\n"
        for loss in self.losses:
            decibels = f"{loss.mean_db:.1f} dB | {loss.worst_db:.1f} dB"
            text += f"| {loss.form} | {loss.adapter or 'none'} | {loss.pictures} | {decibels} |\n"
        return f"{text}\nThe largest input takes {self.fullest:.0%} of its scale's range.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; ends with 2 where the device cannot be used, as for any wrong argument."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        device = usable_device(given.device)
    except ValueError as error:
        parser.error(f"--device is {given.device!r}, {error}")
    dtype = getattr(torch, given.dtype or ("float16" if device.type == "cuda" else "float32"))
    problem = cannot_multiply(device, dtype) if device.type == "cuda" else ""
    if problem:
        parser.error(f"--device is {given.device!r}, {problem}")
    load = partial(load_model, given.model or embedded_model())
    report = measure(load, device, dtype, given.picture, given.instruction, given.steps)
    print(report.markdown())
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 0


def measure(
    load: Callable[[torch.dtype], Model],
    device: torch.device,
    dtype: torch.dtype,
    files: Sequence[Path],
    instructions: Sequence[str],
    steps: int,
) -> Report:
    """All forms on the same jobs.

    Args:
        load: a fresh model of a type.
        device: where.
        dtype: of the model as it is.
        files: pictures, of any size.
        instructions: each for each picture.
        steps: of a job, where its adapter was not trained for fewer; 0: the model's default.
    """
    model = load(dtype)
    scales = input_scales(model, device, dtype)
    jobs = {name: list(_jobs(model, name, files, instructions, steps)) for name in _adapters(model)}
    most_steps = max(job.steps for group in jobs.values() for job in group)

    observer = Observer(model, _TOGETHER, most_steps, device, dtype, merge_adapters=False)
    for group in jobs.values():
        for batch in _batches(group):
            observer.draw(batch)
    fullest = max(seen / (scales[name] * LARGEST) for name, seen in observer.largest.items())

    def pictures(dtype: torch.dtype, scales: Mapping[str, float] | None = None) -> dict[str, list[Pixels]]:
        engine = GraphEngine(load(dtype), _TOGETHER, most_steps, device, dtype, _BUCKETS, input_scales=scales)
        return {
            name: [picture for batch in _batches(group) for picture in draw(engine, batch)]
            for name, group in jobs.items()
        }

    as_it_is, other = pictures(dtype), _other_half(dtype, device)
    forms = {"fp8 linear layers": pictures(dtype, scales), _name(other): pictures(other)}
    losses = [_loss(form, name, found[name], as_it_is[name]) for form, found in forms.items() for name in jobs]
    return Report(str(device), _name(dtype), losses, fullest)


def draw(engine: GraphEngine, jobs: Sequence[Job]) -> list[Pixels]:
    """The pictures of jobs of one step count, which share every tick."""
    slots = list(range(len(jobs)))
    for slot, job in enumerate(jobs):
        engine.admit(slot, job)
    engine.encode(slots).wait()
    for step in range(jobs[0].steps):
        engine.denoise(slots, [step] * len(slots)).wait()
    found = [picture.copy() for picture in engine.decode(slots).wait().pictures]
    for slot in slots:
        engine.release(slot)
    return found


def psnr(first: Pixels, second: Pixels) -> float:
    """Peak signal to noise ratio of two pictures, dB; 100 where they are equal."""
    error = float(np.square(first.astype(np.float64) - second).mean())
    return 10 * math.log10(255**2 / error) if error else _EQUAL_DB


def _loss(form: str, adapter: str, found: Sequence[Pixels], wanted: Sequence[Pixels]) -> Loss:
    values = [psnr(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)]
    return Loss(form, adapter, len(values), sum(values) / len(values), min(values))


def _adapters(model: Model) -> dict[str, AdapterTraits]:
    return {"": AdapterTraits(), **{item.name: item.manifest.traits for item in model.adapters}}


def _jobs(model: Model, adapter: str, files: Sequence[Path], instructions: Sequence[str], steps: int) -> Iterator[Job]:
    defaults = model.defaults
    steps = min(steps or defaults.steps, _adapters(model)[adapter].max_steps)
    scales = defaults.guidance_scale, defaults.image_guidance_scale
    pixels = [_read(file, model.side) for file in files]
    for seed, (picture, text) in enumerate(product(pixels, instructions)):
        yield Job(text, picture, steps, *scales, seed, adapter=adapter)


def _other_half(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """A half precision that the device has and the pictures are not drawn in."""
    return torch.float16 if dtype is torch.bfloat16 and device.type == "cuda" else torch.bfloat16


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read(file: Path, side: int) -> Pixels:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)).copy()


def _batches(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), _TOGETHER):
        yield jobs[start : start + _TOGETHER]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.fp8", description="What pictures lose to linear layers in e4m3.")
    parser.add_argument("--picture", type=Path, nargs="+", required=True, metavar="FILE", help="pictures to edit")
    parser.add_argument("--instruction", nargs="+", default=INSTRUCTIONS, metavar="TEXT", help="each for each picture")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: the embedded model")
    parser.add_argument("--steps", type=int, default=0, help="of the model alone; default: the model's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="of the model as it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
