"""Ticks as a Gantt picture: a lane for each worker and stage, each tick's rows in the colours of their requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from xml.sax.saxutils import escape

from steploom_loadtest.charts import axis, number, picture, text
from steploom_loadtest.report import Record
from steploom_loadtest.report_model import RanTick

MAX_STRIPS = 4000  # in a picture: a request's part in a tick each
_MAX_WIDTH = 6000  # pixels; the page scrolls it
_MIN_WIDTH = 816
_TICK_PX = 3.0  # of the median tick at least, in a picture of the widest kind
_MARK_PX = 160  # pixels between written moments
_LABELS = 64  # pixels, for the names of lanes
_STAGES = {"encode": 22, "denoise": 84, "decode": 22}  # pixels of a lane
_GAP, _TOP, _BOTTOM = 4, 22, 26


@dataclass(frozen=True)
class Timeline:
    """The picture, and what it shows."""

    html: str
    begin_s: float  # of the run
    end_s: float
    is_whole: bool  # all ticks are in it


def timeline(ticks: Sequence[RanTick], requests: Sequence[Record]) -> Timeline:
    """Of all ticks, or where they are too many of those around the moment with the most open requests."""
    shown = _window(ticks, _busiest_s(requests))
    begin_s, end_s = min(tick.start_s for tick in shown), max(tick.end_s for tick in shown)
    span_s = max(1e-6, end_s - begin_s)
    typical_s = max(1e-6, median(tick.seconds for tick in shown))
    width = min(_MAX_WIDTH, max(_MIN_WIDTH, 2 * _TICK_PX * span_s / typical_s))
    lanes = _lanes(shown)
    height = _TOP + _BOTTOM + sum(_STAGES.get(stage, 22) + _GAP for _, stage in lanes)
    by_id = {record.request_id: (place, record) for place, record in enumerate(requests) if record.request_id}
    x = axis([begin_s, end_s], 0.0, width, low=begin_s, high=end_s, marks=max(1, int(width / _MARK_PX)))
    parts = [*_scale(x.ticks, x.at, height)]
    labels = []
    top = float(_TOP)
    for worker, stage in lanes:
        lane = float(_STAGES.get(stage, 22))
        labels.append(text(_LABELS - 6, top + lane / 2 + 4, stage, "end"))
        if stage == lanes[0][1]:
            labels.append(text(2, top - 6, worker.rpartition("/")[2].removesuffix(".sock"), "start"))
        parts.append(f'<rect class="lane" x="0" y="{top:g}" width="{width:.1f}" height="{lane:g}"/>')
        for tick in shown:
            if (tick.worker, tick.stage) == (worker, stage):
                parts += _tick(tick, x.at(tick.start_s), x.at(tick.end_s), top, lane, by_id)
        top += lane + _GAP
    left = picture(_LABELS, height, "lanes", labels)
    right = picture(width, height, "ticks by worker, stage and time", parts)
    html = f'<div class="gantt">{left}<div class="scroll">{right}</div></div>'
    return Timeline(html, begin_s, end_s, len(shown) == len(ticks))


def colour_of(place: int) -> str:
    """Of the request at this place of the trace; neighbours differ as much as may be."""
    return f"hsl({place * 137.508 % 360:.0f} 62% {46 + place * 7 % 20}%)"


def _window(ticks: Sequence[RanTick], around_s: float) -> Sequence[RanTick]:
    """Ticks next to a moment, as many as can be shown."""
    nearest = sorted(ticks, key=lambda tick: abs((tick.start_s + tick.end_s) / 2 - around_s))
    longest_s = _MAX_WIDTH / _TICK_PX * median(tick.seconds for tick in ticks)
    shown: list[RanTick] = []
    strips = 0
    for tick in nearest:
        strips += 1 + len(tick.shares)
        is_far = abs((tick.start_s + tick.end_s) / 2 - around_s) > longest_s / 2
        if shown and (strips > MAX_STRIPS or is_far):
            break
        shown.append(tick)
    return sorted(shown, key=lambda tick: tick.start_s)


def _busiest_s(requests: Sequence[Record]) -> float:
    """The moment with the most open requests, the first of them."""
    changes = sorted(
        [(record.arrival.at, 1) for record in requests] + [(record.ended_at, -1) for record in requests],
        key=lambda change: (change[0], change[1]),
    )
    most, now, moment = 0, 0, 0.0
    for at, change in changes:
        now += change
        if now > most:
            most, moment = now, at
    return moment


def _lanes(ticks: Sequence[RanTick]) -> list[tuple[str, str]]:
    workers = sorted({tick.worker for tick in ticks})
    stages = [*_STAGES, *sorted({tick.stage for tick in ticks} - set(_STAGES))]
    return [(worker, stage) for worker in workers for stage in stages]


def _scale(values: Sequence[float], at: object, height: float) -> Iterator[str]:
    assert callable(at)
    for value in values:
        yield f'<line class="grid" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        yield text(at(value), height - 8, f"{number(value)} s")


def _tick(
    tick: RanTick, begin: float, end: float, top: float, lane: float, by_id: Mapping[str, tuple[int, Record]]
) -> Iterator[str]:
    """A box as high as its bucket, filled by its requests from below; what stays empty is padding."""
    width = max(0.4, end - begin)
    told = f"{tick.stage}, {tick.rows} rows of {tick.bucket}, {1000 * tick.seconds:.1f} ms, from {tick.start_s:.3f} s"
    state = "tick" if tick.is_ok else "tick failed"
    yield f'<rect class="{state}" x="{begin:.2f}" y="{top:g}" width="{width:.2f}" height="{lane:g}">'
    yield f"<title>{escape(told)}{'' if tick.is_ok else '; it did not run'}</title></rect>"
    if not tick.is_ok:
        return
    bottom = top + lane
    row = lane / max(1, tick.bucket, sum(share.rows for share in tick.shares))
    for share in tick.shares:
        high = row * share.rows
        bottom -= high
        place, record = by_id.get(share.request_id, (None, None))
        colour = "var(--others)" if place is None else colour_of(place)
        who = f"request {place}, {record.arrival.label}" if record else "a request that got no picture, or is not ours"
        step = f", step {share.step}" if share.step else ""
        yield f'<rect x="{begin:.2f}" y="{bottom:.2f}" width="{width:.2f}" height="{high:.2f}" fill="{colour}">'
        yield f"<title>{escape(who)}{step}: {share.rows} of {tick.rows} rows</title></rect>"
