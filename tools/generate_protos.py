"""Generates the Python stubs of protos/ into protos/python, or with --check says whether they are up to date."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
STUBS = SOURCES / "python"


def generate(target: Path) -> None:
    """Writes *_pb2.py, *_pb2_grpc.py and their .pyi below `target`."""
    files = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.glob("steploom_protos/**/*.proto"))
    include = resources.files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    plugin = f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}"
    if protoc.main(["protoc", f"-I{SOURCES}", f"-I{include}", plugin, *outputs, *files]) != 0:
        raise SystemExit("protoc failed")
    for folder in {path.parent for path in target.glob("steploom_protos/**/*_pb2.py")} | {target / "steploom_protos"}:
        for package in [folder, *folder.parents]:
            if package == target:
                break
            (package / "__init__.py").touch()
    (target / "steploom_protos" / "py.typed").touch()


def differences(fresh: Path) -> list[str]:
    """Files that are missing, stale or left over."""
    names = {path.relative_to(root) for root in (fresh, STUBS) for path in root.rglob("*.py*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name.parts}
    same = (fresh / name for name in names)
    return sorted(
        str(path.relative_to(fresh))
        for path in same
        if not path.exists()
        or not (STUBS / path.relative_to(fresh)).exists()
        or not filecmp.cmp(path, STUBS / path.relative_to(fresh), shallow=False)
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the stubs are stale")
    if not parser.parse_args().check:
        generate(STUBS)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder))
    if stale:
        raise SystemExit("stale stubs, run `make protos`:\n  " + "\n  ".join(stale))
    print("the stubs are up to date")


if __name__ == "__main__":
    main()
