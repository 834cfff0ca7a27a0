"""Runs every bucket of every stage before the first job: nothing is slow the first time, and the costs are known."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from steploom_common.guidance import rows_per_step
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Costs, Done, Engine, Job, Pending, Pixels, Stage

log = logging.getLogger(__name__)

# Seconds of measurement after which a bucket's cost is known well enough: a worker that comes back must not dwell.
_ENOUGH_S = 0.2

# Guidance scales (text, picture) that make a step of so many rows.
_SCALES_BY_ROWS = {1: (1.0, 1.0), 2: (2.0, 2.0), 3: (2.0, 1.5)}


def warm_up(engine: Engine, config: WorkerConfig) -> Costs:
    """Seconds of each bucket that fits the engine's slots: the median of a few runs, the first not counted.

    The slots are free before and after.
    """
    if engine.known_costs is not None:
        return engine.known_costs
    begin = time.perf_counter()
    costs = {
        **_measure_jobs(engine, Stage.ENCODE, config.encode_buckets, config.warmup_repeats, engine.encode),
        **_measure_denoise(engine, config),
        **_measure_jobs(engine, Stage.DECODE, config.decode_buckets, config.warmup_repeats, engine.decode),
    }
    _try_adapters(engine)
    log.info("warm in %.1f s: %s", time.perf_counter() - begin, describe(costs))
    return costs


def describe(costs: Costs) -> str:
    """The costs in one line, milliseconds."""
    parts = (f"{stage.name.lower()} {bucket}: {seconds * 1e3:.1f} ms" for (stage, bucket), seconds in costs.items())
    return ", ".join(parts)


def _measure_jobs(
    engine: Engine, stage: Stage, buckets: Iterable[int], repeats: int, run: Callable[[list[int]], Done | Pending]
) -> dict[tuple[Stage, int], float]:
    costs = {}
    for bucket in buckets:
        if bucket > engine.num_slots:
            break
        slots = _admit(engine, [1] * bucket, steps=1)
        costs[stage, bucket] = _median_seconds([partial(run, slots)] * (repeats + 1))
        _release(engine, slots)
    return costs


def _measure_denoise(engine: Engine, config: WorkerConfig) -> dict[tuple[Stage, int], float]:
    costs = {}
    repeats, at_once = config.warmup_repeats, max(config.encode_buckets)
    for bucket in config.denoise_buckets:
        rows = [3] * (bucket // 3) + [bucket % 3] * bool(bucket % 3)
        if len(rows) > engine.num_slots:
            break
        steps = min(repeats + 1, engine.model.max_steps)
        slots = _admit(engine, rows, steps)
        for start in range(0, len(slots), at_once):
            engine.encode(slots[start : start + at_once]).wait()
        ticks = [partial(engine.denoise, slots, [tick % steps] * len(slots)) for tick in range(repeats + 1)]
        costs[Stage.DENOISE, bucket] = _median_seconds(ticks)
        _release(engine, slots)
    return costs


def _try_adapters(engine: Engine) -> None:
    """One step with each adapter: the first is slower than the others."""
    for name, traits in engine.model.adapters.items():
        scales = traits.min_guidance_scale, traits.min_image_guidance_scale
        engine.admit(0, Job("warm up", _grey(engine), 1, *scales, seed=0, adapter=name))
        engine.encode([0]).wait()
        engine.denoise([0], [0]).wait()
        engine.release(0)


def _median_seconds(runs: Sequence[Callable[[], Done | Pending]]) -> float:
    """Of all but the first; a slow bucket needs no more than one."""
    seconds: list[float] = []
    runs[0]().wait()
    for run in runs[1:]:
        begin = time.perf_counter()
        done = run().wait()
        seconds.append(time.perf_counter() - begin if done.seconds is None else done.seconds)
        if sum(seconds) > _ENOUGH_S:
            break
    return statistics.median(seconds)


def _admit(engine: Engine, rows: list[int], steps: int) -> list[int]:
    """Jobs with so many rows a step, in the first slots."""
    for slot, count in enumerate(rows):
        text, picture = _SCALES_BY_ROWS[count]
        assert rows_per_step(text, picture) == count
        engine.admit(slot, Job("warm up", _grey(engine), steps, text, picture, seed=slot))
    return list(range(len(rows)))


def _grey(engine: Engine) -> Pixels:
    return np.full((engine.model.height, engine.model.width, 3), 128, np.uint8)


def _release(engine: Engine, slots: list[int]) -> None:
    for slot in slots:
        engine.release(slot)
