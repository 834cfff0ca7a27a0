"""Editing pictures with the trained networks: InstructPix2Pix sampling, batched, for evaluation and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .models import decode, encode_mode
from .text import encode


@dataclass(frozen=True)
class Guidance:
    """Scales of arXiv 2211.09800 equation 3."""

    text: float
    image: float


@dataclass
class Editor:
    """The parts of a model directory on one device."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    device: torch.device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Editor:
        """Read a diffusers directory in float32."""
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
        vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
        return cls(
            unet=unet.to(device, memory_format=torch.channels_last).eval(),
            vae=vae.to(device, memory_format=torch.channels_last).eval(),
            text_encoder=text_encoder.to(device).eval(),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
            device=device,
        )

    @torch.no_grad()
    def edit(self, images: Tensor, texts: list[str], steps: int, guidance: Guidance, seed: int) -> Tensor:
        """Edit images ``[n, 3, s, s]`` in 0..1 by one instruction each; DDIM without added noise.

        The starting noise of row i depends on ``seed`` and i alone.
        """
        before = encode_mode(self.vae, images.to(self.device))
        latents = self._noise(before, seed)
        conditions = self._conditions(before, texts)
        self.scheduler.set_timesteps(steps, device=self.device)
        for timestep in self.scheduler.timesteps:
            velocity = self._guided(latents, timestep, conditions, guidance)
            latents = self.scheduler.step(velocity, timestep, latents, eta=0.0).prev_sample
        return decode(self.vae, latents / self.vae.config["scaling_factor"]).clamp(0, 1)

    def _noise(self, like: Tensor, seed: int) -> Tensor:
        shape = like.shape[1:]
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(like))]
        return torch.stack(rows).to(self.device)

    def _conditions(self, before: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Image latents and text states of the three branches: both, image alone, none."""
        ids = encode(self.tokenizer, [*texts, ""]).to(self.device)
        states = self.text_encoder(ids)[0]
        empty = states[-1:].expand(len(texts), -1, -1)
        return torch.cat([before, before, torch.zeros_like(before)]), torch.cat([states[:-1], empty, empty])

    def _guided(self, latents: Tensor, timestep: Tensor, conditions: tuple[Tensor, Tensor], by: Guidance) -> Tensor:
        images, states = conditions
        stacked = torch.cat([latents.repeat(3, 1, 1, 1), images], dim=1).contiguous(memory_format=torch.channels_last)
        full, image, none = self.unet(stacked, timestep, states, return_dict=False)[0].chunk(3)
        guided: Tensor = none + by.image * (image - none) + by.text * (full - image)
        return guided
