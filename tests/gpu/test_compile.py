"""Every kernel compiles: Triton's interpreter, which other tests use, takes Python that Triton's compiler does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from steploom_kernels.launch_recipe import Kernel, read_manifest

pytest.importorskip("triton")

# One compiled form of each kernel, the last that reads from two tensors, and one that writes e4m3, without the
# interpreter, for an H100.
EXPORT = """
import sys
from pathlib import Path
from steploom_kernels.aot import export
from steploom_kernels.operations import all_variants
one, two, eight = {}, {}, {}
for variant in all_variants():
    form = variant.kernel, variant.constants.get("measures"), variant.constants.get("applies")
    one.setdefault(form, variant)
    if variant.constants.get("border"):
        two[form] = variant
    if variant.constants.get("quantised"):
        eight.setdefault(variant.kernel, variant)
export([*one.values(), *two.values(), *eight.values()], [90], Path(sys.argv[1]), print)
"""
# Attention with all powers by the unit that has them built in; with two eighths by multiplications; with scores ahead.
ATTENTION = """
import json
from dataclasses import replace
from steploom_kernels.aot import _compile
from steploom_kernels.attention import variants
plain = variants()[0]
forms = ({}, {"polynomial": 2}, {"ahead": True})
variants = [replace(plain, constants={**plain.constants, **form}) for form in forms]
print(json.dumps([_compile(variant, 90).asm["ptx"] for variant in variants]))
"""
# The usual plans of `linear_geglu` on Hopper, by descriptors, as Triton compiles them at a launch.
LINEAR_GEGLU = """
import json, sys
from dataclasses import replace
from pathlib import Path
from steploom_kernels import linear_geglu as module
from steploom_kernels.aot import _compile, _resources
found = []
for rows in (49152, 256, 64):
    plan = module._plan(rows, 5120, 2, True)
    m, n, k = plan[:3]
    tiles = {"out": f"{m}, {n}", "x": f"{m}, {k}", "weight": f"2, {n}, {k}"}
    plain = module._variant("fp16", plan)
    compiled = _compile(replace(
        plain,
        kernel=module._linear_geglu_walk_kernel,
        signature={
            **{name: kind for name, kind in plain.signature.items() if name != "ragged"},
            **{name: f"tensordesc<fp16[{tile}]>" for name, tile in tiles.items()},
        },
        constants={name: value for name, value in plain.constants.items() if name != "ragged"},
        aligned=("bias", "width", "inner"),
    ), 90)
    cubin = Path(sys.argv[1]) / f"{rows}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    found.append([plan.residents, plan.num_warps, compiled.metadata.shared, *_resources(cubin), compiled.asm["ptx"]])
print(json.dumps(found))
"""
# Whole pieces of 16 bytes a thread: without them a kernel that only waits for memory is at half its speed.
WIDE_READ = re.compile(r"ld\.global\S*\.v(4\.b32|2\.b64)")
WIDE_WRITE = re.compile(r"st\.global\S*\.v(4\.b32|2\.b64)")
READ_WIDE = {
    "group_moments",
    "group_norm",
    "layer_norm",
    "add",
    "attention",
    "geglu",
    "gelu",
    "silu",
    "cast",
    "transpose",
    "interleave",
    "quantise",
}
# a few numbers, four channels, eight bytes
WRITE_WIDE = (READ_WIDE | {"linear_geglu"}) - {"group_moments", "transpose", "quantise"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled")
    run(EXPORT, str(path))
    return path


def run(code: str, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    assert {name for name in narrow if "e4m3" not in name} == set()


def test_e4m3_is_converted_to_by_the_unit_for_it(folder: Path) -> None:
    kernels = named(read_manifest(folder).kernels, {"quantise", "layer_norm_e4m3", "geglu_e4m3"})
    assert [kernel.name for kernel in kernels if "cvt.rn.satfinite.e4m3x2.f32" not in text(folder, kernel)] == []


@pytest.fixture(scope="module")
def attention() -> list[str]:
    texts: list[str] = json.loads(run(ATTENTION))
    return texts


def test_attention_begins_scores_before_it_takes_powers(attention: list[str]) -> None:
    """Ahead, the products before the first power are not waited for."""
    plain, _, ahead = (text[: text.index("ex2.")] for text in attention)
    assert plain.rindex("wgmma.mma_async") < plain.rindex("wgmma.wait_group")
    assert ahead.rindex("wgmma.mma_async") > ahead.rindex("wgmma.wait_group")


def test_attention_keeps_its_shares_in_registers_and_takes_each_power_once(attention: list[str]) -> None:
    """A product's first factor that is in registers is named in braces; one in shared memory by a descriptor."""
    plain, mixed, _ = attention
    products = re.findall(r"wgmma\.mma_async\S*\s+{[^}]*},\s*(\S)", plain)
    assert products.count("{") >= 8  # four steps of 16 keys for each of two parts of the values
    powers = [len(re.findall(r"\bex2\.", ptx)) for ptx in (plain, mixed)]
    scores = 128 * 64 // 256  # a thread's
    assert powers == [scores + 2, scores * 6 // 8 + 2]  # and for two rows what they shrink by


def test_linear_geglu_multiplies_the_next_step_while_it_waits_for_the_last(tmp_path: Path) -> None:
    """And as many programs fit on a multiprocessor as its plan says: 64 Ki registers, 228 KiB of shared memory."""
    for residents, num_warps, shared, registers, spilled, ptx in json.loads(run(LINEAR_GEGLU, str(tmp_path))):
        assert spilled == 0
        assert residents * num_warps * 32 * registers <= 65536
        assert residents * (shared + 1024) <= 228 * 1024
        assert ptx.count("cp.async.bulk.tensor.2d.shared") == ptx.count("cp.async.bulk.tensor.3d.shared") > 1
        assert "cp.async.bulk.tensor.2d.global" in ptx
        # in the loop one product is left on its way; what ends a tile waits for all
        assert re.findall(r"wgmma\.wait_group\S*\s+(\d)", ptx)[:2] == ["1", "0"]


def test_linear_geglu_by_pointers_too(folder: Path) -> None:
    (kernel,) = (each for each in read_manifest(folder).kernels if each.name == "linear_geglu_fp16_128x64")
    ptx = text(folder, kernel)
    assert re.findall(r"wgmma\.wait_group\S*\s+(\d)", ptx) == ["1", "0"]
    assert re.search(r"cp\.async\.cg\.shared\.global\S* .*0x10", ptx)
    assert kernel.registers is not None
    assert 2 * kernel.threads * kernel.registers <= 65536


def text(folder: Path, kernel: Kernel) -> str:
    return (folder / kernel.ptx.name).read_text()
