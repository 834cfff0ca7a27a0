"""Scenes for training, and a pool of encoded before and after pairs on the device."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .edits import Edit, applicable, apply_edits, choose_edits
from .models import encode_mode
from .renderer import render
from .scene import Scene, sample_scenes

HELD_OUT_SEED = 2**60  # training uses seeds below; everything from here on is never trained on


def chunk_seed(stage_seed: int, chunk: int) -> int:
    """The seed of a chunk of training data; below `HELD_OUT_SEED` for stages under 2**20 and chunks under 2**40."""
    return (stage_seed << 40) + chunk


def sample_pairs(count: int, seed: int, no_op: float = 0.0) -> tuple[Scene, Scene, Tensor]:
    """Scenes before and after, and the edits' ids (``[n]`` int64), on the CPU.

    A share ``no_op`` of the pairs asks again for what is already done, so nothing changes.
    """
    before = sample_scenes(count, seed)
    chosen = choose_edits(before, seed + 1)
    after = apply_edits(before, chosen)
    repeated = torch.rand(count, generator=torch.Generator().manual_seed(seed + 2)) < no_op
    return _select(repeated, after, before), after, chosen


def _select(rows: Tensor, yes: Scene, no: Scene) -> Scene:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows if a.ndim == 1 else rows[:, None], a, b)

    return Scene(**{name: pick(getattr(yes, name), getattr(no, name)) for name in (f.name for f in fields(Scene))})


def training_scenes(count: int, stage_seed: int, chunk: int) -> Scene:
    """A mix of random scenes and of scenes after an edit, so that the exact colours of edits are common."""
    before, after, _ = sample_pairs(count, chunk_seed(stage_seed, chunk))
    every_other = torch.arange(count) % 2 == 0
    return _select(every_other, after, before)


def training_images(count: int, stage_seed: int, chunk: int, size: int, device: torch.device) -> Tensor:
    """Rendered `training_scenes`, ``[n, 3, size, size]`` in 0..1."""
    return render(training_scenes(count, stage_seed, chunk).to(device), size)


class ImagePool:
    """Rendered scenes on the device as bytes; a few are replaced after every so many draws.

    Rendering one large chunk is much cheaper than many small batches, and a picture is drawn a few times at most.
    """

    def __init__(self, size: int, stage_seed: int, device: torch.device, pictures: int, chunk: int) -> None:
        self.size, self.stage_seed, self.device, self.chunk = size, stage_seed, device, chunk
        self.images = torch.zeros(pictures, 3, size, size, dtype=torch.uint8, device=device)
        self.scene = sample_scenes(pictures, chunk_seed(stage_seed, 2**39)).to(device)
        self.next_row = 0

    def fill(self, first_chunk: int) -> None:
        """Render the whole pool."""
        for i in range(len(self.images) // self.chunk):
            self.refresh(first_chunk + i)

    @torch.no_grad()
    def refresh(self, number: int) -> None:
        """Replace the oldest chunk by the one of this number."""
        scene = training_scenes(self.chunk, self.stage_seed, 4 * number).to(self.device)
        rows = slice(self.next_row, self.next_row + self.chunk)
        self.images[rows] = (render(scene, self.size) * 255).round().byte()
        for f in fields(Scene):
            getattr(self.scene, f.name)[rows] = getattr(scene, f.name)
        self.next_row = rows.stop % len(self.images)

    def draw(self, count: int) -> tuple[Tensor, Scene]:
        """Random pictures ``[n, 3, size, size]`` in 0..1, with their scenes."""
        rows = torch.randint(len(self.images), (count,), device=self.device)
        return self.images[rows].float() / 255, self.scene[rows]


def held_out_scenes(edit: Edit, count: int, seed: int) -> Scene:
    """``count`` scenes that training never saw, in which the edit applies."""
    pool = sample_scenes(max(256, 48 * count), HELD_OUT_SEED + seed)
    return pool[applicable(edit, pool).nonzero()[:count, 0]]


@dataclass
class LatentPool:
    """Encoded pairs on the device, replaced chunk by chunk while training goes on."""

    before: Tensor  # [pairs, 4, h, w] unscaled mode
    after: Tensor  # [pairs, 4, h, w] unscaled mode
    edits: Tensor  # [pairs] int64
    next_row: int = 0
    filled: int = 0

    @classmethod
    def empty(cls, pairs: int, latent_size: int, device: torch.device) -> LatentPool:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        shape = (pairs, 4, latent_size, latent_size)
        return cls(
            before=torch.zeros(shape, dtype=dtype, device=device),
            after=torch.zeros(shape, dtype=dtype, device=device),
            edits=torch.zeros(pairs, dtype=torch.long, device=device),
        )

    def add(self, before: Tensor, after: Tensor, edits: Tensor) -> None:
        """Overwrite the oldest rows; a chunk's size divides the pool's."""
        rows = slice(self.next_row, self.next_row + len(edits))
        self.before[rows], self.after[rows], self.edits[rows] = before, after, edits
        self.filled = max(self.filled, rows.stop)
        self.next_row = rows.stop % len(self.edits)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random pairs: before ``[n, 4, h, w]`` and after in float32, and edit ids ``[n]``."""
        rows = torch.randint(self.filled, (count,), device=self.edits.device)
        return self.before[rows].float(), self.after[rows].float(), self.edits[rows]


@torch.no_grad()
def add_chunk(pool: LatentPool, vae: AutoencoderKL, size: int, count: int, seed: int, no_op: float) -> None:
    """Render and encode ``count`` fresh pairs into the pool."""
    device = pool.edits.device
    before, after, edits = sample_pairs(count, seed, no_op)
    latents = [encode_mode(vae, render(scene.to(device), size)).to(pool.before.dtype) for scene in (before, after)]
    pool.add(latents[0], latents[1], edits.to(device))
