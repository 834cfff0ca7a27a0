"""The settings of every stage, read from one TOML file; each value has a default that trained the shipped model."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """Widths of the networks."""

    resolution: int = 128  # pixels a side; the latents have a quarter of it
    unet_channels: tuple[int, ...] = (64, 96, 160)  # per level, full latent size first
    unet_layers: int = 1  # residual blocks per level on the way down
    unet_heads: int = 4  # attention heads at the two lower levels
    vae_channels: tuple[int, ...] = (32, 64, 128)  # per level, full picture first
    vae_layers: int = 1
    text_width: int = 192  # also the UNet's cross-attention width
    text_layers: int = 4
    text_heads: int = 4
    text_tokens: int = 32  # longest instruction, its two end marks included
    vocabulary: int = 2048
    norm_groups: int = 16


@dataclass(frozen=True)
class VaeConfig:
    """Training of the autoencoder."""

    minutes: float = 4.0  # wall-clock budget; the learning rate follows it
    batch: int = 128
    learning_rate: float = 8e-4
    warmup_steps: int = 100
    kl_weight: float = 1e-4  # on the mean KL of a latent element
    edge_weight: float = 0.5  # on the difference of neighbouring pixels
    ema_decay: float = 0.998
    pool: int = 24576  # rendered pictures kept on the device
    chunk: int = 1024  # pictures rendered at a time
    refresh_every: int = 16  # steps between two fresh chunks
    compile: bool = True  # torch.compile; CUDA only
    seed: int = 1
    max_steps: int = 0  # stop early; 0 is no limit


@dataclass(frozen=True)
class TeacherConfig:
    """Training of the UNet and the text encoder."""

    minutes: float = 12.0
    batch: int = 512
    learning_rate: float = 6e-4
    warmup_steps: int = 200
    weight_decay: float = 0.01
    drop_text: float = 0.05  # share of rows with an empty instruction alone
    drop_image: float = 0.05  # share of rows with zero image latents alone
    drop_both: float = 0.05
    change_weight: float = 2.0  # extra loss weight where the edit changes the latents
    no_op: float = 0.03  # share of pairs whose edit changes nothing
    ema_decay: float = 0.999
    pool: int = 32768  # encoded pairs kept on the device
    chunk: int = 1024  # pairs rendered at a time
    refresh_every: int = 48  # steps between two fresh chunks
    compile: bool = True
    seed: int = 2
    max_steps: int = 0


@dataclass(frozen=True)
class ClassifierConfig:
    """Training of the attribute classifier that judges edits."""

    minutes: float = 1.5
    batch: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    width: int = 32  # channels of the first level; doubles up to 8 times
    ema_decay: float = 0.995
    pool: int = 24576  # rendered pictures kept on the device
    chunk: int = 1024  # pictures rendered at a time
    refresh_every: int = 8  # steps between two fresh chunks
    seed: int = 3
    max_steps: int = 0


@dataclass(frozen=True)
class StudentConfig:
    """What the student may change, and the guidance that it learns."""

    rank: int = 16  # of its changes to the teacher's weights; 0: weights of its own
    targets: str = ""  # regular expression that the name of an adapted map contains; empty: all
    max_guidance_scale: float = 4.0  # text; the least is 1, the most never below the default of the model
    max_image_guidance_scale: float = 2.0
    default_share: float = 0.5  # of rows with the model's default scales

    def adapts(self, name: str) -> bool:
        """Whether the map of this name in the UNet is changed."""
        return re.search(self.targets, name) is not None


@dataclass(frozen=True)
class StageConfig:
    """A stage of distillation."""

    minutes: float
    learning_rate: float
    low_rank_rate: float = 4.0  # times the learning rate, for a student of low rank: its product moves less a step
    batch: int = 512
    warmup_steps: int = 100
    weight_decay: float = 0.0
    ema_decay: float = 0.998
    change_weight: float = 1.0  # extra loss weight where the edit changes the latents
    perceptual_weight: float = 0.0  # of the judge's distance of decoded pictures; rollout only
    perceptual_rows: int = 64  # of a batch that are decoded for it
    no_op: float = 0.03
    pool: int = 32768
    chunk: int = 1024
    refresh_every: int = 48
    compile: bool = True
    seed: int = 4
    max_steps: int = 0

    def rate(self, rank: int) -> float:
        """The highest learning rate for a student of this rank; 0: with weights of its own."""
        return self.learning_rate * (self.low_rank_rate if rank else 1.0)


@dataclass(frozen=True)
class Config:
    """All stages."""

    model: ModelConfig = field(default_factory=ModelConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    guidance: StageConfig = field(default_factory=lambda: StageConfig(minutes=4.0, learning_rate=3e-4, seed=4))
    steps: StageConfig = field(default_factory=lambda: StageConfig(minutes=3.0, learning_rate=3e-4, seed=5))
    rollout: StageConfig = field(default_factory=lambda: StageConfig(minutes=3.0, learning_rate=2e-4, seed=6))


class ConfigError(ValueError):
    """A configuration file names an unknown section or key, or a value of the wrong type."""


def load_config(path: Path | None) -> Config:
    """Read a TOML file over the defaults; None gives the defaults.

    Raises:
        ConfigError: for a section or key that does not exist, or a value of another type.
    """
    if path is None:
        return Config()
    with path.open("rb") as file:
        values = tomllib.load(file)
    sections = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    unknown = values.keys() - sections.keys()
    if unknown:
        raise ConfigError(f"{path}: unknown section {', '.join(sorted(unknown))}; known: {', '.join(sections)}")
    return Config(**{name: _section(path, name, getattr(Config(), name), values.get(name, {})) for name in sections})


def _section(path: Path, name: str, default: Any, values: dict[str, Any]) -> Any:
    known = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{path}: [{name}] has no key {key}; known: {', '.join(known)}")
        if isinstance(known[key], tuple):
            values = values | {key: tuple(value)}
        elif isinstance(known[key], float) and isinstance(value, int):
            values = values | {key: float(value)}
        elif type(value) is not type(known[key]):
            raise ConfigError(f"{path}: [{name}] {key} = {value!r} should be a {type(known[key]).__name__}")
    return dataclasses.replace(default, **values)
