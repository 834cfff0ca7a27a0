"""`python -m steploom_engine_worker.bench.unet`: the UNet of Stable Diffusion 1.5, eager, compiled and fused, on a GPU.

The weights are random, the architecture is InstructPix2Pix's at 512 x 512 pixels. Every form runs as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.bench import command
from steploom_engine_worker.bench.sweep import Form, Forward, Subject, count_flops
from steploom_engine_worker.calibration import Watch, scale_for
from steploom_engine_worker.fused.blocks import Attend, attend, sdpa
from steploom_engine_worker.fused.unet import FusedUNet
from steploom_engine_worker.tiny_model import FULL_SIZE, UNET
from steploom_kernels.attention import attention
from steploom_kernels.gather_rows import RowScalars

ROWS = (1, 3, 6, 12, 24, 48)
AUTOTUNED_ROWS = (3, 12, 24)  # minutes each
MAX_FP8_ERROR = 0.3  # of random weights, which make more of a rounding than trained ones; another result is off by 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; see `command.run`."""
    parser = command.parser("bench.unet", "a UNet", ROWS)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    given = parser.parse_args(arguments)
    return command.run(given, lambda dtype: {"UNet": unet_subject(full_size_unet("cuda", dtype), given.rank)})


def full_size_unet(device: str, dtype: torch.dtype) -> Any:
    """Of the published widths."""
    return command.random_network(
        lambda: UNet2DConditionModel.from_config({**UNET, **FULL_SIZE["unet"]}), device, dtype
    )


def unet_subject(unet: Any, rank: int) -> Subject:
    """All forms of a UNet, with an adapter of a rank where they have one."""
    return Subject(all_forms(unet, rank), partial(inputs, unet), count_flops(_module(unet), inputs(unet, 1)))


def inputs(unet: Any, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random sample, timesteps and context of the UNet's size, device and type."""
    generator = torch.Generator().manual_seed(command.SEED)
    side, tokens = int(unet.config.sample_size), 77
    sample = torch.randn(rows, int(unet.config.in_channels), side, side, generator=generator)
    context = torch.randn(rows, tokens, int(unet.config.cross_attention_dim), generator=generator)
    placed = sample.to(unet.device, unet.dtype).contiguous(memory_format=torch.channels_last)
    return placed, torch.linspace(981, 1, rows).to(unet.device), context.to(unet.device, unet.dtype)


def all_forms(unet: Any, rank: int) -> list[Form]:
    """Eager first: the others are held against it."""
    adapter = Adapter(unet, [name for name, _ in linear_maps(unet)], rank, has_guidance=True)
    adapter.to(unet.device, unet.dtype).requires_grad_(False)

    module = _module(unet)
    return [
        Form("eager", command.plain(module)),
        Form("compile", command.compiled(module)),
        Form("fused", _fused(unet, attend)),
        Form("fused, torch attention", _fused(unet, sdpa)),
        Form("fused, own attention to texts too", _fused(unet, attention)),
        Form(f"fused, a fresh adapter of rank {rank}", _fused(unet, attend, adapter)),
        Form("fused, fp8 linear layers", _narrow(unet), max_error=MAX_FP8_ERROR),
        Form("compile max-autotune", command.compiled(module, mode="max-autotune-no-cudagraphs"), AUTOTUNED_ROWS),
    ]


def _module(unet: Any) -> Forward:
    return lambda x, t, c: unet(x, t, encoder_hidden_states=c, return_dict=False)[0]


def _fused(unet: Any, by: Attend, adapter: Adapter | None = None) -> Callable[[int], Forward]:
    made: list[nn.Module] = []

    def build(rows: int) -> Forward:
        if not made:
            made.append(FusedUNet(unet, [adapter] if adapter else [], attend=by))
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


def _narrow(unet: Any) -> Callable[[int], Forward]:
    """Linear layers in e4m3, by the scales of the inputs that are measured."""
    made: list[nn.Module] = []

    def build(rows: int) -> Forward:
        if not made:
            watch = Watch(unet)
            _module(unet)(*inputs(unet, rows))
            watch.end()
            made.append(FusedUNet(unet, input_scales={name: scale_for(seen) for name, seen in watch.largest.items()}))
        return lambda x, t, c: made[0](x, t, c)

    return build


if __name__ == "__main__":
    raise SystemExit(main())
