"""Charts as plain SVG, well-formed by themselves: points, lines and steps on two axes, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

_WIDTH, _HEIGHT = 880, 320  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 44
MAX_POINTS = 4000  # of a series; the page must open quickly
_COLOURS = 8  # classes c0 to c7 of the style sheet


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str
    points: Sequence[tuple[float, float]]  # x, y
    colour: int = 0  # of the style sheet
    form: str = "dots"  # dots, line, dashes, steps: a line that stays at its y until the next x; crosses
    titles: Sequence[str] = ()  # of dots, shown on hovering; empty: none


@dataclass(frozen=True)
class Mark:
    """A line across."""

    name: str
    value: float
    colour: int = 0
    is_vertical: bool = False


@dataclass(frozen=True)
class Chart:
    """What a picture shows."""

    title: str  # for those who do not see it
    x_label: str
    y_label: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    is_x_log: bool = False
    is_y_log: bool = False
    y_low: float | None = None  # None: by what there is to show
    y_high: float | None = None


@dataclass(frozen=True)
class Axis:
    """Where values of one kind stand."""

    low: float
    high: float
    begin: float  # pixels of `low`
    end: float  # pixels of `high`
    is_log: bool = False
    ticks: Sequence[float] = field(default=())

    def at(self, value: float) -> float:
        """Pixels of a value; those outside stand at the edge."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)


def axis(
    values: Iterable[float],
    begin: float,
    end: float,
    is_log: bool = False,
    low: float | None = None,
    high: float | None = None,
    marks: int = 6,
) -> Axis:
    """An axis that holds all values, with round ends and about so many round numbers to be written along it."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    least = min(found, default=1.0 if is_log else 0.0) if low is None else low
    most = max(found, default=1.0) if high is None else high
    if is_log:
        return _log_axis(least, most, begin, end)
    if most <= least:
        most = least + 1.0
    step = _round_step((most - least) / marks)
    least = math.floor(least / step + 1e-9) * step if low is None else low
    most = math.ceil(most / step - 1e-9) * step if high is None else high
    first = math.ceil(least / step - 1e-9)
    ticks = [number * step for number in range(first, math.floor(most / step + 1e-9) + 1)]
    return Axis(least, most, begin, end, False, ticks)


def _log_axis(least: float, most: float, begin: float, end: float) -> Axis:
    low, high = _round_down(least), _round_up(most)
    if high <= low:
        high = 2 * low
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low <= 2000 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return Axis(low, high, begin, end, True, [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001])


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def _round_up(value: float) -> float:
    return _round_step(max(value, 1e-9))


def _round_down(value: float) -> float:
    value = max(value, 1e-9)
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return max(factor * power for factor in (1, 2, 5) if factor * power <= value * 1.001)


def number(value: float) -> str:
    """As it is written along an axis."""
    return f"{value:.6g}"


def svg(chart: Chart) -> str:
    """The picture."""
    xs = [x for series in chart.series for x, _ in series.points]
    ys = [y for series in chart.series for _, y in series.points]
    xs += [mark.value for mark in chart.marks if mark.is_vertical]
    ys += [mark.value for mark in chart.marks if not mark.is_vertical]
    x = axis(xs, _LEFT, _WIDTH - _RIGHT, chart.is_x_log, None if chart.is_x_log else 0.0)
    low = 0.0 if chart.y_low is None and not chart.is_y_log else chart.y_low
    y = axis(ys, _HEIGHT - _BOTTOM, _TOP, chart.is_y_log, low, chart.y_high)
    parts = [*_frame(chart, x, y)]
    for series in chart.series:
        parts += _drawn(series, x, y)
    upright = [mark for mark in chart.marks if mark.is_vertical]
    parts += [_mark(mark, x, y, upright.index(mark) if mark.is_vertical else 0) for mark in chart.marks]
    return picture(_WIDTH, _HEIGHT, chart.title, parts)


def picture(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """An SVG of its own."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" aria-label={quoteattr(title)}>' + "".join(parts) + "</svg>"
    )


def legend(names: Iterable[tuple[str, int]]) -> str:
    """Names and colours, as HTML."""
    items = (f'<li><i class="c{colour % _COLOURS}"></i>{escape(name)}</li>' for name, colour in names)
    return f'<ul class="legend">{"".join(items)}</ul>'


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def thinned(points: Sequence[tuple[float, float]], at_most: int = MAX_POINTS) -> list[int]:
    """Places of points to show where there are too many: evenly chosen, and the highest of all."""
    if len(points) <= at_most:
        return list(range(len(points)))
    highest = sorted(range(len(points)), key=lambda place: -points[place][1])[: at_most // 10]
    rest = at_most - len(highest)
    return sorted({*highest, *(place * len(points) // rest for place in range(rest))})


def _frame(chart: Chart, x: Axis, y: Axis) -> Iterable[str]:
    for tick in y.ticks:
        yield f'<line class="grid" x1="{x.begin}" x2="{x.end}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}"/>'
        yield text(x.begin - 6, y.at(tick) + 4, number(tick), "end")
    for tick in x.ticks:
        yield f'<line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{y.begin}" y2="{y.end}"/>'
        yield text(x.at(tick), y.begin + 16, number(tick))
    yield text((x.begin + x.end) / 2, _HEIGHT - 8, chart.x_label)
    middle = (y.begin + y.end) / 2
    yield (
        f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">'
        f"{escape(chart.y_label)}</text>"
    )


def _drawn(series: Series, x: Axis, y: Axis) -> list[str]:
    colour = f"c{series.colour % _COLOURS}"
    places = thinned(series.points) if series.form in ("dots", "crosses") else list(range(len(series.points)))
    spots = [(x.at(series.points[place][0]), y.at(series.points[place][1])) for place in places]
    if series.form in ("dots", "crosses"):
        titles = [series.titles[place] if series.titles else "" for place in places]
        return [_spot(series.form, colour, spot, title) for spot, title in zip(spots, titles, strict=True)]
    if not spots:
        return []
    path = [f"M{spots[0][0]:.1f} {spots[0][1]:.1f}"]
    for across, up in spots[1:]:
        path.append(f"H{across:.1f}V{up:.1f}" if series.form == "steps" else f"L{across:.1f} {up:.1f}")
    dashes = " dashed" if series.form == "dashes" else ""
    return [f'<path class="line {colour}{dashes}" d="{"".join(path)}"><title>{escape(series.name)}</title></path>']


def _spot(form: str, colour: str, spot: tuple[float, float], title: str) -> str:
    told = f"<title>{escape(title)}</title>" if title else ""
    across, up = spot
    if form == "dots":
        return f'<circle class="{colour}" cx="{across:.1f}" cy="{up:.1f}" r="2.5">{told}</circle>'
    cross = f"M{across - 3:.1f} {up - 3:.1f}l6 6m0 -6l-6 6"
    return f'<path class="line {colour}" d="{cross}">{told}</path>'


def _mark(mark: Mark, x: Axis, y: Axis, line: int) -> str:
    """Names of upright marks stand on a line each: the marks may be at one place."""
    colour = f"c{mark.colour % _COLOURS}"
    if mark.is_vertical:
        at = x.at(mark.value)
        ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{y.begin}" y2="{y.end}"'
        is_right = at > (x.begin + 3 * x.end) / 4  # where words to its right would be cut off
        words = text(at - 4 if is_right else at + 4, y.end + 12 + 12 * line, mark.name, "end" if is_right else "start")
    else:
        at = y.at(mark.value)
        ends = f'x1="{x.begin}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"'
        words = text(x.end - 4, at - 4, mark.name, "end")
    return f'<line class="line dashed {colour}" {ends}/>{words}'
