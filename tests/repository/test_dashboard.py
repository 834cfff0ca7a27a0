"""The Grafana dashboard asks for what there is: its queries are parsed, and held against docs/metrics.md.

No server evaluates them here; that the page lists what is really shown is tested where the services run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "steploom.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (ROOT / "docs" / "metrics.md").read_text()

OF_TARGETS = {"job", "instance"}  # labels that Prometheus adds
VARIABLES = {"$__rate_interval": "5m", "$job": "steploom", "$instance": ".*", "$tier": "free", "$worker": ".*"}
OVER_TIME = {"rate", "increase", "irate"}


@dataclass(frozen=True)
class Series:
    """What the page says of a name that queries may use."""

    kind: str
    labels: frozenset[str]

    @property
    def is_cumulative(self) -> bool:
        return self.kind != "gauge"


def series() -> dict[str, Series]:
    """By name, those of histograms in their parts."""
    found = {"process_cpu_seconds_total": Series("counter", frozenset(OF_TARGETS))}
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE):
        names = frozenset(re.findall(r"`(\w+)`", labels)) | OF_TARGETS
        parts = {"": names} if kind != "histogram" else {"_sum": names, "_count": names, "_bucket": names | {"le"}}
        found |= {name + suffix: Series(kind, own) for suffix, own in parts.items()}
    return found


SERIES = series()


def filled(query: str) -> str:
    """A query with values for Grafana's variables."""
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def children(node: Any) -> list[Any]:
    """The expressions right below one."""
    match node:
        case promql.BinaryExpr():
            return [node.lhs, node.rhs]
        case promql.Call():
            return list(node.args)
        case promql.MatrixSelector():
            return [node.vector_selector]
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return [node.expr]
    return []


def problems(node: Any) -> Iterator[str]:
    """What Prometheus would answer without an error, and without a value."""
    match node:
        case promql.VectorSelector():
            if node.name not in SERIES:
                yield f"{node.name} does not exist"
                return
            wrong = {matcher.name for matcher in node.matchers.matchers} - SERIES[node.name].labels - OF_TARGETS
            yield from (f"{node.name} has no label {label}" for label in sorted(wrong))
        case promql.AggregateExpr():
            wrong = set(node.modifier.labels if node.modifier else ()) - labels_of(node.expr)
            yield from (f"{node} is by {label}, which is not there" for label in sorted(wrong))
        case promql.Call():
            cumulative = {SERIES[name].is_cumulative for name in names_in(node) if name in SERIES}
            if node.func.name in OVER_TIME and cumulative != {True}:
                yield f"{node} is of a gauge"
            if node.func.name == "histogram_quantile" and "le" not in labels_of(node.args[1]):
                yield f"{node} is of no buckets"
    for child in children(node):
        yield from problems(child)


def names_in(node: Any) -> set[str]:
    """Of all series below a node."""
    own = {node.name or ""} if isinstance(node, promql.VectorSelector) else set()
    return own.union(*(names_in(child) for child in children(node)))


def labels_of(node: Any) -> set[str]:
    """Labels that an expression's values have."""
    match node:
        case promql.VectorSelector():
            return set(SERIES[node.name].labels) if node.name in SERIES else set()
        case promql.AggregateExpr():
            return set(node.modifier.labels) if node.modifier else set()
        case promql.BinaryExpr():
            return labels_of(node.lhs) & labels_of(node.rhs) if labels_of(node.rhs) else labels_of(node.lhs)
        case promql.Call() if node.func.name == "histogram_quantile":
            return labels_of(node.args[1]) - {"le"}
    return set().union(*(labels_of(child) for child in children(node)))


def targets() -> list[tuple[str, str]]:
    """Queries of panels, and how their lines are named."""
    return [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]


QUERIES = [query for query, _ in targets()] + [note["expr"] for note in DASHBOARD["annotations"]["list"]]
OF_THE_PAGE = re.findall(r"^\| [^`|]+ \| `([^`]+)` \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("query", [*QUERIES, *OF_THE_PAGE])
def test_a_query_asks_for_what_there_is(query: str) -> None:
    assert "$" not in filled(query)
    assert list(problems(promql.parse(filled(query)))) == []


@pytest.mark.parametrize(("query", "legend"), targets())
def test_a_line_is_named_by_labels_that_it_has(query: str, legend: str) -> None:
    assert set(re.findall(r"{{(\w+)}}", legend)) == labels_of(promql.parse(filled(query)))


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("steploom_batcher_queue", "does not exist"),
        ('steploom_batcher_queued{stage="x"}', "has no label stage"),
        ("sum by (cause) (rate(steploom_batcher_ended_total[5m]))", "is by cause"),
        ("rate(steploom_batcher_queued[5m])", "is of a gauge"),
        ("histogram_quantile(0.5, sum by (tier) (rate(steploom_gateway_stage_seconds_bucket[5m])))", "of no buckets"),
        ("sum(rate(steploom_batcher_tick_rows[5m]))", "does not exist"),
    ],
)
def test_the_check_itself(query: str, problem: str) -> None:
    assert any(problem in found for found in problems(promql.parse(query)))


def test_the_page_has_queries() -> None:
    assert len(OF_THE_PAGE) >= 5


def test_variables_ask_for_labels_that_there_are() -> None:
    asked = [item["query"]["query"] for item in DASHBOARD["templating"]["list"] if item["type"] == "query"]
    for query in asked:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert found is not None
        assert found[2] in SERIES[found[1]].labels
    defined = {f"${item['name']}" for item in DASHBOARD["templating"]["list"]}
    assert {word for query in QUERIES for word in re.findall(r"\$\w+", query)} <= defined | {"$__rate_interval"}


def test_panels_stand_beside_each_other_with_ids_of_their_own() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(taken.values()) == 1
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_says_what_it_shows_and_takes_the_data_source_that_was_chosen() -> None:
    for panel in PANELS:
        assert panel["description"]
        assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {
            "${datasource}"
        }
