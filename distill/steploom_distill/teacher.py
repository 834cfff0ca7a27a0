"""Training of the teacher: the UNet and the text encoder, jointly, on encoded pairs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .config import Config, TeacherConfig
from .edits import EDITS
from .models import build_scheduler, build_text_encoder, build_unet
from .pairs import Pairs, PoolConfig, RenderedPairs
from .text import train_tokenizer
from .training import Budget, Trainer, autocast, prepare_device


class Teacher(nn.Module):
    """Text encoder and UNet as one module: noisy and image latents, timestep and token ids in, v out."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """``latents`` is ``[n, 8, h, w]``, ``timesteps`` ``[n]``, ``ids`` ``[n, tokens]``; v is ``[n, 4, h, w]``."""
        context = self.text_encoder(ids)[0]
        result: Tensor = self.unet(latents, timesteps, context, return_dict=False)[0]
        return result


def build_teacher(config: Config, tokenizer: CLIPTokenizer) -> Teacher:
    """A teacher with fresh weights for this tokenizer."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return Teacher(build_unet(config.model), build_text_encoder(config.model, len(tokenizer), bos, eos))


def train_teacher(config: Config, run: Path, device: torch.device) -> Teacher:
    """Train, or go on from ``run/teacher.pt``, on ``run/vae``; writes ``run/unet``, ``text_encoder``, ``tokenizer``."""
    prepare_device(device)
    settings = config.teacher
    torch.manual_seed(settings.seed)
    vae = AutoencoderKL.from_pretrained(run / "vae", use_safetensors=True)
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    tokenizer = train_tokenizer(config.model.vocabulary, config.model.text_tokens)
    teacher = build_teacher(config, tokenizer).to(device)
    teacher.unet.to(memory_format=torch.channels_last)
    budget = Budget(settings.minutes * 60, settings.max_steps)
    trainer = Trainer(
        "teacher", teacher, run, budget, settings.learning_rate, settings.warmup_steps, settings.ema_decay,
        settings.weight_decay,
    )  # fmt: skip
    trainer.resume()
    pool = PoolConfig(settings.seed, settings.pool, settings.chunk, settings.refresh_every, settings.no_op)
    source = RenderedPairs(pool, vae, tokenizer, config.model.resolution, device, budget.step)
    objective = Objective(vae.config["scaling_factor"], settings, device)
    if settings.compile and device.type == "cuda":
        teacher.unet.compile(dynamic=False)

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        pairs = source.next(settings.batch)
        before, ids = drop_conditions(pairs, source.empty_ids, settings)
        return objective(teacher, before, pairs.after, pairs.edits, ids)

    trainer.fit(step, settings.batch)
    trainer.finish()
    save_teacher(teacher, tokenizer, run)
    return teacher


def save_teacher(teacher: Teacher, tokenizer: CLIPTokenizer, run: Path) -> None:
    """Write the parts as diffusers and transformers store them."""
    teacher.unet.save_pretrained(run / "unet")
    teacher.text_encoder.save_pretrained(run / "text_encoder")
    tokenizer.save_pretrained(run / "tokenizer")


def drop_conditions(pairs: Pairs, empty: Tensor, settings: TeacherConfig) -> tuple[Tensor, Tensor]:
    """Latents before and token ids, with the text, the image or both emptied in some rows, for guidance.

    arXiv 2211.09800 section 3.2.1.
    """
    u = torch.rand(len(pairs.ids), device=pairs.ids.device)
    text_only, both = settings.drop_text, settings.drop_text + settings.drop_both
    ids = torch.where((u < both)[:, None], empty, pairs.ids)
    without_image = (u >= text_only) & (u < both + settings.drop_image)
    return pairs.before * ~without_image[:, None, None, None], ids


class Objective:
    """The v-loss of arXiv 2202.00512 on a schedule with zero terminal SNR (arXiv 2305.08891)."""

    def __init__(self, scaling_factor: float, settings: TeacherConfig, device: torch.device) -> None:
        self.scale = scaling_factor
        self.settings = settings
        alphas = build_scheduler().alphas_cumprod.to(device)
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()

    def __call__(
        self, model: nn.Module, before: Tensor, after: Tensor, edits: Tensor, ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of v, weighted up where the edit changes the latents.

        ``before`` (zero where dropped) and ``after`` are unscaled latents ``[n, 4, h, w]``.
        """
        clean = after * self.scale
        timesteps = torch.randint(len(self.signal), (len(clean),), device=clean.device)
        signal, sigma = (t[timesteps][:, None, None, None] for t in (self.signal, self.noise))
        noise = torch.randn_like(clean)
        noisy = signal * clean + sigma * noise
        target = signal * noise - sigma * clean
        with autocast(clean.device):
            stacked = torch.cat([noisy, before], 1).contiguous(memory_format=torch.channels_last)
            predicted = model(stacked, timesteps, ids)
        squared = (predicted.float() - target).square()
        weight = change_weight(clean, before * self.scale, self.settings.change_weight)
        loss = (squared * weight).mean()
        return loss, {"plain": squared.mean(), "edits": edits.float().mean() / len(EDITS)}


def change_weight(after: Tensor, before: Tensor, extra: float) -> Tensor:
    """Weight of each place of scaled latents ``[n, 4, h, w]``: more where an edit changes them.

    Returns:
        ``[n, 1, h, w]``, one on average over the batch.
    """
    changed = ((after - before).abs().amax(1, keepdim=True) > 0.15).float()
    weight = 1 + extra * changed
    return weight / weight.mean()
