"""Training of the autoencoder on rendered scenes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .config import Config
from .data import ImagePool, training_images
from .models import build_vae, decode, posterior
from .training import Budget, Trainer, autocast, prepare_device


def train_vae(config: Config, run: Path, device: torch.device, init: Path | None = None) -> AutoencoderKL:
    """Train, or go on from ``run/vae.pt``; writes ``run/vae`` with the averaged weights and its scaling factor.

    ``init`` is an autoencoder folder to start from.
    """
    prepare_device(device)
    settings = config.vae
    torch.manual_seed(settings.seed)
    vae = build_vae(config.model) if init is None else AutoencoderKL.from_pretrained(init, use_safetensors=True)
    vae.to(device).to(memory_format=torch.channels_last)
    budget = Budget(settings.minutes * 60, settings.max_steps)
    trainer = Trainer("vae", vae, run, budget, settings.learning_rate, settings.warmup_steps, settings.ema_decay, 0.0)
    trainer.resume()
    if settings.compile and device.type == "cuda":
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)

    pool = ImagePool(config.model.resolution, settings.seed, device, settings.pool, settings.chunk)
    pool.fill(budget.step)

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        if budget.step % settings.refresh_every == 0:
            pool.refresh(budget.step)
        images, _ = pool.draw(settings.batch)
        with autocast(device):
            restored, mean, log_variance = _reconstruct(vae, images)
        return _loss(images, restored.float(), mean.float(), log_variance.float(), config)

    trainer.fit(step, settings.batch)
    trainer.finish()
    vae.register_to_config(scaling_factor=_scaling_factor(vae, config, device))
    vae.save_pretrained(run / "vae")
    return vae


def _reconstruct(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, log_variance = posterior(vae, images)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    return decode(vae, latents), mean, log_variance


def _loss(
    images: Tensor, restored: Tensor, mean: Tensor, log_variance: Tensor, config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """L1, squared and edge differences, and the KL divergence from a unit Gaussian."""
    error = restored - images
    squared = error.square().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    loss = error.abs().mean() + 5 * squared + config.vae.edge_weight * edges + config.vae.kl_weight * kl
    return loss, {"psnr": -10 * squared.log10(), "kl": kl, "latent_std": mean.std()}


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, config: Config, device: torch.device) -> float:
    """One over the latents' standard deviation, so that noise latents have unit variance."""
    images = training_images(min(512, 4 * config.vae.batch), config.vae.seed, 2**31, config.model.resolution, device)
    mean, _ = posterior(vae, images)
    return round(1.0 / float(mean.std()), 5)
