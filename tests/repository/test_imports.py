"""Imports run one way, and the services that need no model load none."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Each package, its folder, and the packages of ours that it may import.
FOLDERS = {
    "steploom_protos": "protos/python",
    "steploom_common": "common",
    "steploom_gateway": "gateway",
    "steploom_batcher": "batcher",
    "steploom_engine_worker": "engine_worker",
    "steploom_kernels": "kernels",
    "steploom_distill": "distill",
    "steploom_loadtest": "loadtest",
    "steploom_benchmarks": "benchmarks",
    "steploom": "launcher",
}
ALLOWED = {
    "steploom_protos": set(),
    "steploom_common": set(),
    "steploom_kernels": set(),
    "steploom_gateway": {"steploom_protos", "steploom_common", "steploom_batcher"},
    "steploom_batcher": {"steploom_protos", "steploom_common"},
    "steploom_engine_worker": {"steploom_protos", "steploom_common", "steploom_kernels"},
    "steploom_distill": {"steploom_common", "steploom_kernels", "steploom_engine_worker"},
    "steploom_loadtest": {"steploom_protos", "steploom_common", "steploom_batcher"},
    "steploom_benchmarks": {"steploom_protos", "steploom_loadtest"},
    "steploom": set(FOLDERS) - {"steploom", "steploom_benchmarks"},
}
# The load tests' simulator drives the pure scheduler; the rest of the batcher is not theirs.
SCHEDULER_CORE = {"config", "scheduler", "types"}
# A gateway may have the queue of plain models to itself; the rest of the batcher is not its own.
PLAIN_QUEUE = {"plain"}
ONLY = {
    ("steploom_loadtest", "steploom_batcher"): SCHEDULER_CORE,
    ("steploom_gateway", "steploom_batcher"): PLAIN_QUEUE,
}
HEAVY = {"torch", "transformers", "diffusers"}
LIGHT_PACKAGES = ("steploom_common", "steploom_gateway", "steploom_batcher")


@dataclass(frozen=True)
class Import:
    """An import statement's target."""

    file: Path
    line: int
    module: str

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(source: str, file: Path) -> Iterator[Import]:
    """All imports of a file, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:  # a relative one stays in its package
            module = node.module or ""
            # `from package import module` names a module too
            yield from (Import(file, node.lineno, f"{module}.{alias.name}") for alias in node.names)


def package_imports(package: str) -> Iterator[Import]:
    for file in sorted((ROOT / FOLDERS[package] / package).rglob("*.py")):
        yield from imports(file.read_text(), file)


def breaks_the_direction(package: str, found: Import) -> bool:
    if found.package not in FOLDERS or found.package == package:
        return False
    if found.package not in ALLOWED[package]:
        return True
    only = ONLY.get((package, found.package))
    return only is not None and found.module.split(".")[1] not in only


def test_every_package_has_a_rule() -> None:
    found = {path.parent.name: path.parent.parent for path in ROOT.glob("*/steploom*/__init__.py")}
    found["steploom_protos"] = ROOT / "protos" / "python"
    assert {name: ROOT / folder for name, folder in FOLDERS.items()} == found


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_run_one_way(package: str) -> None:
    assert [str(found) for found in package_imports(package) if breaks_the_direction(package, found)] == []


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_no_model_library_is_named(package: str) -> None:
    assert [str(found) for found in package_imports(package) if found.package in HEAVY] == []


@pytest.mark.parametrize(
    ("package", "source", "is_broken"),
    [
        ("steploom_gateway", "import steploom_batcher.config", True),
        ("steploom_gateway", "from steploom_batcher.plain.side import PlainSide", False),
        ("steploom_gateway", "def f():\n    from steploom_engine_worker import x", True),
        ("steploom_batcher", "from steploom_common import rpc", False),
        ("steploom_loadtest", "from steploom_batcher.driver import Driver", True),
        ("steploom_loadtest", "from steploom_batcher import driver", True),
        ("steploom_loadtest", "from steploom_batcher.scheduler import Scheduler", False),
        ("steploom_common", "import steploom", True),
        ("steploom", "import steploom_gateway.config", False),
    ],
)
def test_the_rule_itself(package: str, source: str, is_broken: bool) -> None:
    assert any(breaks_the_direction(package, found) for found in imports(source, ROOT / "x.py")) is is_broken


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_no_module_of_a_light_service_loads_a_model_library(package: str) -> None:
    folder = ROOT / FOLDERS[package] / package
    modules = [
        ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in folder.rglob("*.py")
        if file.name != "__main__.py"
    ]
    code = f"import sys, {', '.join(sorted(modules))}\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_configuration_of_all_services_loads_no_model_library() -> None:
    code = f"import sys, steploom.config\nprint(sorted({HEAVY | {'grpc'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"
