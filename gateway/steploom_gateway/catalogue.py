"""What the batcher serves, as far as a gateway must know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Model:
    """The model that the workers hold."""

    name: str
    height: int  # pixels that it takes and gives
    width: int
    max_steps: int
    adapters: tuple[str, ...] = ()  # by name
    latent_shape: tuple[int, ...] = ()  # channels, height, width; empty: not told


@dataclass(frozen=True)
class StageWork:
    """What all workers have done of one stage, since the batcher's start."""

    ticks: int  # forward passes
    rows: int  # of jobs in them: UNet rows (denoise), or jobs (encode, decode)


@dataclass(frozen=True)
class AdapterStatus:
    """Where an adapter of the model stands."""

    name: str
    state: str  # LOADING, READY, UNLOADING or UNAVAILABLE
    reason: str = ""  # where something is amiss


@dataclass(frozen=True)
class Catalogue:
    """One answer of the batcher's Status."""

    model: Model
    tiers: tuple[str, ...]  # by name
    is_serving: bool  # a worker is up, and the batcher takes jobs
    priorities: tuple[str, ...] = ()  # the tiers again, from the one that gets most of the device
    stages: Mapping[str, StageWork] = field(default_factory=dict)  # encode, denoise, decode
    adapters: tuple[AdapterStatus, ...] = ()  # those that are offered first
