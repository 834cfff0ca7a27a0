"""Cost tables to simulate with where no worker is at hand: seconds by stage and bucket."""

from __future__ import annotations

from collections.abc import Mapping

from steploom_batcher.types import Stage


def linear(
    encode: tuple[float, float],
    denoise: tuple[float, float],
    decode: tuple[float, float],
    rows: tuple[int, ...] = (1, 2, 3, 4, 6, 9, 12, 18, 24),
    jobs: tuple[int, ...] = (1, 2, 4),
) -> Mapping[Stage, Mapping[int, float]]:
    """Each stage costs (seconds of a tick, seconds more for each row or job in it)."""
    return {
        Stage.ENCODE: {bucket: encode[0] + encode[1] * bucket for bucket in jobs},
        Stage.DENOISE: {bucket: denoise[0] + denoise[1] * bucket for bucket in rows},
        Stage.DECODE: {bucket: decode[0] + decode[1] * bucket for bucket in jobs},
    }
