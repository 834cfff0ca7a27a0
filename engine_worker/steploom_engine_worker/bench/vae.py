"""`python -m steploom_engine_worker.bench.vae`: the VAE of Stable Diffusion 1.5, eager, compiled and fused, on a GPU.

The weights are random, the architecture is the published one's at 512 x 512 pixels. Encode and decode are as an engine
has them: pictures to the mean of their latents, a sampler's latents to pictures. Every form runs as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from steploom_engine_worker.bench import command
from steploom_engine_worker.bench.sweep import Form, Forward, Subject, count_flops
from steploom_engine_worker.fused.blocks import sdpa
from steploom_engine_worker.fused.vae import FusedDecoder, FusedEncoder
from steploom_engine_worker.tiny_model import FULL_SIZE, VAE
from steploom_kernels.bench.case import Inputs

ROWS = (1, 2, 4, 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; see `command.run`."""
    given = command.parser("bench.vae", "a VAE", ROWS).parse_args(arguments)
    return command.run(given, lambda dtype: vae_subjects(full_size_vae("cuda", dtype)))


def full_size_vae(device: str, dtype: torch.dtype) -> Any:
    """Of the published widths."""
    return command.random_network(lambda: AutoencoderKL.from_config({**VAE, **FULL_SIZE["vae"]}), device, dtype)


def vae_subjects(vae: Any) -> dict[str, Subject]:
    """Encode and decode, each in all forms."""

    def encode(pictures: Tensor) -> Tensor:
        latents: Tensor = vae.encode(pictures).latent_dist.mode()
        return latents

    def decode(latents: Tensor) -> Tensor:
        unscaled = (latents / vae.config.scaling_factor).to(vae.dtype).contiguous(memory_format=torch.channels_last)
        image: Tensor = vae.decode(unscaled, return_dict=False)[0]
        return image

    return {
        "encode": _subject(encode, FusedEncoder(vae), FusedEncoder(vae, sdpa), partial(pictures, vae)),
        "decode": _subject(decode, FusedDecoder(vae), FusedDecoder(vae, sdpa), partial(latents, vae)),
    }


def pictures(vae: Any, rows: int) -> tuple[Tensor]:
    """Random pictures of the VAE's size, device and type."""
    side = int(vae.config.sample_size)
    values = torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(command.SEED)) * 2 - 1
    return (values.to(vae.device, vae.dtype).contiguous(memory_format=torch.channels_last),)


def latents(vae: Any, rows: int) -> tuple[Tensor]:
    """Random latents of such pictures, in float32."""
    side = int(vae.config.sample_size) // 2 ** (len(vae.config.block_out_channels) - 1)
    shape = rows, int(vae.config.latent_channels), side, side
    return (torch.randn(shape, generator=torch.Generator().manual_seed(command.SEED)).to(vae.device),)


def _subject(module: Forward, fused: nn.Module, by_library: nn.Module, inputs: Callable[[int], Inputs]) -> Subject:
    forms = [
        Form("eager", command.plain(module)),
        Form("compile", command.compiled(module)),
        Form("fused", command.plain(fused)),
        Form("fused, torch attention", command.plain(by_library)),
    ]
    return Subject(forms, inputs, count_flops(module, inputs(1)))


if __name__ == "__main__":
    raise SystemExit(main())
