"""Exported kernels are found, checked and given their arguments without Triton or torch."""

from __future__ import annotations

import ast
import ctypes
import hashlib
import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steploom_kernels import grid_expression, launch_recipe
from steploom_kernels.grid_expression import BadExpression, evaluate, names
from steploom_kernels.launch_recipe import (
    Argument,
    DamagedImage,
    File,
    Kernel,
    Manifest,
    StaleManifest,
    UnknownKernel,
    UnreadableManifest,
    WrongArgument,
    capability_of,
    read_manifest,
)

IMAGE = b"the code of a kernel"
GOOD: dict[str, Any] = {"x": 4096, "out": 8192, "rows": 32, "scale": 0.1, "heads": 2}


def kernel(target: str = "sm_90", name: str = "norm") -> Kernel:
    file = File(f"{name}.{target}.cubin", len(IMAGE), hashlib.sha256(IMAGE).hexdigest())
    return Kernel(
        name=name,
        target=target,
        entry="_norm",
        cubin=file,
        ptx=replace(file, name=f"{name}.{target}.ptx"),
        ptx_version="8.8",
        arguments=(
            Argument("x", "*fp16", aligned=True),
            Argument("out", "*fp16"),
            Argument("rows", "i32", aligned=True),
            Argument("scale", "fp32"),
        ),
        hidden=("global_scratch", "profile_scratch"),
        constants={"BLOCK": 8, "SILU": True},
        grid=("cdiv(rows, BLOCK)", "heads", "1"),
        sizes=("heads",),
        threads=128,
        shared_bytes=0,
        registers=32,
        spilled_bytes=None,
    )


def write(folder: Path, *kernels: Kernel, sources: dict[str, str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in kernels:
        (folder / each.cubin.name).write_bytes(IMAGE)
    (folder / "kernels.json").write_text(Manifest("3.9.0", sources or {}, kernels).to_json())


def with_type(kind: str, *, aligned: bool = False) -> Kernel:
    return replace(kernel(), arguments=(Argument("value", kind, aligned),), grid=("1", "1", "1"), sizes=())


def packed(kind: str, value: object) -> bytes:
    return bytes(with_type(kind).launch({"value": value}).values[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("rows", 5),
        ("rows * BLOCK - 1 + 2", 21),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("rows // 2", 2),
        ("cdiv(rows, BLOCK)", 2),
        ("cdiv(8, BLOCK)", 2),
        ("max(min(rows, 2), BLOCK)", 4),
    ],
)
def test_grid_arithmetic(text: str, value: int) -> None:
    assert evaluate(text, {"rows": 5, "BLOCK": 4}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "rows.real",
        "(lambda: 1)()",
        "[1][0]",
        "rows ** 9",
        "rows / 2",
        "-rows",
        "1.5",
        "True",
        "'a'",
        "rows if rows else 1",
        "pow(2, 3)",
        "cdiv(rows)",
        "min(*rows)",
        "min(1, 2, key=3)",
        "rows // 0",
        "cdiv(rows, 0)",
        "rows +",
        "",
        "1" + "+1" * 100,
        "columns",
        "scale",
        "\0",
    ],
)
def test_nothing_else_is_evaluated(text: str) -> None:
    with pytest.raises(BadExpression):
        evaluate(text, {"rows": 5, "scale": 0.5})  # type: ignore[dict-item]


def test_the_names_of_an_expression_leave_out_functions() -> None:
    assert names("cdiv(rows, BLOCK) * max(1, groups)") == {"rows", "BLOCK", "groups"}


def test_a_launch_has_grid_and_parameters_in_order() -> None:
    launch = kernel().launch({"scale": 0.1, "heads": 2, "rows": 48, "x": 4096, "out": None})
    assert (launch.grid, launch.threads, launch.shared_bytes) == ((6, 2, 1), 128, 0)
    pointers = ctypes.cast(launch.address, ctypes.POINTER(ctypes.c_void_p))
    values = [ctypes.string_at(pointers[index], size) for index, size in enumerate((8, 8, 4, 4, 8, 8))]
    assert values == [
        struct.pack("Q", 4096),
        struct.pack("Q", 0),
        struct.pack("i", 48),
        struct.pack("f", 0.1),
        bytes(8),  # the hidden pointers are null
        bytes(8),
    ]


@pytest.mark.parametrize(
    ("kind", "value", "data"),
    [
        ("i1", True, b"\1"),
        ("i8", -2, struct.pack("b", -2)),
        ("u8", 255, b"\xff"),
        ("i16", -300, struct.pack("h", -300)),
        ("i32", -(2**31), struct.pack("i", -(2**31))),
        ("u32", 2**32 - 1, b"\xff" * 4),
        ("i64", -1, b"\xff" * 8),
        ("u64", 2**64 - 1, b"\xff" * 8),
        ("fp16", 1.5, struct.pack("e", 1.5)),
        ("bf16", 1.5, struct.pack("f", 1.5)[2:]),
        ("bf16", 1.999, struct.pack("f", 1.9921875)[2:]),  # cut: rounding would give 2
        ("fp32", 3, struct.pack("f", 3.0)),
        ("fp32", math.inf, struct.pack("f", math.inf)),
        ("fp64", 0.1, struct.pack("d", 0.1)),
        ("*u8", 2**63, struct.pack("Q", 2**63)),
    ],
)
def test_values_become_the_bytes_of_their_type(kind: str, value: object, data: bytes) -> None:
    assert packed(kind, value) == data


@pytest.mark.parametrize(
    ("kind", "value", "cause"),
    [
        ("i32", 2**31, "range of i32"),
        ("u8", -1, "0 to 255"),
        ("i1", 2, "0 to 1"),
        ("i32", 1.0, "is no i32"),
        ("i32", None, "is no i32"),
        ("*fp16", -16, "no address"),
        ("*fp16", 2**64, "no address"),
        ("*fp16", "x", "is no"),
        ("fp32", "0.1", "is no fp32"),
        ("fp16", 1e6, "is no fp16"),
        ("fp32", 1e300, "too large"),
        ("fp8", 1.0, "unknown type"),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_refused(kind: str, value: object, cause: str) -> None:
    with pytest.raises(WrongArgument, match=f"value.*{cause}"):
        packed(kind, value)


@pytest.mark.parametrize("kind", ["*fp16", "i32"])
def test_what_was_compiled_as_aligned_must_be(kind: str) -> None:
    aligned = with_type(kind, aligned=True)
    assert aligned.launch({"value": 32}).values[0].value == 32
    with pytest.raises(WrongArgument, match="value: 24 is not a multiple of 16"):
        aligned.launch({"value": 24})
    assert with_type(kind).launch({"value": 24}).values[0].value == 24


def test_missing_and_unknown_arguments_are_named() -> None:
    with pytest.raises(WrongArgument, match="norm takes x, out, rows, scale, heads; missing: rows, heads; unknown: no"):
        kernel().launch({"x": 0, "out": 0, "scale": 1.0})
    with pytest.raises(WrongArgument, match="missing: none; unknown: row, BLOCK"):
        kernel().launch({**GOOD, "row": 1, "BLOCK": 8})


@pytest.mark.parametrize("grid", [("rows - 32", "1", "1"), ("1", "rows * 2048", "1"), ("1", "1", "scale")])
def test_a_grid_that_no_gpu_takes_is_refused(grid: tuple[str, str, str]) -> None:
    with pytest.raises(WrongArgument, match=r"norm: .*grid"):
        replace(kernel(), grid=grid).launch(GOOD)


def test_a_size_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(WrongArgument, match="heads is not a whole number"):
        kernel().launch({**GOOD, "heads": 2.0})


def test_large_shared_memory_must_be_allowed_first() -> None:
    assert not replace(kernel(), shared_bytes=48 * 1024).needs_shared_opt_in
    assert replace(kernel(), shared_bytes=48 * 1024 + 1).needs_shared_opt_in


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    write(tmp_path, kernel("sm_80"), kernel("sm_90"))
    manifest = read_manifest(tmp_path)
    assert manifest.kernels == (kernel("sm_80"), kernel("sm_90"))
    assert manifest.kernel("norm", (9, 0)).image(tmp_path) == IMAGE


@pytest.mark.parametrize(
    ("capability", "target"), [((8, 0), "sm_80"), ((8, 7), "sm_86"), ((8, 9), "sm_89"), ((12, 0), "sm_120")]
)
def test_a_gpu_gets_the_nearest_kernel_that_runs_on_it(capability: tuple[int, int], target: str) -> None:
    manifest = Manifest("3.9.0", {}, tuple(kernel(each) for each in ("sm_86", "sm_80", "sm_120", "sm_89", "sm_90")))
    assert manifest.kernel("norm", capability).target == target


@pytest.mark.parametrize("capability", [(7, 5), (9, 1), (12, 1), (10, 0)])
def test_a_gpu_without_a_kernel_is_told_which_there_are(capability: tuple[int, int]) -> None:
    manifest = Manifest("3.9.0", {}, (kernel("sm_80"), kernel("sm_90"), kernel("sm_120")))
    with pytest.raises(UnknownKernel, match=r"norm was exported for sm_80, sm_90, sm_120, not for sm_"):
        manifest.kernel("norm", capability)


def test_an_unknown_name_is_answered_by_the_known_ones() -> None:
    with pytest.raises(UnknownKernel, match="no kernel nrom was exported; there are norm, scale"):
        Manifest("3.9.0", {}, (kernel(name="scale"), kernel())).kernel("nrom", (9, 0))


def test_a_damaged_cubin_is_refused(tmp_path: Path) -> None:
    write(tmp_path, kernel())
    file = tmp_path / "norm.sm_90.cubin"
    file.write_bytes(IMAGE[:-1])
    with pytest.raises(DamagedImage, match=rf"norm\.sm_90\.cubin: {len(IMAGE) - 1} bytes, exported were {len(IMAGE)}"):
        kernel().image(tmp_path)
    file.write_bytes(IMAGE[::-1])
    with pytest.raises(DamagedImage, match="SHA-256 differs"):
        kernel().image(tmp_path)
    file.unlink()
    with pytest.raises(DamagedImage, match="No such file"):
        kernel().image(tmp_path)


def test_a_changed_source_makes_the_manifest_stale(tmp_path: Path) -> None:
    source = tmp_path / "package" / "norm.py"
    source.parent.mkdir()
    source.write_text("old")
    digest = hashlib.sha256(b"old").hexdigest()
    write(tmp_path, kernel(), sources={"norm.py": digest, "gone.py": digest})
    assert read_manifest(tmp_path, source.parent).sources["norm.py"] == digest  # what is not there is not held
    source.write_text("new")
    with pytest.raises(StaleManifest, match=r"norm\.py changed since the export: export the kernels anew"):
        read_manifest(tmp_path, source.parent)
    assert read_manifest(tmp_path, None).kernels == (kernel(),)


def test_another_format_is_stale(tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_text(json.dumps({"format": 99, "kernels": []}))
    with pytest.raises(StaleManifest, match="format 99, this program reads 1"):
        read_manifest(tmp_path)


def broken(change: str) -> str:
    table = json.loads(Manifest("3.9.0", {}, (kernel(),)).to_json())
    entry = table["kernels"][0]
    if change == "no kernels":
        del table["kernels"]
    elif change == "a field less":
        del entry["threads"]
    elif change == "a field more":
        entry["colour"] = 1
    elif change == "two axes":
        entry["grid"] = ["1", "1"]
    else:
        entry["target"] = "gfx942"
    return json.dumps(table)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 1',
        *map(broken, ("no kernels", "a field less", "a field more", "two axes", "another vendor")),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "kernels.json").write_text(text)
    with pytest.raises(UnreadableManifest, match=r"kernels\.json"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableManifest, match="No such file"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(("target", "capability"), [("sm_80", (8, 0)), ("sm_120", (12, 0))])
def test_targets_name_capabilities(target: str, capability: tuple[int, int]) -> None:
    assert capability_of(target) == capability


@pytest.mark.parametrize("target", ["", "80", "sm_", "sm_9", "sm_90a", "compute_90"])
def test_other_words_are_no_targets(target: str) -> None:
    with pytest.raises(ValueError, match="no target"):
        capability_of(target)


@pytest.mark.parametrize("module", [launch_recipe, grid_expression])
def test_a_launch_needs_neither_triton_nor_torch_nor_a_new_python(module: Any) -> None:
    ast.parse(Path(module.__file__).read_text(), feature_version=(3, 10))
    code = f"import sys, {module.__name__}\nprint(sorted({{'torch', 'triton', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"
