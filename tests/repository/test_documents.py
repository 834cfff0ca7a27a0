"""What the documents say is so."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from steploom.exit_codes import MEANINGS
from steploom.reference import configuration_page

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def test_the_configuration_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration_page(), "run `make docs`"


def test_every_module_has_a_line_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = [path.parent for path in ROOT.glob("*/steploom*/__init__.py")]
    modules = [(package, file) for package in packages for file in package.rglob("*.py") if file.name[:2] != "__"]
    missing = [
        str(file.relative_to(ROOT)) for package, file in modules if f"| `{file.relative_to(package)}` |" not in text
    ]
    assert missing == []


def test_the_readme_lists_every_exit_code() -> None:
    readme = (ROOT / "README.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {code.value} | {meaning} |" in readme


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = LINK.findall(document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_make_without_a_target_lists_every_target() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = subprocess.run(
        ["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    assert set(targets) == set(re.findall(r"^  make ([a-z]+)", listed, re.MULTILINE))
    assert {"help", "demo", "test", "lint", "protos", "bench", "serve", "clean"} <= set(targets)


def test_decisions_are_numbered_without_gaps_and_say_what_they_must() -> None:
    records = sorted(path for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(len(records)))
    for path in records[1:]:
        text = path.read_text()
        assert all(f"\n## {part}\n" in text for part in ("Context", "Decision", "Consequences")), path
