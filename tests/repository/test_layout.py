"""The repository's folders cannot be taken for packages, and hold what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = """
import importlib.util
spec = importlib.util.find_spec("kernels")
print(list(spec.submodule_search_locations or []) if spec else [])
"""


def tracked() -> list[Path]:
    """Files that the repository holds, or will with the next commit."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def find_kernels(folder: Path, *flags: str) -> str:
    """Where a Python started in `folder` finds a package named kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, *flags, "-c", KERNELS]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=True
    ).stdout


def test_an_installed_steploom_brings_no_package_named_kernels(tmp_path: Path) -> None:
    assert str(ROOT) not in find_kernels(tmp_path)


def test_services_do_not_find_it_either_when_started_in_the_root() -> None:
    assert '"-P"' in (ROOT / "launcher" / "steploom" / "leash.py").read_text()
    assert "export PYTHONSAFEPATH := 1" in (ROOT / "Makefile").read_text()
    assert str(ROOT) not in find_kernels(ROOT, "-P")


def test_no_folder_of_the_tests_is_named_kernels() -> None:
    assert [path for path in (ROOT / "tests").rglob("kernels*") if path.name == "kernels"] == []


def test_names_of_test_files_are_unique() -> None:
    counts = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_package_is_typed() -> None:
    packages = [
        path.parent for path in [*ROOT.glob("*/steploom*/__init__.py"), ROOT / "protos/python/steploom_protos/x"]
    ]
    assert [package.name for package in packages if not (package / "py.typed").exists()] == []


# Written in pieces, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|Us" + r"ers|ho" + r"me/\w+)/\w",
    "work left open": r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "a stub": "raise NotImplemented" + "Error",
    "a registry's host": r"pythonhost" + r"ed|pypi\." + r"org|registry\.npm" + "js",
}
# Generated stubs and weights are not ours to word; a fake of a test may refuse to be called.
SKIPPED = {what: ("protos/python", "models", *(("tests",) if what == "a stub" else ())) for what in FORBIDDEN}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = []
    for path in tracked():
        if any(path.is_relative_to(ROOT / skipped) for skipped in SKIPPED[what]) or path.stat().st_size > 2**20:
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue  # a picture
        found += [
            f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if re.search(FORBIDDEN[what], line)
        ]
    assert found == []


def test_the_constraints_pin_every_installed_dependency_of_the_tests() -> None:
    pins = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    code = (
        "from importlib.metadata import requires\nfrom packaging.requirements import Requirement\n"
        "print(*sorted({Requirement(r).name for r in requires('steploom') if not 'tensorrt' in r and not 'cuda' in r}))"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.lower().replace("_", "-") for name in names} - pins - {"steploom"} == set()
