"""The page of reliability against the tests that it names: each tested fault has a row, and each row has tests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py::[^`]+)`")


def rows() -> Iterator[list[str]]:
    """Cells of the rows whose last one names a test."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and NAMED.match(cells[-1]):
            yield cells


def is_of(test: str, row: list[str]) -> bool:
    """The row's last cell names the test; a star stands for anything."""
    return re.fullmatch(re.escape(row[-1].strip("` ")).replace(r"\*", ".*"), test) is not None


@pytest.fixture(scope="module")
def tests() -> list[str]:
    """Those of all files that the page names, and of all files of faults."""
    files = {name.partition("::")[0] for name in NAMED.findall(PAGE.read_text())}
    files |= {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/system/test_fault_*.py")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_each_fault_that_is_tested_has_one_row(tests: list[str]) -> None:
    faults = [test for test in tests if "/test_fault_" in test]
    assert len(faults) > 70
    counts = Counter({test: sum(is_of(test, row) for row in rows()) for test in faults})
    assert {test: count for test, count in counts.items() if count != 1} == {}


def test_each_row_and_each_name_is_of_tests(tests: list[str]) -> None:
    names = NAMED.findall(PAGE.read_text())
    assert [name for name in names if not any(is_of(test, [name]) for test in tests)] == []


def test_each_row_says_what_is_promised_and_what_was_measured() -> None:
    found = [*rows()]
    assert len(found) > 30
    assert [row for row in found if len(row) != 5 or not all(row)] == []
    assert [row for row in found if row[2] != "–" and not re.fullmatch(r"[\d., ]+ s", row[2])] == []
