"""What a search of settings has found, for people and scripts: a table, JSON, and a page with the Pareto front."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from steploom_loadtest.charts import Chart, Series, legend, svg
from steploom_loadtest.report_html import document
from steploom_loadtest.tuner import Candidate, Score, Tuning

LIVE = Mapping[int, Score]  # by place among `chosen`: 0 is the start


def chosen(tuning: Tuning) -> list[Candidate]:
    """The start, then the best, in their order."""
    return [tuning.start, *tuning.best]


def gain(score: Score, start: Score) -> str:
    """Of settings over the start."""
    more = score.goodput / start.goodput - 1.0 if start.goodput else 0.0
    return f"{more:+.1%} pictures in time, p99 {score.p99_share - start.p99_share:+.1%} of the deadline"


def table(tuning: Tuning, live: LIVE) -> Table:
    """A row each for the start and the best: on the traces of the search, on others, and live where that was tried."""
    result = Table(
        title=f"settings at {tuning.goal.rate:.4g} requests a second",
        caption="p99: as a share of the deadline, of the tier where it is most",
        title_justify="left",
        caption_justify="left",
    )
    result.add_column("settings")
    for where in ("searched", "other traces", *(["live"] if live else [])):
        result.add_column(f"in time /s, {where}", justify="right")
        result.add_column("p99", justify="right")
    for tier in tuning.start.score.in_time:
        result.add_column(f"{tier} in time", justify="right")
    for place, item in enumerate(chosen(tuning)):
        scores = [item.score, item.held_out, *([live.get(place)] if live else [])]
        cells = [cell for score in scores for cell in _cells(score)]
        told = live.get(place) or item.held_out or item.score
        shares = [f"{share:.1%}" for share in told.in_time.values()]
        result.add_row("as they are" if not place else f"candidate {place}", *cells, *shares)
    return result


def _cells(score: Score | None) -> tuple[str, str]:
    return ("", "") if score is None else (f"{score.goodput:.2f}", f"{score.p99_share:.0%}")


def as_json(tuning: Tuning, live: LIVE, settings: Mapping[str, str]) -> str:
    """Everything that was tried."""
    content = {
        "settings": dict(settings),
        "rate": tuning.goal.rate,
        "start": _plain(tuning.start),
        "best": [_plain(item) for item in tuning.best],
        "live": {str(place): _score(score) for place, score in live.items()},
        "front": [_plain(item) for item in tuning.front],
        "tried": [_plain(item) for item in tuning.tried],
    }
    return json.dumps(content, indent=1) + "\n"


def _plain(item: Candidate) -> dict[str, Any]:
    held_out = None if item.held_out is None else _score(item.held_out)
    return {"values": dict(item.values), "score": _score(item.score), "held_out": held_out}


def _score(score: Score) -> dict[str, Any]:
    return {"goodput": score.goodput, "p99_share": score.p99_share, "in_time": dict(score.in_time)}


def page(tuning: Tuning, live: LIVE, settings: Mapping[str, str]) -> str:
    """One page that needs nothing else."""
    title = f"Settings at {tuning.goal.rate:.4g} requests a second"
    kinds = [("tried", 0), ("on the front", 1), ("as they are", 2)]
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Pictures in time against p99</h2>",
        '<p class="faint">In the simulator. p99 as a share of the deadline, of the tier where it is most: further down '
        "and to the right is better.</p>",
        legend(kinds),
        svg(pareto(tuning)),
        "<h2>The best, beside what there was</h2>",
        _html_table(tuning, live),
        "<h2>What they set</h2>",
        _settings_table(tuning),
        "<h2>What was asked for</h2>",
        _rows(("", ""), settings.items()),
    ]
    return document(title, parts)


def pareto(tuning: Tuning) -> Chart:
    """All that was tried; the front as a line."""
    tried = [_point(item.score) for item in tuning.tried]
    front = sorted(_point(item.score) for item in tuning.front)
    titles = [", ".join(f"{name} {value:.4g}" for name, value in item.values.items()) for item in tuning.tried]
    series = [
        Series("tried", tried, 0, "dots", titles),
        Series("on the front", front, 1, "line"),
        Series("on the front", front, 1, "dots"),
        Series("as they are", [_point(tuning.start.score)], 2, "crosses"),
    ]
    words = "pictures in time against p99 of all settings that were tried"
    return Chart(words, "pictures in time a second", "p99, % of the deadline", series)


def _point(score: Score) -> tuple[float, float]:
    return score.goodput, 100.0 * score.p99_share


def _html_table(tuning: Tuning, live: LIVE) -> str:
    heads = ["settings", "in time /s, searched", "p99", "in time /s, other traces", "p99", "in time /s, live", "p99"]
    rows = [
        [
            "as they are" if not place else f"candidate {place}",
            *_cells(item.score),
            *_cells(item.held_out),
            *_cells(live.get(place)),
        ]
        for place, item in enumerate(chosen(tuning))
    ]
    return _rows(heads, rows)


def _settings_table(tuning: Tuning) -> str:
    names = list(tuning.start.values)
    heads = ["batcher.", "as they are", *(f"candidate {place}" for place in range(1, len(tuning.best) + 1))]
    return _rows(heads, ([name, *(f"{item.values[name]:.4g}" for item in chosen(tuning))] for name in names))


def _rows(heads: Sequence[str], rows: Any) -> str:
    head = "".join(f"<th>{escape(item)}</th>" for item in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
