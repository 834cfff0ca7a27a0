"""What a job asks of a model, held against the model's bounds: its table of coefficients, its branches, its adapter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from steploom_common.guidance import Branch, branch_weights
from steploom_engine_worker.adapter_manifest import AdapterManifest
from steploom_engine_worker.adapter_shelf import Shelf
from steploom_engine_worker.description import Described
from steploom_engine_worker.engine import Job
from steploom_engine_worker.rows import NO_ADAPTER
from steploom_engine_worker.sampler import Table, build_table

_table = lru_cache(maxsize=256)(build_table)
_NO_ADAPTER = AdapterManifest()


@dataclass(frozen=True)
class Order:
    """What a slot holds of a job beside picture, text and noise."""

    table: Table
    weights: Mapping[Branch, float]  # of the branches that are computed: one, where the adapter knows guidance itself
    adapter: int  # its number in the model, or NO_ADAPTER
    guidance_scale: float
    image_guidance_scale: float
    seed: int  # uint64


class Orders:
    """Makes orders of jobs.

    Args:
        model: whose bounds they are.
        max_steps: of a job.
        shelf: which adapters there are; None: those of the model, for good.
    """

    def __init__(self, model: Described, max_steps: int, shelf: Shelf | None = None) -> None:
        self._model, self._max_steps = model, max_steps
        self._shelf = shelf or Shelf(model.adapters)

    def order(self, job: Job) -> Order:
        """The order of a job.

        Raises:
            ValueError: the job is out of the model's bounds, or its adapter's.
        """
        if not 1 <= job.steps <= self._max_steps:
            raise ValueError(f"steps is {job.steps}, must be 1 to {self._max_steps}")
        text, picture = job.guidance_scale, job.image_guidance_scale
        if not (math.isfinite(text) and math.isfinite(picture)):
            raise ValueError(f"guidance scales are {text} and {picture}")
        number, manifest = self._adapter(job)
        schedule = self._model.schedule
        if manifest.timestep_spacing:
            schedule = dataclasses.replace(schedule, timestep_spacing=manifest.timestep_spacing)
        table = _table(schedule, job.sampler or self._model.default_sampler, job.steps)
        weights = {Branch.FULL: 1.0} if manifest.traits.is_guidance_distilled else branch_weights(text, picture)
        return Order(table, weights, number, text, picture, job.seed)

    def _adapter(self, job: Job) -> tuple[int, AdapterManifest]:
        """Number and manifest of a job's adapter; for a job without one those of an adapter that changes nothing."""
        if not job.adapter:
            return NO_ADAPTER, _NO_ADAPTER
        held = self._shelf.find(job.adapter, job.adapter_digest)
        number, manifest = held.number, held.manifest
        problems = manifest.traits.violations(job.adapter, job.steps, job.guidance_scale, job.image_guidance_scale)
        if problems:
            raise ValueError("; ".join(f"{name} {problem}" for name, problem in problems))
        return number, manifest
