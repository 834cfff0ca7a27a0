"""From what was counted to figures, the best of a sweep, and tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from steploom_benchmarks.driving import Timings
from steploom_benchmarks.environments import pins_of, version_of
from steploom_benchmarks.loads import LOADS
from steploom_benchmarks.measuring import Comparison, Figures, best_of, figures, percentile
from steploom_benchmarks.peers import PEERS, Peer, Setting
from steploom_benchmarks.process_tree import Usage
from steploom_benchmarks.server_process import _SERVERS
from steploom_benchmarks.tables import as_json, markdown

ONE = Figures("2 ms", 1234.5, 1.25, 9.75, 0.5, 0.25, 7.5, 100.4, 3, 5000, 0)
SMALL, COSTLY = LOADS["small"], LOADS["costly"]


def test_figures_are_reckoned_by_a_thousand_answers() -> None:
    timings = Timings(seconds=2.0, latencies_s=[at / 1000 for at in range(1, 501)], errors=3, first_error="full")
    made = figures("2 ms", timings, 1.5, 0.25, (100, 500), Usage(9.0, 64.0, 4))
    assert made.requests_per_s == 250
    assert (made.p50_ms, made.p99_ms) == (250, 495)
    assert made.server_cpu_s_per_1000 == 3.0
    assert made.client_cpu_s_per_1000 == 0.5
    assert made.mean_batch == 5
    assert (made.memory_mb, made.processes, made.errors) == (64.0, 4, 3)


def test_a_server_that_answered_nothing_has_no_figures_but_its_errors() -> None:
    made = figures("2 ms", Timings(seconds=2.0, errors=7), 1.5, 0.25, (0, 0), Usage(9.0, 64.0, 4))
    assert all(math.isnan(value) for value in (made.p50_ms, made.server_cpu_s_per_1000, made.mean_batch))
    assert made.errors == 7


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_the_best_of_a_closed_loop_answers_the_most() -> None:
    assert best_of(SMALL, [ONE, replace(ONE, requests_per_s=2000, p99_ms=99), ONE]) == 1


def test_the_best_of_an_open_loop_is_the_quickest_that_keeps_up() -> None:
    quick_and_failing = replace(ONE, p99_ms=1.0, errors=1000)
    assert best_of(COSTLY, [ONE, quick_and_failing, replace(ONE, p99_ms=5.0)]) == 2


def test_the_table_has_a_row_for_each_server_and_says_who_is_missing() -> None:
    comparisons = [Comparison("floor", "small", ONE), Comparison("mosec", "small", ONE, [ONE, ONE])]
    text = markdown(comparisons, {"ray": "pip failed | sadly"}, {"machine": "two cores"})
    assert "- machine: two cores" in text
    assert "| MOSEC | 2 ms | 1234 | 1.2 | 9.8 | 0.50 | 0.25 | 7.5 | 100 | 3 | 0 |" in text
    assert text.count("| MOSEC |") == 3  # its best, and two that were tried
    assert "| grpc.aio alone |  |" in text
    assert "- ray: pip failed" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_cell_cannot_break_the_table() -> None:
    text = markdown([Comparison("mosec", "small", replace(ONE, first_error="a|b\nc", errors=1))], {}, {})
    assert "1 (a\\|b c) |" in text


def test_json_has_null_where_there_is_no_number() -> None:
    made = as_json([Comparison("floor", "small", replace(ONE, mean_batch=float("nan")))], {}, {})
    assert json.loads(json.dumps(made, allow_nan=False))["comparisons"][0]["best"]["mean_batch"] is None


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_peer_has_its_script_and_its_pinned_packages(peer: Peer) -> None:
    assert (_SERVERS / peer.script).exists()
    if peer.environment:
        assert version_of(peer.package, peer.environment)
        lines = pins_of(peer.environment).read_text().split()
        assert [line for line in lines if "==" not in line] == []
        assert [line for line in lines if line.startswith("numpy==") and not line.startswith("numpy==1.")] == []


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_sweep_begins_with_what_the_load_says_and_gives_costly_models_one_instance(peer: Peer) -> None:
    for load in (SMALL, COSTLY):
        settings = peer.settings(load)
        assert settings[0] == Setting(load.max_batch, load.delay_ms)
        assert {setting.max_batch for setting in settings} == {load.max_batch}
        if load.cost_ms:
            assert {setting.instances for setting in settings} == {1}
