"""A report as one HTML page that needs nothing else: figures, tables and pictures. It is well-formed XML too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources

from steploom_loadtest.charts import Chart, Mark, Series, legend, svg
from steploom_loadtest.report import OK, Record
from steploom_loadtest.report_figures import SHARES, Figures, figures
from steploom_loadtest.report_model import Point, Report, Sweep
from steploom_loadtest.report_table import facts, verdicts
from steploom_loadtest.timeline import timeline

_COLOURS = "".join(
    f"circle.c{place}, .legend .c{place} {{ fill: var(--c{place}); background: var(--c{place}); }}"
    f".line.c{place} {{ stroke: var(--c{place}); }}"
    for place in range(8)
)
_BINS = 60  # of the chart of rates at most
_MAX_STEPS = 600  # of a distribution's line


def page(report: Report) -> str:
    """The whole page."""
    return document(report.origin.title, _parts(report, figures(report)))


def document(title: str, parts: Iterable[str]) -> str:
    """A page of these parts, with the style that their classes are for."""
    style = resources.files("steploom_loadtest").joinpath("report.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{style}{_COLOURS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _parts(report: Report, found: Figures) -> Iterator[str]:
    origin = report.origin
    yield f"<h1>{escape(origin.title)}</h1>"
    yield f'<p class="faint">{escape(" · ".join(item for item in (origin.kind, origin.when) if item))}</p>'
    yield _tiles(report, found)
    if report.sweep:
        yield from _sweep(report.sweep)
        yield f"<h2>The run at {report.offered_rate:.2f} requests a second</h2>"
    yield _tier_table(found)
    yield _pairs(facts(report, found))
    if report.requests:
        yield from _latency(report.requests)
        yield from _distribution(report.requests)
        yield from _rates(report, found)
    yield from _ticks(report)
    if origin.settings:
        yield "<h2>What was asked for</h2>"
        yield _pairs(origin.settings.items())


def _tiles(report: Report, found: Figures) -> str:
    tiles = [
        ("requests a second offered", f"{found.offered_rate:.2f}"),
        ("pictures a second", f"{found.achieved_rate:.2f}"),
        ("of them in time", f"{found.goodput:.2f}"),
        *((f"{tier.tier}: in time", f"{tier.in_time_share:.1%}") for tier in found.tiers),
    ]
    if found.devices and found.devices.busy is not None:
        tiles.append(("devices busy", f"{found.devices.busy:.0%}"))
    if found.cost_per_1000 is not None:
        tiles.append(("for 1,000 pictures", f"{found.cost_per_1000:.4g}"))
    if report.is_interrupted:
        tiles.append(("interrupted after", f"{found.seconds:.1f} s"))
    return (
        f'<ul class="tiles">{"".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in tiles)}</ul>'
    )


def _tier_table(found: Figures) -> str:
    heads = ("tier", "sent", "done", "in time", "deadline s", *(f"{name} s" for name in SHARES), "max s", "rows a tick")
    rows = (
        [
            *(tier.tier, str(tier.sent), str(tier.done), f"{tier.in_time_share:.1%}", f"{tier.deadline_s:g}"),
            *(f"{value:.3f}" for value in (*tier.percentiles_s.values(), tier.max_s)),
            f"{tier.rows_per_tick:.1f}",
        ]
        for tier in found.tiers
    )
    return _table(heads, rows)


def _latency(records: Sequence[Record]) -> Iterator[str]:
    tiers = _tiers(records)
    series, marks = [], []
    for colour, tier in enumerate(tiers):
        mine = [record for record in records if record.arrival.tier == tier]
        done = [record for record in mine if record.status == OK]
        lost = [record for record in mine if record.status != OK]
        for form, some in (("dots", done), ("crosses", lost)):
            titles = [_told(record) for record in some]
            points = [(record.arrival.at, max(1e-4, record.latency_s)) for record in some]
            series.append(Series(tier, points, colour, form, titles))
        deadline_s = max(record.arrival.deadline_s for record in mine)
        if done and deadline_s <= 20 * max(record.latency_s for record in done):
            marks.append(Mark(f"deadline of {tier}", deadline_s, colour))
    yield "<h2>Latency by the moment at which a request was to be sent</h2>"
    yield '<p class="faint">Dots are pictures, crosses are requests that ended without one.</p>'
    yield legend((tier, colour) for colour, tier in enumerate(tiers))
    yield svg(Chart("latency against time", "seconds of the run", "seconds", series, marks, is_y_log=True))


def _distribution(records: Sequence[Record]) -> Iterator[str]:
    series, marks = [], []
    for colour, tier in enumerate(_tiers(records)):
        mine = [record for record in records if record.arrival.tier == tier]
        latencies = sorted(record.latency_s for record in mine if record.status == OK)
        if latencies:
            points = [(value, 100 * (place + 1) / len(latencies)) for place, value in enumerate(latencies)]
            points = points[:: max(1, len(points) // _MAX_STEPS)] + points[-1:]
            series.append(Series(tier, [(points[0][0], 0.0), *points], colour, "steps"))
            deadline_s = max(record.arrival.deadline_s for record in mine)
            if deadline_s <= 20 * latencies[-1]:
                marks.append(Mark(f"deadline of {tier}", deadline_s, colour, is_vertical=True))
    if not series:
        return
    yield "<h2>Distribution of latency</h2>"
    yield '<p class="faint">The share of a tier\'s pictures that were there within so many seconds.</p>'
    yield legend((item.name, item.colour) for item in series)
    yield svg(Chart("distribution of latency", "seconds", "% of pictures", series, marks, is_x_log=True, y_high=100.0))


def _rates(report: Report, found: Figures) -> Iterator[str]:
    bins = max(1, min(_BINS, len(report.requests) // 4))
    width_s = max(found.seconds / bins, 1e-6)

    def line(moments: Iterable[float]) -> list[tuple[float, float]]:
        counts = [0] * bins
        for moment in moments:
            counts[min(bins - 1, max(0, int(moment / width_s)))] += 1
        return [(place * width_s, count / width_s) for place, count in enumerate([*counts, counts[-1]])]

    done = [record for record in report.requests if record.status == OK]
    series = [
        Series("requests", line(record.arrival.at for record in report.requests), 7, "steps"),
        Series("pictures", line(record.ended_at for record in done), 0, "steps"),
        Series("pictures in time", line(record.ended_at for record in done if record.is_good), 2, "steps"),
    ]
    yield f"<h2>Requests and pictures a second</h2><p class='faint'>Counted in steps of {width_s:.2g} s.</p>"
    yield legend((item.name, item.colour) for item in series)
    yield svg(Chart("requests and pictures a second", "seconds of the run", "a second", series))


def _ticks(report: Report) -> Iterator[str]:
    if not report.ticks:
        return
    drawn = timeline(report.ticks, report.requests)
    which = "All ticks" if drawn.is_whole else "The ticks around the moment with the most open requests"
    yield "<h2>Ticks</h2>"
    lost = f"; {report.lost_ticks} more were not heard of" if report.lost_ticks else ""
    yield (
        f'<p class="faint">{which}: {drawn.begin_s:.2f} s to {drawn.end_s:.2f} s, of {len(report.ticks)} ticks{lost}. '
        "A box is a tick, as high as its bucket; each colour is a request, as high as its rows; what is empty is "
        "padding, what is grey got no picture or is not of this load.</p>"
    )
    yield drawn.html


def _sweep(sweep: Sweep) -> Iterator[str]:
    names = [limit.tier for limit in sweep.limits]
    series, marks = [], []
    for colour, name in enumerate(names):
        points = [(point.rate, tier) for point in sweep.points for tier in point.tiers if tier.tier == name]
        for form, field in (("line", "p99_s"), ("dashes", "p50_s")):
            values = [(rate, getattr(tier, field)) for rate, tier in points if getattr(tier, field) > 0]
            series.append(Series(f"{name} {field[:3]}", values, colour, form))
        titles = [
            f"{name} at {rate:.2f}/s: p99 {tier.p99_s:.3f} s, {tier.in_time:.1%} in time" for rate, tier in points
        ]
        spots = [(rate, max(1e-4, tier.p99_s)) for rate, tier in points]
        series.append(Series(name, spots, colour, "dots", titles))
        marks += [Mark(f"deadline of {name}", points[0][1].deadline_s, colour)] if points else []
    marks += [
        Mark(f"{item.tier}", item.holds_at, names.index(item.tier), True) for item in sweep.limits if item.holds_at
    ]
    marks += [Mark("knee", sweep.knee, 7, True)] if sweep.knee is not None else []
    yield "<h2>Latency against load</h2>"
    yield f"<p>{'<br/>'.join(map(escape, verdicts(sweep)))}</p>"
    yield '<p class="faint">Lines: 99th percentile; dashed: median; verticals: the highest rates in time.</p>'
    yield legend(zip(names, range(len(names)), strict=True))
    yield svg(Chart("latency against load", "requests a second", "seconds", series, marks, is_y_log=True))
    rates = [
        Series("offered", [(point.rate, point.rate) for point in sweep.points], 7, "dashes"),
        Series("pictures", [(point.rate, point.achieved) for point in sweep.points], 0, "line"),
        Series("pictures in time", [(point.rate, point.goodput) for point in sweep.points], 2, "line"),
    ]
    yield "<h2>Pictures against load</h2>"
    yield legend((item.name, item.colour) for item in rates)
    yield svg(Chart("pictures against load", "requests a second", "a second", rates))
    heads = [f"{name} {what}" for name in names for what in ("in time", "p50 s", "p99 s")]
    yield _table(("rate /s", "pictures /s", "in time /s", *heads), (_point(point, names) for point in sweep.points))


def _point(point: Point, names: Sequence[str]) -> list[str]:
    cells = [f"{point.rate:.2f}", f"{point.achieved:.2f}", f"{point.goodput:.2f}"]
    tiers = {tier.tier: tier for tier in point.tiers}
    for name in names:
        tier = tiers.get(name)
        cells += [f"{tier.in_time:.1%}", f"{tier.p50_s:.3f}", f"{tier.p99_s:.3f}"] if tier else ["", "", ""]
    return cells


def _told(record: Record) -> str:
    end = record.status if record.status == OK else record.cause or record.status
    return f"{record.arrival.label} at {record.arrival.at:.3f} s: {end} after {record.latency_s:.3f} s"


def _tiers(records: Sequence[Record]) -> list[str]:
    return sorted({record.arrival.tier for record in records})


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f'<table class="wide"><tbody>{body}</tbody></table>'
