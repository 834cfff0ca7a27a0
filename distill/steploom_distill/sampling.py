"""Editing pictures with the trained networks: InstructPix2Pix sampling, batched, for evaluation and pictures.

Tables and kernels are those of the serving engine. Unlike there, all pictures of a batch are at the same step, and
pictures and noise are floats that the caller gives or a seed decides.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steploom_common.guidance import Branch, branch_weights
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.sampler import Table, build_table
from steploom_engine_worker.schedule import Sampler, ScheduleConfig
from steploom_kernels.gather_rows import gather_rows
from steploom_kernels.guidance_step import guidance_step

from .student import Student


@dataclass(frozen=True)
class Guidance:
    """Scales of arXiv 2211.09800 equation 3."""

    text: float
    image: float


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told of each picture; the last entry of both is the empty one, as `gather_rows` wants it."""

    pictures: Tensor  # [n + 1, channels, h, w], unscaled latents
    text: Tensor  # [n + 1, tokens, width]


@dataclass(frozen=True)
class Editor:
    """A model directory on one device."""

    model: Model
    device: torch.device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Editor:
        """Read a model directory in float32.

        Raises:
            ModelError: it is wrong, partial or corrupt, or no InstructPix2Pix.
        """
        model = load_model(folder)
        for network in (model.unet, model.vae, model.text_encoder):
            network.to(device)
        for network in (model.unet, model.vae):
            network.to(memory_format=torch.channels_last)
        return cls(model, device)

    @torch.no_grad()
    def edit(
        self, images: Tensor, texts: list[str], steps: int, guidance: Guidance, seed: int,
        sampler: Sampler = Sampler.DDIM, student: Student | None = None,
    ) -> Tensor:  # fmt: skip
        """Edit images ``[n, 3, s, s]`` in 0..1 by one instruction each.

        The starting noise of row i depends on ``seed`` and i alone, so it is the same for every sampler and student.
        """
        before = self.encode(images.to(self.device))
        latents = self._noise(before, seed)
        pictures = torch.cat([before, torch.zeros_like(before[:1])]).contiguous()  # as the kernels want it
        conditions = Conditions(pictures, self._encode_text([*texts, ""]))
        table = build_table(self._schedule(student), sampler, steps)
        self._denoise(latents.mul_(table.initial_scale), conditions, table, guidance, student)
        return self.decode(latents / self.model.vae.config.scaling_factor).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """The unscaled latents ``[n, channels, h, w]`` of images ``[n, 3, s, s]`` in 0..1; the mode, without chance."""
        encoded = self.model.vae.encode((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents back to images, about 0..1 (not clamped)."""
        shifted = latents + (getattr(self.model.vae.config, "shift_factor", None) or 0.0)
        images: Tensor = self.model.vae.decode(shifted, return_dict=False)[0]
        return images * 0.5 + 0.5

    def _noise(self, like: Tensor, seed: int) -> Tensor:
        shape = like.shape[1:]
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(like))]
        return torch.stack(rows).to(self.device)

    def _encode_text(self, texts: list[str]) -> Tensor:
        """The states ``[n, tokens, width]`` of instructions, padded and cut as they are when served."""
        tokens = self.model.tokenizer(
            texts, padding="max_length", max_length=self.model.num_tokens, truncation=True, return_tensors="pt"
        )
        states: Tensor = self.model.text_encoder(tokens.input_ids.to(self.device))[0]
        return states

    def _schedule(self, student: Student | None) -> ScheduleConfig:
        spacing = student.manifest.timestep_spacing if student else ""
        schedule = self.model.schedule
        return dataclasses.replace(schedule, timestep_spacing=spacing) if spacing else schedule

    def _denoise(
        self, latents: Tensor, conditions: Conditions, table: Table, guidance: Guidance, student: Student | None
    ) -> None:
        """All steps of a table, in place."""
        count = len(latents)
        rows = _Rows.of(count, row_weights(guidance, student), self.device)
        if student is not None:
            scales = torch.tensor([guidance.text, guidance.image], device=self.device)
            student.network.gates.scales = scales.expand(len(rows.branches), -1)
        history = torch.zeros_like(latents)
        coefficients = torch.from_numpy(table.coefficients).to(self.device)
        for time, line in zip(table.timesteps.tolist(), coefficients, strict=True):
            sample, text = gather_rows(latents, conditions.pictures, conditions.text, rows.jobs, rows.branches)
            times = torch.full((len(sample),), time, device=self.device)
            prediction = self._predict(sample, times, text, student)
            guidance_step(
                prediction, rows.of_jobs, rows.weights, line.expand(count, -1), rows.jobs[:count], latents, history
            )

    def _predict(self, sample: Tensor, times: Tensor, text: Tensor, student: Student | None) -> Tensor:
        if student is not None:
            return student.network.forward(sample, times, text)
        prediction: Tensor = self.model.unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
        return prediction


def row_weights(guidance: Guidance, student: Student | None = None) -> dict[Branch, float]:
    """The UNet rows of one step of one picture: the branches, and the weight of each in the guided prediction."""
    if student is not None and student.manifest.traits.is_guidance_distilled:
        return {Branch.FULL: 1.0}
    return branch_weights(guidance.text, guidance.image)


@dataclass(frozen=True)
class _Rows:
    """The rows of a batch, branch by branch."""

    jobs: Tensor  # int64 [rows], the picture of each
    branches: Tensor  # int64 [rows]
    of_jobs: Tensor  # int64 [n, 3], the row of each branch; of one that is not computed, any row of the picture
    weights: Tensor  # [n, 3]

    @classmethod
    def of(cls, count: int, weights: dict[Branch, float], device: torch.device) -> _Rows:
        each = torch.arange(count, device=device)
        first = {branch: number * count for number, branch in enumerate(weights)}
        return cls(
            jobs=each.repeat(len(weights)),
            branches=torch.tensor(list(weights), device=device).repeat_interleave(count),
            of_jobs=torch.stack([each + first.get(branch, 0) for branch in Branch], dim=1),
            weights=torch.tensor([weights.get(branch, 0.0) for branch in Branch], device=device).expand(count, -1),
        )
