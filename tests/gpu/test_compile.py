"""Every kernel compiles: Triton's interpreter, which other tests use, takes Python that Triton's compiler does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steploom_kernels.launch_recipe import Kernel, read_manifest

pytest.importorskip("triton")

# One compiled form of each kernel, and the last that reads from two tensors, without the interpreter, for an H100.
EXPORT = """
import sys
from pathlib import Path
from steploom_kernels.aot import export
from steploom_kernels.operations import all_variants
one, two = {}, {}
for variant in all_variants():
    one.setdefault(variant.kernel, variant)
    if variant.constants.get("border"):
        two[variant.kernel] = variant
export([*one.values(), *two.values()], [90], Path(sys.argv[1]), print)
"""
# Whole pieces of 16 bytes a thread: without them a kernel that only waits for memory is at half its speed.
WIDE_READ = re.compile(r"ld\.global\S*\.v(4\.b32|2\.b64)")
WIDE_WRITE = re.compile(r"st\.global\S*\.v(4\.b32|2\.b64)")
READ_WIDE = {"group_moments", "group_norm", "layer_norm", "add", "geglu", "gelu", "silu", "cast", "transpose"}
WRITE_WIDE = READ_WIDE - {"group_moments", "transpose"}  # a few numbers, and four channels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", EXPORT, str(path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return path


def named(kernels: tuple[Kernel, ...], names: set[str]) -> list[Kernel]:
    found = [kernel for kernel in kernels if any(kernel.name.startswith(f"{name}_") for name in names)]
    assert len(found) >= len(names)
    return found


def test_every_kernel_compiles_and_none_spills(folder: Path) -> None:
    kernels = read_manifest(folder).kernels
    assert {kernel.name: kernel.spilled_bytes for kernel in kernels if kernel.spilled_bytes} == {}


def test_memory_is_read_and_written_in_pieces_of_16_bytes(folder: Path) -> None:
    kernels = read_manifest(folder).kernels
    narrow = {kernel.name for kernel in named(kernels, READ_WIDE) if not WIDE_READ.search(text(folder, kernel))}
    assert narrow == set()
    narrow = {kernel.name for kernel in named(kernels, WRITE_WIDE) if not WIDE_WRITE.search(text(folder, kernel))}
    assert narrow == set()


def text(folder: Path, kernel: Kernel) -> str:
    return (folder / kernel.ptx.name).read_text()
