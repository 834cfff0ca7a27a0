"""`python -m steploom_engine_worker.bench.unet`: the UNet of Stable Diffusion 1.5, eager, compiled and fused, on a GPU.

The weights are random, the architecture is InstructPix2Pix's at 512 x 512 pixels. Every form runs as a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.bench import profile
from steploom_engine_worker.bench.sweep import Form, Forward, Point, inputs, sweep
from steploom_engine_worker.fused.blocks import Attend, sdpa
from steploom_engine_worker.fused.unet import FusedUNet
from steploom_engine_worker.tiny_model import FULL_SIZE, UNET
from steploom_kernels.attention import attention
from steploom_kernels.bench.machine import CudaMachine
from steploom_kernels.gather_rows import RowScalars

ROWS = (1, 3, 6, 12, 24, 48)
AUTOTUNED_ROWS = (3, 12, 24)  # minutes each
REPEATS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 where a form was wrong or failed, 2 without a CUDA device."""
    given = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench: no CUDA device: how fast the UNet is is measured on a GPU", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    unet = full_size_unet("cuda", getattr(torch, given.dtype))
    forms = [form for form in all_forms(unet, given.rank) if not given.form or form.name in given.form]
    result = sweep(
        unet, forms, given.rows, CudaMachine(REPEATS), budget_s=given.seconds, clock=time.monotonic, say=_say
    )
    text = result.markdown()
    if given.profile:
        text += _profiles(unet, forms, given.profile)
    print(text)
    for path, content in ((given.json, json.dumps(result.to_json(), indent=1) + "\n"), (given.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return 1 if any(point.problem for point in result.points) else 0


def full_size_unet(device: str, dtype: torch.dtype) -> Any:
    """Of the published widths; norms and biases are not left at ones and zeros."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config({**UNET, **FULL_SIZE["unet"]})
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return unet.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def all_forms(unet: Any, rank: int) -> list[Form]:
    """Eager first: the others are held against it."""
    adapter = Adapter(unet, [name for name, _ in linear_maps(unet)], rank, has_guidance=True)
    adapter.to(unet.device, unet.dtype).requires_grad_(False)

    def module(_rows: int) -> Forward:
        return lambda x, t, c: unet(x, t, encoder_hidden_states=c, return_dict=False)[0]

    def compiled(_rows: int, **options: str) -> Forward:
        torch.compiler.reset()
        return torch.compile(module(_rows), dynamic=False, **options)  # type: ignore[call-overload, no-any-return]

    return [
        Form("eager", module),
        Form("compile", compiled),
        Form("fused, torch attention", _fused(unet, sdpa)),
        Form("fused, flash", _fused(unet, with_backend(SDPBackend.FLASH_ATTENTION))),
        Form("fused, cuDNN attention", _fused(unet, with_backend(SDPBackend.CUDNN_ATTENTION))),
        Form("fused, own attention", _fused(unet, attention)),
        Form(f"fused, a fresh adapter of rank {rank}", _fused(unet, sdpa, adapter)),
        Form("compile max-autotune", partial(compiled, mode="max-autotune-no-cudagraphs"), AUTOTUNED_ROWS),
    ]


def with_backend(backend: SDPBackend) -> Attend:
    """Torch's attention by one of its implementations."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v)

    return attend


def _fused(unet: Any, attend: Attend, adapter: Adapter | None = None) -> Callable[[int], Forward]:
    made: list[nn.Module] = []

    def build(rows: int) -> Forward:
        if not made:
            made.append(FusedUNet(unet, [adapter] if adapter else [], attend=attend))
        gates = None
        if adapter is not None:
            gates = RowScalars(
                torch.zeros(rows, device=unet.device),
                torch.zeros(rows, dtype=torch.int32, device=unet.device),
                torch.ones(rows, device=unet.device),
                torch.ones(rows, 2, device=unet.device),
            )
        return lambda x, t, c: made[0](x, t, c, gates)

    return build


def _say(point: Point) -> None:
    end = point.problem or f"{point.seconds or 0:.5f} s, off by {point.error:.1e}"
    print(f"{point.form}, {point.rows} rows: {end}", flush=True)


@torch.no_grad()
def _profiles(unet: Any, forms: Sequence[Form], rows: Sequence[int]) -> str:
    text = ""
    for form in forms:
        for count in rows:
            if form.rows is None or count in form.rows:
                given = inputs(unet, count)
                kinds = profile.profile(partial(form.build(count), *given))
                text += f"\n{form.name}, {count} rows:\n\n{profile.markdown(kinds, count)}"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.unet", description="Measures forms of a UNet on this machine's GPU.")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows")
    parser.add_argument("--form", action="append", help="only this form; may be given again")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="of weights and rows")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which no further form begins")
    parser.add_argument("--profile", type=int, nargs="+", help="numbers of rows at which kernels are listed by kind")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
