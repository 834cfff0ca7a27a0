"""Whether a figure of a process stays where it is: by the slope that half of all pairs of samples exceed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MAX_SAMPLES = 200  # of a series that are compared, spread over it: the pairs grow with the square


@dataclass(frozen=True)
class Bound:
    """How much a figure may rise while it is watched."""

    least: float  # in the figure's unit
    share: float = 0.0  # of the figure itself


@dataclass(frozen=True)
class Trend:
    """What became of a figure after the warm-up."""

    first: float  # median of the first tenth of the samples
    last: float  # and of the last
    rise: float  # that the slope makes over the whole time; 0 where it falls
    bound: float  # of the rise

    @property
    def is_flat(self) -> bool:
        """It has not risen by more than it may."""
        return self.rise <= self.bound


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Theil-Sen: the median of the slopes of all pairs. Up to 29 % of the samples may be anything at all.

    Follows Sen, "Estimates of the Regression Coefficient Based on Kendall's Tau", J. Am. Stat. Assoc. 63 (1968).

    Args:
        times: of the samples, rising.
        values: of the figure.

    Returns:
        Units a second; 0 for fewer than two samples.
    """
    step = -(-len(times) // MAX_SAMPLES) or 1
    points = [*zip(times, values, strict=True)][::step]
    slopes = [(b - a) / (t - s) for i, (s, a) in enumerate(points) for t, b in points[i + 1 :] if t > s]
    return median(slopes) if slopes else 0.0


def trend(times: Sequence[float], values: Sequence[float], bound: Bound) -> Trend:
    """How a figure went.

    Raises:
        ValueError: there is no sample.
    """
    if not times:
        raise ValueError("there is no sample")
    tenth = -(-len(values) // 10)
    rise = max(0.0, slope(times, values)) * (times[-1] - times[0])
    first = median(values[:tenth])
    return Trend(first, median(values[-tenth:]), rise, bound.least + bound.share * first)
