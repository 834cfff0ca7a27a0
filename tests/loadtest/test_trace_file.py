"""Traces in files: what they say comes in whole, what is wrong in them is told by line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from steploom_batcher.config import default_tiers
from steploom_loadtest.trace_file import WrongTrace, read_trace
from steploom_loadtest.traces import Arrival

TIERS = default_tiers()
WHOLE = Arrival(1.5, "free", 4, 1, 2.5, 0.25, "few-step", 256)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    as_csv = written(
        tmp_path,
        "a.csv",
        "at_s,tier,steps,rows,deadline_s,cancel_after_s,adapter,side\n0,pro,,,,,,\n1.5,free,4,1,2.5,0.25,few-step,256\n",
    )
    as_json = written(
        tmp_path,
        "a.jsonl",
        '{"at_s": 0, "tier": "pro"}\n\n{"at_s": 1.5, "tier": "free", "steps": 4, "rows": 1, "deadline_s": 2.5, '
        '"cancel_after_s": 0.25, "adapter": "few-step", "side": 256}\n',
    )
    expected = [Arrival(0.0, "pro", 35, 3, 60.0, None, "", 128), WHOLE]
    assert read_trace(as_csv, TIERS) == read_trace(as_json, TIERS) == expected


def test_a_file_with_the_mark_of_a_spreadsheet_and_the_columns_of_a_report_is_a_trace(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "\ufeffat_s,tier,status,latency_s\n1,pro,OK,0.5\n")
    assert [arrival.at for arrival in read_trace(path, TIERS)] == [1.0]


def test_speed_shortens_the_pauses_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "at_s,tier\n1,pro\n3,pro\n")
    found = read_trace(path, TIERS, speed=2.0)
    assert [(arrival.at, arrival.deadline_s) for arrival in found] == [(0.5, 60.0), (1.5, 60.0)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "holds no request"),
        ("a.csv", "at_s,tier\n", "holds no request"),
        ("a.csv", "at_s,tier,stepps\n1,free,3\n", "line 2: stepps: is unknown; there are at_s, tier"),
        ("a.csv", "at_s,tier\n1,free\nsoon,free\n", "line 3: at_s: is 'soon', must be a number from 0 to 604800"),
        ("a.csv", "at_s,tier\n-1,free\n", "line 2: at_s: is '-1'"),
        ("a.csv", "at_s,tier\nnan,free\n", "line 2: at_s: is 'nan'"),
        ("a.csv", "at_s,tier\n2,free\n1,free\n", "line 3: at_s: is less than that of the line before"),
        ("a.csv", "at_s,tier\n1,\n", "line 2: tier: is missing"),
        ("a.csv", "tier\nfree\n", "line 2: at_s: is missing"),
        ("a.csv", "at_s,tier\n1,gold\n", "line 2: steps: is missing, and tier 'gold' is not in the configuration"),
        ("a.csv", "at_s,tier,steps\n1,gold,3\n", "line 2: deadline_s: is missing, and tier 'gold'"),
        ("a.csv", "at_s,tier,steps\n1,free,2.5\n", "line 2: steps: is '2.5', must be a whole number from 1 to 1000"),
        ("a.csv", "at_s,tier,steps\n1,free\n", "line 2: has not as many fields as the header"),
        ("a.csv", "at_s,tier\n1,free,3\n", "line 2: has not as many fields as the header"),
        ("a.csv", 'at_s,tier\n1,"free\n', "unexpected end of data"),
        ("a.jsonl", '{"at_s": 1, "tier": "free"}\n{"at_s": 1', "line 2: is no JSON"),
        ("a.jsonl", "[1]\n", "line 1: must be an object"),
        ("a.jsonl", '{"at_s": true, "tier": "free"}\n', "line 1: at_s: is True"),
        ("a.jsonl", '{"at_s": 1, "tier": "free", "steps": 2.5}\n', "line 1: steps: is 2.5"),
        ("a.jsonl", '{"at_s": 1, "tier": 3}\n', "line 1: tier: is 3, must be text"),
        ("a.txt", "", "must end in .csv or .jsonl"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_field(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(WrongTrace) as caught:
        read_trace(written(tmp_path, name, text), TIERS)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert words in str(caught.value)


def test_what_is_no_text_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"at_s,tier\n1,\xff\xfe\n")
    with pytest.raises(WrongTrace, match="is no text in UTF-8"):
        read_trace(path, TIERS)
