"""The search of settings: the same each time, from where one is to what is plainly better; losses of a tier count."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from steploom_batcher.config import SchedulerConfig, TierConfig
from steploom_loadtest.cost_tables import CostTable, DeviceCosts, linear
from steploom_loadtest.simulated import Site
from steploom_loadtest.traces import RequestClass, poisson
from steploom_loadtest.tune_report import as_json, page, table
from steploom_loadtest.tuner import Candidate, Goal, Score, Traces, Tuning, configured, front, knobs, tune, values_of

# a tick of many rows costs little more than one of few: whoever takes few rows a tick is slow
WIDE = linear((0.010, 0.001), (0.020, 0.0005), (0.010, 0.001), rows=(1, 3, 6, 12, 24))
COSTS = CostTable("a test", [DeviceCosts("wide", 24, WIDE)])
TIERS = {"free": TierConfig(steps=3, max_queued=64), "pro": TierConfig(steps=12, max_queued=64)}
NARROW = SchedulerConfig(max_rows=3, tiers=TIERS, default_tier="pro")
MIX = (RequestClass("free", 3, 3, deadline_s=1.0, rows=1), RequestClass("pro", 12, 1, deadline_s=4.0))
GOAL = Goal(30.0)


def traces(seed: int) -> Traces:
    return Traces([poisson(MIX, GOAL.rate, 4.0, seed)], GOAL.rate, 4.0)


def search(seed: int = 0, trials: int = 12) -> Tuning:
    site = Site(NARROW, COSTS, 1)
    return tune(site, knobs(site, ["free", "pro"]), traces(1), traces(2), GOAL, trials=trials, top=2, seed=seed)


@pytest.fixture(scope="module")
def found() -> Tuning:
    return search()


def test_a_search_starts_with_what_there_is_and_finds_wider_ticks(found: Tuning) -> None:
    assert found.start.values["max_rows"] == 3
    assert found.start.config == NARROW
    assert len(found.tried) == 12
    best = found.best[0]
    assert best.values["max_rows"] > 3
    assert best.held_out
    assert found.start.held_out
    assert best.held_out.goodput > 1.5 * found.start.held_out.goodput
    assert best.held_out.is_better(found.start.held_out, GOAL)


def test_a_seed_gives_one_search(found: Tuning) -> None:
    assert search() == found
    assert [item.values for item in search(seed=1).tried[1:]] != [item.values for item in found.tried[1:]]


def test_the_front_holds_what_nothing_beats(found: Tuning) -> None:
    start = found.start.score
    points = [(item.score.worth(start, GOAL), item.score.p99_share) for item in found.tried]
    ends = [(item.score.worth(start, GOAL), item.score.p99_share) for item in found.front]
    assert ends == sorted(ends, reverse=True)
    for worth, p99 in ends:
        assert not any(other > worth and other_p99 < p99 for other, other_p99 in points)
    for worth, p99 in points:
        assert any(other >= worth and other_p99 <= p99 for other, other_p99 in ends)


def test_values_go_into_the_settings_and_out_again() -> None:
    searched = knobs(Site(NARROW, COSTS, 1), ["free", "pro"])
    values = values_of(SchedulerConfig(max_rows=20, ticks_in_flight=1, tiers=TIERS, default_tier="pro"), searched)
    assert (values["max_rows"], values["ticks_in_flight"]) == (24, 2)  # the nearest that can be searched
    changed = configured(NARROW, values | {"tiers.pro.weight": 3.5, "tiers.free.max_queued": 9, "margin": 0.5})
    assert (changed.max_rows, changed.margin) == (24, 0.5)
    assert (changed.tiers["pro"].weight, changed.tiers["free"].max_queued) == (3.5, 9)
    assert changed.tiers["pro"].max_queued == NARROW.tiers["pro"].max_queued
    assert {knob.name for knob in searched} >= {"batch_gain", "max_queue_delay_s", "fairness", "tiers.pro.weight"}


def test_pictures_that_a_tier_pays_for_are_not_worth_it() -> None:
    start = Score(10.0, 0.5, {"free": 0.5, "pro": 0.9})
    starving = Score(14.0, 0.5, {"free": 0.9, "pro": 0.6})
    fair = Score(11.0, 0.5, {"free": 0.6, "pro": 0.895})
    assert not starving.is_better(start, GOAL)
    assert starving.is_better(start, replace(GOAL, max_loss=0.3))
    assert fair.is_better(start, GOAL)
    assert not start.is_better(start, GOAL)
    assert replace(start, p99_share=0.4).is_better(start, GOAL)  # as many, sooner
    assert not replace(start, p99_share=0.4, goodput=9.0).is_better(start, GOAL)


def test_of_equals_the_front_holds_each() -> None:
    one = Candidate({}, NARROW, Score(1.0, 0.5, {}))
    assert front([one, one], GOAL) == [one, one]


def test_what_was_found_is_told_as_table_json_and_page(found: Tuning) -> None:
    live = {0: found.start.score, 1: found.best[0].score}
    shown = table(found, live)
    assert [str(cell) for cell in shown.columns[0].cells] == ["as they are", "candidate 1", "candidate 2"]
    told = json.loads(as_json(found, live, {"mix": "a <mix>"}))
    assert len(told["tried"]) == 12
    assert told["best"][0]["values"] == dict(found.best[0].values)
    assert told["live"]["1"]["goodput"] == found.best[0].score.goodput
    document = page(found, {}, {"mix": "a <mix>"})
    body = document[document.index("<body>") : document.index("</body>") + len("</body>")]
    tree = ElementTree.fromstring(body)
    assert "a <mix>" in "".join(tree.itertext())
    assert len([item for item in tree.iter() if item.tag.endswith("circle")]) >= len(found.tried)
