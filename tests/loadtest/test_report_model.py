"""The report as data: what goes out as JSON comes in again, what is none is refused by its field, figures are right."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from steploom_loadtest.report import CANCELLED, INTERRUPTED, OK, Record
from steploom_loadtest.report_figures import busy_share, figures, summary
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
    WrongReport,
)
from steploom_loadtest.traces import Arrival


def request(
    at: float, ended_at: float, tier: str = "free", status: str = OK, cause: str = "", cancel: float | None = None
) -> Record:
    arrival = Arrival(at, tier, 3, 3, 1.0, cancel)
    return Record(arrival, status, ended_at, 0.1, 6.0, 5, lag_s=0.002, cause=cause, request_id=f"id-{at}")


REQUESTS = (
    request(0.0, 0.5),
    request(1.0, 3.0),
    request(2.0, 2.1, status="RESOURCE_EXHAUSTED", cause="tier free"),
    request(2.5, 2.6, status=CANCELLED, cancel=0.1),
    request(3.0, 4.0, "pro"),
)
TICKS = (
    RanTick("w0", "encode", 0.0, 0.5, 1, 1, (Share("id-0.0", 1),)),
    RanTick("w0", "denoise", 0.25, 0.75, 3, 4, (Share("id-0.0", 3, step=1),)),
    RanTick("w0", "denoise", 1.5, 0.5, 3, 4, (Share("id-1.0", 3, step=1),), is_ok=False),
)
WORK = Work(
    1, {"encode": StageWork(1, 1, 0, 0.5), "denoise": StageWork(2, 6, 2, 1.25), "decode": StageWork(0, 0, 0, 0.0)}, {}
)
SWEEP = Sweep(
    (Point(1.0, 10.0, 1.0, 0.9, 0.2, 0.001, (TierPoint("free", 10, 0.9, 0.1, 0.2, 1.0, 0.0, False),)),),
    (Limit("free", 0.0, 1.0), Limit("pro", 1.0, None)),
    0.1,
    1.0,
    (0.5, 2.0),
)
REPORT = Report(
    Origin(LIVE, "a run", "2026-01-01T00:00:00+00:00", {"rate": "1 a second"}),
    offered_rate=1.25,
    duration_s=4.0,
    requests=REQUESTS,
    ticks=TICKS,
    work=WORK,
    price=3.6,
    devices=2,
    sweep=SWEEP,
    notes=("a note",),
)


def test_what_goes_out_comes_in_again() -> None:
    assert Report.from_json(REPORT.to_json(summary(REPORT))) == REPORT
    bare = Report(Origin(LIVE, "nothing"), 0.0, 0.0, ())
    assert Report.from_json(bare.to_json()) == bare


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "format: is none of ours"),
        ({"version": 99}, "version: is 99, must be 1"),
        ({"more": 1}, "more: is unknown"),
        ({"duration_s": "long"}, "duration_s: must be a number"),
        ({"devices": 1.5}, "devices: must be a whole number"),
        ({"requests": [{"status": "OK"}]}, r"requests\[0\].arrival: is missing"),
        ({"ticks": [{"worker": 1}]}, r"ticks\[0\].worker: must be text"),
        ({"work": {"workers": 1, "stages": {"encode": 1}, "refused": {}}}, "work.stages.encode: must be a table"),
        ({"notes": "a line"}, "notes: must be a list"),
    ],
)
def test_what_is_no_report_is_refused_by_its_field(change: dict[str, Any], words: str) -> None:
    table = json.loads(REPORT.to_json()) | change
    with pytest.raises(WrongReport, match=words):
        Report.from_json(json.dumps(table))


def test_neither_half_a_file_nor_another_value_is_a_report() -> None:
    for text in (REPORT.to_json()[:-10], "[]", ""):
        with pytest.raises(WrongReport):
            Report.from_json(text)


def test_figures_of_a_run() -> None:
    found = figures(REPORT)
    assert (found.sent, found.done, found.seconds) == (5, 3, 4.0)
    assert (found.offered_rate, found.sent_rate, found.achieved_rate, found.goodput) == (1.25, 1.25, 0.75, 0.5)
    assert found.max_lag_s == found.lag_p50_s == 0.002
    free, pro = found.tiers
    assert (free.tier, free.sent, free.done, free.in_time, free.cancelled) == ("free", 4, 2, 1, 1)
    assert free.in_time_share == pytest.approx(1 / 3)  # who gave up by plan was not let down
    assert (free.percentiles_s["p50"], free.percentiles_s["p99.9"], free.max_s) == (0.5, 2.0, 2.0)
    assert (pro.in_time, pro.goodput) == (1, 0.25)
    assert found.refused == {"tier free": 1}


def test_figures_of_devices_and_the_cost_of_pictures() -> None:
    found = figures(REPORT)
    assert found.devices
    assert (found.devices.rows_per_tick, found.devices.padding) == (3.0, 2 / 9)
    assert found.devices.busy == pytest.approx(1.5 / 4.0)  # stages overlap from 0.25 to 0.5
    assert found.devices.busy_is_exact
    assert found.cost_per_1000 == pytest.approx(3.6 * 2 * 4.0 / 3600 / 3 * 1000)


def test_busy_without_all_ticks_counts_overlaps_twice_and_says_so() -> None:
    found = figures(replace(REPORT, lost_ticks=1)).devices
    assert found
    assert (found.busy, found.busy_is_exact) == (1.75 / 4.0, False)
    assert figures(replace(REPORT, work=None)).devices is None


def test_ticks_of_several_workers_share_the_time_of_all() -> None:
    ticks = [RanTick(name, "denoise", 0.0, 1.0, 1, 1, ()) for name in ("w0", "w1")]
    assert busy_share(ticks, 2, 2.0) == 0.5
    assert busy_share([*ticks, RanTick("w1", "denoise", 1.5, 9.0, 1, 1, ())], 2, 2.0) == 0.625  # within the run alone


def test_a_run_that_was_interrupted_lasts_until_then_and_what_was_open_is_nobodys_fault() -> None:
    cut = replace(
        REPORT, duration_s=60.0, is_interrupted=True, requests=(*REQUESTS[:2], request(3.0, 3.5, status=INTERRUPTED))
    )
    found = figures(cut)
    assert (found.seconds, found.sent_rate) == (3.5, 3 / 3.5)
    assert found.refused == {}
    assert (found.tiers[0].cancelled, found.tiers[0].in_time_share) == (1, 0.5)


def test_no_cost_without_price_devices_or_pictures() -> None:
    for change in ({"price": None}, {"devices": 0}, {"requests": REQUESTS[2:4]}):
        assert figures(replace(REPORT, **change)).cost_per_1000 is None


def test_a_report_of_nothing_has_figures() -> None:
    found = figures(Report(Origin(LIVE, ""), 1.0, 0.0, ()))
    assert (found.sent, found.achieved_rate, found.tiers, found.cost_per_1000) == (0, 0.0, [], None)
