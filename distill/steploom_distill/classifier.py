"""A small network that reads every attribute off a picture; it judges whether an edit succeeded."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from .config import Config
from .data import ImagePool
from .scene import ATTRIBUTES, Scene, visible
from .training import Budget, Trainer, autocast, prepare_device

WEIGHTS, DESCRIPTION = "classifier.safetensors", "config.json"


class Classifier(nn.Module):
    """Five strided levels, a pooled feature and one linear head per attribute of `ATTRIBUTES`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 6 * width, 8 * width]
        self.levels = nn.Sequential(*(_level(a, b) for a, b in pairwise(channels)))
        self.project = nn.Linear(channels[-1] * 16, 8 * width)
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, size) for name, size in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images ``[n, 3, s, s]`` in 0..1 to logits ``[n, values]`` per attribute."""
        hidden = self.levels(images.clamp(0, 1) * 2 - 1)
        hidden = functional.gelu(self.project(functional.adaptive_avg_pool2d(hidden, 4).flatten(1)))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """The most likely value of every attribute, each ``[n]`` int64."""
        return {name: logits.argmax(1) for name, logits in self(images).items()}


def _level(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
        nn.GroupNorm(8, outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.GELU(),
    )


def train_classifier(config: Config, run: Path, device: torch.device) -> Classifier:
    """Train, or go on from ``run/classifier.pt``; writes ``run/judge`` with the averaged weights."""
    prepare_device(device)
    settings = config.classifier
    torch.manual_seed(settings.seed)
    model = Classifier(settings.width).to(device)
    budget = Budget(settings.minutes * 60, settings.max_steps)
    trainer = Trainer(
        "classifier", model, run, budget, settings.learning_rate, settings.warmup_steps, settings.ema_decay
    )
    trainer.resume()

    pool = ImagePool(config.model.resolution, settings.seed, device, settings.pool, settings.chunk)
    pool.fill(budget.step)

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        if budget.step % settings.refresh_every == 0:
            pool.refresh(budget.step)
        images, scene = pool.draw(settings.batch)
        images = _augment(images)
        with autocast(device):
            logits = model(images)
        return _loss(logits, scene)

    trainer.fit(step, settings.batch)
    trainer.finish()
    save_classifier(model, settings.width, run / "judge")
    return model


def _augment(images: Tensor) -> Tensor:
    """What an autoencoder and a sampler do to a picture: blur, noise, small shifts of tone and place."""
    count, device = len(images), images.device
    blurred = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    share = torch.rand(count, 1, 1, 1, device=device) * 0.9
    images = torch.lerp(images, blurred, share)
    tone = 1 + 0.03 * torch.randn(count, 3, 1, 1, device=device)
    shift = 0.015 * torch.randn(count, 3, 1, 1, device=device)
    coarse = functional.interpolate(
        torch.randn(count, 3, 32, 32, device=device), size=images.shape[2:], mode="bilinear"
    )
    fine = torch.randn_like(images)
    strength = torch.rand(count, 1, 1, 1, device=device) * 0.035
    images = images * tone + shift + strength * (coarse + fine)
    moved = torch.roll(images, (int(torch.randint(-2, 3, ())), int(torch.randint(-2, 3, ()))), (2, 3))
    return moved.clamp(0, 1)


def _loss(logits: dict[str, Tensor], scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of each attribute where it is visible; also the share of pictures that are all right."""
    shown = visible(scene)
    total = scene.pose.new_zeros(())
    right = torch.ones_like(scene.subject, dtype=torch.bool)
    for name, values in logits.items():
        target = getattr(scene, name)
        losses = functional.cross_entropy(values.float(), target, reduction="none")
        total = total + (losses * shown[name]).sum() / shown[name].sum().clamp_min(1)
        right &= (values.argmax(1) == target) | ~shown[name]
    return total, {"all_right": right.float().mean()}


def save_classifier(model: Classifier, width: int, folder: Path) -> None:
    """Write half-precision weights and the description that `load_classifier` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().half().contiguous().cpu() for k, v in model.state_dict().items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps({"width": width, "attributes": ATTRIBUTES}, indent=2) + "\n")


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> Classifier:
    """Read what `save_classifier` wrote.

    Raises:
        ValueError: if it was trained for other attributes.
    """
    description = json.loads((folder / DESCRIPTION).read_text())
    if description["attributes"] != ATTRIBUTES:
        raise ValueError(f"{folder}: trained for other attributes; train it again")
    model = Classifier(description["width"])
    model.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
    return model.to(device).eval()
