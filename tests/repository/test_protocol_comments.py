"""Every field of the protocol says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"
FILES = sorted(PROTOS.glob("steploom_protos/**/*.proto"))
ENTRY = re.compile(
    r"^\s*(?:(?:optional|repeated)\s+)?(?:map<[^>]+>|[\w.]+)?\s*\w+ = \d+;"
)  # a field or an enum's value
CALL = re.compile(r"^\s*rpc \w+")


def bare(text: str) -> list[int]:
    """Lines with a field, a value or a call that has a comment neither beside nor above it."""
    lines = ["", *text.splitlines()]
    return [
        number
        for number, line in enumerate(lines)
        if (ENTRY.match(line) or CALL.match(line))
        and "//" not in line
        and not lines[number - 1].lstrip().startswith("//")
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_field_value_and_call_has_a_comment(file: Path) -> None:
    assert bare(file.read_text()) == []


def test_packages_of_ours_carry_a_version() -> None:
    for file in FILES:
        if file.parent.name == "inference":  # the public protocol's own name, without one
            continue
        assert re.search(r"^package steploom(\.\w+)*\.v\d+;$", file.read_text(), re.MULTILINE), file


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("  uint32 height = 1;", [1]),
        ("  uint32 height = 1; // pixels", []),
        ("  // pixels\n  uint32 height = 1;", []),
        ("  optional float scale = 2;", [1]),
        ("  map<string, uint64> refused = 10;", [1]),
        ("  STAGE_ENCODE = 1;", [1]),
        ("  rpc Edit(A) returns (B);", [1]),
        ('import "a.proto";', []),
        ("  reserved 16 to 19;", []),
    ],
)
def test_the_rule_itself(text: str, lines: list[int]) -> None:
    assert bare(text) == lines
