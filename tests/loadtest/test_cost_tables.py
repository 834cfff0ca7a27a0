"""Files of cost tables: what is written is read, and what is wrong is told by field and bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steploom_batcher.types import Stage
from steploom_loadtest.cost_tables import CostTable, DeviceCosts, TableError, linear, read_table, shipped

COSTS = linear((0.01, 0.02), (0.03, 0.004), (0.05, 0.06), rows=(1, 3, 12))
RIGHT: dict[str, Any] = {
    "name": "a device",
    "slots": 4,
    "seconds": {"encode": {"1": 0.1}, "denoise": {"3": 0.2}, "decode": {"1": 0.3}},
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = CostTable("a test", [DeviceCosts("one", 4, COSTS), DeviceCosts("two", 8, linear((1, 0), (1, 0), (1, 0)))])
    path = tmp_path / "costs.json"
    path.write_text(table.to_json())
    assert read_table(str(path)) == table
    assert [device.name for device in table.workers(3)] == ["one", "two", "one"]


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_tables_name_their_source_and_grow_with_rows(name: str) -> None:
    table = read_table(name)
    assert table.source
    for device in table.devices:
        for stage in Stage:
            seconds = list(device.seconds[stage].values())
            assert seconds == sorted(seconds)
            a_row = [seconds / bucket for bucket, seconds in device.seconds[stage].items()]
            assert a_row == sorted(a_row, reverse=True)


def test_there_is_a_table_of_an_h100() -> None:
    (device,) = read_table("h100").devices
    assert device.seconds[Stage.DENOISE][12] == pytest.approx(12 * 0.00177)
    assert device.seconds[Stage.DECODE][4] == pytest.approx(4 * 0.00474)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be an object with source and devices"),
        ({"devices": []}, "devices must be a list of at least one"),
        ({"devices": [3]}, "devices[0] must be an object"),
        ({"devices": [RIGHT | {"slots": 0}]}, "devices[0].slots is 0, must be a whole number from 1 to 65536"),
        ({"devices": [RIGHT | {"slots": True}]}, "devices[0].slots is True"),
        ({"devices": [RIGHT | {"seconds": 3}]}, "devices[0].seconds must be an object with encode, denoise and decode"),
        ({"devices": [RIGHT, RIGHT | {"seconds": {"encode": {"1": 1}}}]}, "devices[1].seconds.denoise must be an obj"),
        ({"devices": [RIGHT | {"seconds": {"draw": {"1": 1}}}]}, "seconds.draw is no stage: encode, denoise, decode"),
        ({"devices": [RIGHT | {"seconds": {"encode": {"x": 1}}}]}, "seconds.encode has a bucket 'x', must be a whole"),
        ({"devices": [RIGHT | {"seconds": {"encode": {"1": -1}}}]}, "encode.1 is -1, must be seconds from 0 to 3600"),
        ({"devices": [RIGHT | {"seconds": {"encode": {"1": "x"}}}]}, "encode.1 is 'x', must be seconds from 0 to 3600"),
        ({"devices": [RIGHT | {"seconds": {"encode": {"1": 1e999}}}]}, "encode.1 is inf"),
    ],
)
def test_what_is_wrong_is_told_with_field_and_bound(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TableError) as caught:
        read_table(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"No such file.*h100"):
        read_table(str(tmp_path / "none.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(TableError, match="is no JSON"):
        read_table(str(tmp_path / "broken.json"))
