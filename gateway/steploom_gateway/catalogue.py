"""What the batcher serves, as far as a gateway must know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The model that the workers hold."""

    name: str
    height: int  # pixels that it takes and gives
    width: int
    max_steps: int
    adapters: tuple[str, ...] = ()  # by name


@dataclass(frozen=True)
class Catalogue:
    """One answer of the batcher's Status."""

    model: Model
    tiers: tuple[str, ...]  # by name
    is_serving: bool  # a worker is up, and the batcher takes jobs
