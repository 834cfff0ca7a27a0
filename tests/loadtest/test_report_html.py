"""The page, the table and the CSV of a report: well-formed, by themselves, and with the figures of the run."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from steploom_batcher.config import default_tiers
from steploom_loadtest.charts import Chart, Mark, Series, axis, svg, thinned
from steploom_loadtest.report import OK, Record
from steploom_loadtest.report_files import NAMES, requests_csv, write_report
from steploom_loadtest.report_html import page
from steploom_loadtest.report_model import (
    LIVE,
    Limit,
    Origin,
    Point,
    RanTick,
    Report,
    Share,
    StageWork,
    Sweep,
    TierPoint,
    Work,
)
from steploom_loadtest.report_table import tables
from steploom_loadtest.timeline import MAX_STRIPS, colour_of, timeline
from steploom_loadtest.trace_file import read_trace
from steploom_loadtest.traces import Arrival

SVG = "{http://www.w3.org/2000/svg}"


def record(number: int, tier: str = "free", status: str = OK) -> Record:
    arrival = Arrival(0.1 * number, tier, 3, 3, 1.0)
    cause = "" if status == OK else "full: tier:<free>"
    return Record(arrival, status, 0.1 * number + 0.25, 0.05, 3.0, 5, 0.001, cause, request_id=f"id{number}")


RECORDS = [record(number, "pro" if number % 10 == 9 else "free") for number in range(40)]
RECORDS[5] = record(5, status="RESOURCE_EXHAUSTED")


def ticks(count: int, worker: str = "unix:/run/worker-0.sock") -> list[RanTick]:
    shares = (Share("id1", 3, 1), Share("not ours", 1, 2))
    return [RanTick(worker, "denoise", 0.01 * place, 0.009, 4, 6, shares) for place in range(count)]


WORK = Work(
    1,
    {"encode": StageWork(40, 40, 0, 0.4), "denoise": StageWork(120, 360, 40, 1.0), "decode": StageWork(40, 40, 0, 0.4)},
    {},
)
REPORT = Report(
    Origin(LIVE, "a run of <free> & pro", "2026-01-01T00:00:00+00:00", {"mix": "free=9,pro=1"}),
    10.0,
    4.0,
    RECORDS,
    ticks(20),
    work=WORK,
    price=2.5,
    devices=1,
    notes=("mind <this>",),
)


def point(rate: float) -> Point:
    tiers = tuple(
        TierPoint(tier, 100, share, 0.1, 0.2 * rate, 1.0, 0.0, share >= 0.99)
        for tier, share in (("free", 1.0), ("pro", 1.2 - 0.1 * rate))
    )
    return Point(rate, 10.0, min(rate, 7.0), min(rate, 6.0), 0.1 * rate, 0.002, tiers)


SWEEP = Sweep(
    (point(1.0), point(2.0), point(4.0)), (Limit("free", 4.0, None), Limit("pro", 2.0, 4.0)), 0.05, 2.0, (1.0, 4.0)
)


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def words(element: ElementTree.Element) -> str:
    return " ".join(element.itertext())


def pictures(element: ElementTree.Element) -> dict[str, ElementTree.Element]:
    return {found.attrib["aria-label"]: found for found in element.iter(f"{SVG}svg")}


def test_the_page_is_well_formed_needs_nothing_else_and_runs_nothing() -> None:
    text = page(REPORT)
    root = tree(text)
    assert root.tag == "html"
    assert not re.search(r"<script|<link|<img|\ssrc=|url\(|@import", text)
    assert [item for item in re.findall(r'https?://[^"\s)]+', text) if "w3.org" not in item] == []
    HTMLParser().feed(text)


def test_the_page_holds_the_figures_of_the_run() -> None:
    said = words(tree(page(REPORT)))
    for figure in (
        "10.00",
        "39",
        "97.2%",
        "full: tier:<free> 1",
        "mind <this>",
        "a run of <free> & pro",
        "free=9,pro=1",
    ):
        assert figure in said, figure
    assert "4.5" not in said.split("cost")[0]
    assert "for 1,000 pictures" in said


def test_every_request_is_a_point_of_the_chart_of_latencies() -> None:
    chart = pictures(tree(page(REPORT)))["latency against time"]
    dots = [words(dot) for dot in chart.iter(f"{SVG}circle")]
    assert len(dots) == 39
    assert "free 3 steps at 0.000 s: OK after 0.250 s" in dots
    crosses = [words(path) for path in chart.iter(f"{SVG}path")]
    assert [told for told in crosses if "full: tier:<free>" in told]


def test_ticks_are_boxes_with_a_strip_for_each_request_in_its_colour() -> None:
    chart = pictures(tree(page(REPORT)))["ticks by worker, stage and time"]
    boxes = [item for item in chart.iter(f"{SVG}rect") if item.attrib.get("class") == "tick"]
    assert len(boxes) == 20
    assert "denoise, 4 rows of 6, 9.0 ms" in words(boxes[0])
    ours = [item for item in chart.iter(f"{SVG}rect") if item.attrib.get("fill") == colour_of(1)]
    others = [item for item in chart.iter(f"{SVG}rect") if item.attrib.get("fill") == "var(--others)"]
    assert len(ours) == len(others) == 20
    assert "request 1, free 3 steps, step 1: 3 of 4 rows" in words(ours[0])
    height = float(boxes[0].attrib["height"])
    assert float(ours[0].attrib["height"]) == pytest.approx(height * 3 / 6, abs=0.02)  # what is empty is padding
    assert float(others[0].attrib["y"]) < float(ours[0].attrib["y"])
    assert float(ours[1].attrib["x"]) > float(ours[0].attrib["x"])


def test_a_tick_that_did_not_run_is_marked_and_shows_no_request() -> None:
    (failed,) = ticks(1)
    html = timeline([replace(failed, is_ok=False)], RECORDS).html
    assert "tick failed" in html
    assert "it did not run" in html
    assert colour_of(1) not in html


def test_of_too_many_ticks_those_around_the_busiest_moment_are_drawn() -> None:
    many = ticks(10_000)
    busy = [replace(item, arrival=replace(item.arrival, at=50.0), ended_at=50.1) for item in RECORDS]
    drawn = timeline(many, busy)
    assert not drawn.is_whole
    assert drawn.html.count("<rect") <= MAX_STRIPS + 10
    assert drawn.begin_s < 50.0 < drawn.end_s
    assert timeline(many[:50], RECORDS).is_whole


def test_a_sweep_shows_latency_against_load_and_what_each_tier_bears() -> None:
    root = tree(page(replace(REPORT, sweep=SWEEP)))
    assert {"latency against load", "pictures against load"} <= set(pictures(root))
    said = words(root)
    assert "pro: 99 of 100 in time up to 2.00/s, no more at 4.00/s" in said
    assert "free: 99 of 100 in time at every rate that was tried, up to 4.00/s" in said
    assert "knee: 2.00/s, between 1.00 and 4.00" in said


@pytest.mark.parametrize("change", [{"requests": ()}, {"ticks": ()}, {"work": None}, {"requests": RECORDS[5:6]}])
def test_a_page_of_half_a_run_is_a_page(change: dict[str, object]) -> None:
    tree(page(replace(REPORT, **change)))  # type: ignore[arg-type]


def test_the_tables_name_tiers_shares_and_causes() -> None:
    console = Console(file=io.StringIO(), width=200)
    for table in tables(replace(REPORT, sweep=SWEEP)):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    for part in (
        "free",
        "pro",
        "97.2%",
        "full: tier:<free> 1",
        "p99.9",
        "padding",
        "no more at 4.00/s",
        "mind <this>",
    ):
        assert part in said, part


def test_the_csv_has_a_line_a_request_and_is_a_trace(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(requests_csv(REPORT))))
    assert len(rows) == 40
    assert (rows[9]["tier"], rows[9]["status"], rows[9]["in_time"]) == ("pro", "OK", "1")
    assert (rows[5]["status"], rows[5]["cause"], rows[5]["in_time"]) == ("RESOURCE_EXHAUSTED", "full: tier:<free>", "0")
    assert float(rows[1]["latency_s"]) == pytest.approx(0.25)
    assert float(rows[1]["sent_s"]) == pytest.approx(0.101)
    path = tmp_path / "again.csv"
    path.write_text(requests_csv(REPORT))
    again = read_trace(path, default_tiers())
    assert [item.at for item in again] == pytest.approx([item.arrival.at for item in RECORDS])
    assert [replace(item, at=0.0, adapter="") for item in again] == [
        replace(item.arrival, at=0.0, adapter="") for item in RECORDS
    ]


def test_three_files_are_written_whole(tmp_path: Path) -> None:
    paths = write_report(REPORT, tmp_path / "a" / "b")
    assert tuple(path.name for path in paths) == NAMES
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == sorted(NAMES)
    assert Report.from_json(paths[0].read_text()) == replace(REPORT, requests=tuple(RECORDS), ticks=tuple(REPORT.ticks))


@pytest.mark.parametrize(
    ("values", "is_log", "low", "high"),
    [
        ([0.0, 7.3], False, 0.0, 8.0),
        ([0.0123, 3.2], True, 0.01, 5.0),
        ([], False, 0.0, 1.0),
        ([5.0, 5.0], False, 5.0, 6.0),
    ],
)
def test_axes_end_at_round_numbers(values: list[float], is_log: bool, low: float, high: float) -> None:
    found = axis(values, 0.0, 100.0, is_log)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.at(low) == 0.0
    assert found.at(high) == pytest.approx(100.0)
    assert found.ticks


def test_points_stand_where_they_should() -> None:
    chart = Chart("a", "x", "y", [Series("s", [(0.0, 0.0), (10.0, 1.0)])], [Mark("m", 0.5)])
    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in ElementTree.fromstring(svg(chart)).iter(f"{SVG}circle")
    ]
    assert dots[0][0] < dots[1][0]
    assert dots[0][1] > dots[1][1]
    (mark,) = [
        line for line in ElementTree.fromstring(svg(chart)).iter(f"{SVG}line") if "dashed" in line.attrib["class"]
    ]
    assert float(mark.attrib["y1"]) == pytest.approx((dots[0][1] + dots[1][1]) / 2, abs=0.1)


def test_of_many_points_the_highest_stay() -> None:
    points = [(float(place), 0.0) for place in range(20_000)]
    points[12_345] = (12_345.0, 9.0)
    kept = thinned(points)
    assert 12_345 in kept
    assert len(kept) <= 4000
