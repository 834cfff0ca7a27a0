"""Which buckets are measured, and that nothing is left behind."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from steploom_common.settings import ConfigError
from steploom_engine_worker import warmup
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Costs, Job, Stage
from steploom_engine_worker.fake_engine import FakeEngine
from steploom_engine_worker.torch_engine import TorchEngine
from steploom_engine_worker.warmup import warm_up


class Watched(FakeEngine):
    """Has to be measured, and counts its ticks."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.ticks: Counter[tuple[Stage, int]] = Counter()
        self.held = 0

    @property
    def known_costs(self) -> Costs | None:
        return None

    def admit(self, slot: int, job: Job) -> None:
        super().admit(slot, job)
        self.held += 1

    def release(self, slot: int) -> None:
        super().release(slot)
        self.held -= 1

    def _spend(self, stage: Stage, count: int) -> None:
        self.ticks[stage, count] += 1


def test_runs_every_bucket_that_fits_and_leaves_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_ENOUGH_S", math.inf)  # a machine that stalls makes no bucket a slow one
    config = WorkerConfig(
        slots=4, denoise_buckets=(1, 2, 3, 6, 7, 12, 13), encode_buckets=(1, 4, 8), decode_buckets=(2,)
    )
    engine = Watched(config)
    costs = warm_up(engine, config)
    fits = [
        (Stage.ENCODE, 1),
        (Stage.ENCODE, 4),
        *((Stage.DENOISE, rows) for rows in (1, 2, 3, 6, 7, 12)),
        (Stage.DECODE, 2),
    ]
    assert list(costs) == fits
    assert all(seconds >= 0.0 for seconds in costs.values())
    assert all(engine.ticks[bucket] >= 1 + config.warmup_repeats for bucket in fits)
    assert engine.held == 0


def test_no_tick_is_larger_than_its_stage_s_largest_bucket() -> None:
    config = WorkerConfig(slots=8, denoise_buckets=(1, 24), encode_buckets=(1, 3), decode_buckets=(1,))
    engine = Watched(config)
    assert (Stage.DENOISE, 24) in warm_up(engine, config)
    assert max(count for stage, count in engine.ticks if stage is Stage.ENCODE) == 3


def test_a_slow_bucket_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_ENOUGH_S", -1.0)
    config = WorkerConfig(slots=4, denoise_buckets=(3,), encode_buckets=(2,), decode_buckets=(4,), warmup_repeats=5)
    engine = Watched(config)
    warm_up(engine, config)
    assert engine.ticks[Stage.DENOISE, 3] == engine.ticks[Stage.DECODE, 4] == 2


def test_takes_costs_that_are_known() -> None:
    config = WorkerConfig(engine="fake", denoise_buckets=(1, 5))
    assert warm_up(FakeEngine(config), config)[Stage.DENOISE, 5] == 0.0


def test_warms_a_real_engine(tiny_engine: TorchEngine) -> None:
    config = WorkerConfig(denoise_buckets=(1, 4), encode_buckets=(2,), decode_buckets=(1,), warmup_repeats=1)
    assert all(seconds > 0.0 for seconds in warm_up(tiny_engine, config).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoise_buckets": (3, 1)}, r"denoise_buckets: is \[3, 1\], must be a rising list"),
        ({"encode_buckets": ()}, r"encode_buckets: is \[\], must be"),
        ({"decode_buckets": (0, 1)}, "decode_buckets: is 0, must be at least 1"),
        ({"slots": -1}, "slots: is -1, must be at least 0"),
        ({"dtype": "float8"}, "dtype: is 'float8', must be one of"),
    ],
)
def test_refuses_settings_out_of_bounds(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorkerConfig(**changes)  # type: ignore[arg-type]
