"""Kernels compile for every target with no GPU present, and a manifest tells how to launch them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_kernel import SAMPLE, SMALL, scaled_sum_reference

from steploom_kernels import aot, operations
from steploom_kernels.aot import ExportError, check, ptx_parameters
from steploom_kernels.jit import Variant
from steploom_kernels.launch_recipe import Argument, Kernel, read_manifest

pytest.importorskip("triton")

SUPPORT = Path(__file__).parents[1] / "support"
PACKAGE = Path(aot.__file__).parent
EXPORT = """
import sys
from pathlib import Path
from sample_kernel import SAMPLE, SMALL
from steploom_kernels.aot import export
export([SAMPLE, SMALL], [int(word) for word in sys.argv[2:]], Path(sys.argv[1]), print)
"""
ADDRESS = 2**20  # any that is aligned
GOOD = {"x": ADDRESS, "out": ADDRESS, "count": 4000, "factor": 2.0, "half": 0.5, "brain": 0.25, "double": 1.0}
VARIANTS = list(operations.all_variants())


def python(*arguments: str, interpreted: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python with or without Triton's interpreter, which the tests of this process use."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(SUPPORT)} | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    return subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two kernels for two targets."""
    folder = tmp_path_factory.mktemp("exported")
    done = python("-W", "error", "-c", EXPORT, str(folder), "80", "90")
    assert done.returncode == 0, done.stderr
    return folder


def test_an_export_is_a_file_each_and_a_manifest(exported: Path) -> None:
    stems = [f"{name}.{target}" for name in ("scaled_sum_fp16", "scaled_sum_small") for target in ("sm_80", "sm_90")]
    files = {f"{stem}.{ending}" for stem in stems for ending in ("cubin", "ptx")}
    assert {path.name for path in exported.iterdir()} == {*files, "kernels.json"}
    assert [f"{kernel.name}.{kernel.target}" for kernel in read_manifest(exported).kernels] == stems


def test_a_cubin_is_code_for_its_target(exported: Path) -> None:
    for kernel in read_manifest(exported).kernels:
        image = kernel.image(exported)
        assert image.startswith(b"\x7fELF")
        assert f".text.{kernel.entry}\0".encode() in image
        assert f".target {kernel.target}" in (exported / kernel.ptx.name).read_text()


def test_the_manifest_says_how_to_launch(exported: Path) -> None:
    manifest = read_manifest(exported)
    kernel = manifest.kernel("scaled_sum_fp16", (9, 0))
    assert (kernel.entry, kernel.threads, kernel.grid) == ("_scaled_sum", 128, ("cdiv(count, block)", "1", "1"))
    assert [(argument.name, argument.type) for argument in kernel.arguments] == [
        item for item in SAMPLE.signature.items() if item[1] != "constexpr"
    ]
    assert [argument.name for argument in kernel.arguments if argument.aligned] == ["x", "out", "count"]
    assert kernel.sizes == ()
    assert kernel.shared_bytes > 0  # the sum crosses warps
    assert kernel.launch({**GOOD, "flag": True, "offset": -1}).grid == (4, 1, 1)
    assert manifest.kernel("scaled_sum_small", (9, 0)).launch({**GOOD, "flag": 0, "offset": 0, "copies": 3}).grid == (
        32,
        3,
        1,
    )


def test_registers_and_spills_are_known(exported: Path) -> None:
    assert all(kernel.registers and kernel.spilled_bytes == 0 for kernel in read_manifest(exported).kernels)


def test_a_launch_passes_what_the_code_expects(exported: Path) -> None:
    sizes = {"u64": 8, "f64": 8, "u32": 4, "f32": 4, "u16": 2, "b8[2]": 2, "u8": 1}
    for kernel in read_manifest(exported).kernels:
        launch = kernel.launch({**GOOD, "flag": True, "offset": 0} | dict.fromkeys(kernel.sizes, 1))
        parameters = ptx_parameters((exported / kernel.ptx.name).read_text())
        assert [len(bytes(value)) for value in launch.values] == [sizes[kind] for kind in parameters]


def test_aligned_arguments_are_read_in_wide_loads(exported: Path) -> None:
    assert "ld.global.v4.b32" in (exported / "scaled_sum_fp16.sm_90.ptx").read_text()
    assert "ld.global.v" not in (exported / "scaled_sum_small.sm_90.ptx").read_text()


def test_no_path_of_this_machine_is_in_an_export(exported: Path) -> None:
    for path in exported.iterdir():
        assert str(PACKAGE.parents[1]).encode() not in path.read_bytes()


def test_an_export_twice_is_the_same(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))  # compiled anew
    assert python("-c", EXPORT, str(tmp_path / "again"), "90").returncode == 0
    again = read_manifest(tmp_path / "again").kernels
    assert again == tuple(kernel for kernel in read_manifest(exported).kernels if kernel.target == "sm_90")


def test_the_sources_in_the_manifest_are_those_of_the_kernels(exported: Path) -> None:
    sources = read_manifest(exported).sources
    modules = {"jit.py", *(f"{name}.py" for name in operations.MODULES)}
    assert modules <= set(sources)
    assert not {"aot.py", "launch_recipe.py", "operations.py"} & set(sources)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--arch", "75"], "'75' names an unknown target; known are 80, 86, 89, 90, 100, 120"),
        (["--arch", "90,gfx942"], "unknown target"),
        (["--arch", ""], "unknown target"),
        (["--only", "nothing"], "no kernel nothing; there are"),
        (["--only", "quantise_fp16_1024", "--arch", "80,86"], "quantise_fp16_1024 is for sm_89 and later"),
    ],
)
def test_what_cannot_be_exported_is_refused(arguments: Sequence[str], cause: str, tmp_path: Path) -> None:
    done = python("-m", "steploom_kernels.aot", "--out", str(tmp_path / "out"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert cause in done.stderr
    assert not (tmp_path / "out").exists()


def test_interpreted_kernels_are_refused(tmp_path: Path) -> None:
    done = python("-m", "steploom_kernels.aot", "--out", str(tmp_path / "out"), interpreted=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "aot: TRITON_INTERPRET is set: kernels are interpreted and cannot be compiled. Unset it\n"
    assert not (tmp_path / "out").exists()


def test_one_kernel_alone(tmp_path: Path) -> None:
    name = VARIANTS[0].name
    done = python("-m", "steploom_kernels.aot", "--out", str(tmp_path), "--arch", "90", "--only", name)
    assert done.returncode == 0, done.stderr
    assert [kernel.name for kernel in read_manifest(tmp_path).kernels] == [name]
    assert f"{name} sm_90: " in done.stdout


class Metadata:
    """What a compiled kernel says of itself."""

    global_scratch_size = 0
    profile_scratch_size = 0
    num_ctas = 1
    launch_cooperative_grid = False
    launch_pdl = False


PTX = ".visible .entry f(\n\t.param .u64 .ptr .global .align 1 f_0,\n\t.param .u64 f_1,\n\t.param .u64 f_2\n)"


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("global_scratch_size", 128, "global scratch memory"),
        ("profile_scratch_size", 8, "profiler scratch memory"),
        ("num_ctas", 2, "a cluster"),
        ("launch_cooperative_grid", True, "a cooperative launch"),
        ("launch_pdl", True, "a dependent launch"),
    ],
)
def test_a_kernel_that_needs_more_than_a_launch_gives_is_refused(field: str, value: object, cause: str) -> None:
    metadata = Metadata()
    setattr(metadata, field, value)
    arguments = (Argument("x", "*fp16"),)
    aot._check_launch(SAMPLE, Metadata(), PTX, arguments)
    with pytest.raises(ExportError, match=f"scaled_sum_fp16 needs {cause}"):
        aot._check_launch(SAMPLE, metadata, PTX, arguments)


def test_parameters_that_a_launch_would_not_pass_are_refused() -> None:
    with pytest.raises(ExportError, match="compiled to the parameters"):
        aot._check_launch(SAMPLE, Metadata(), PTX, (Argument("x", "*fp16"), Argument("count", "i32")))


def test_ptx_parameters_are_read_in_order() -> None:
    text = """.visible .entry f(
        .param .u64 .ptr .global .align 1 f_param_0,
        .param .align 2 .b8 f_param_1[2],
        .param .f32 f_param_2
    )
    .reqntid 128"""
    assert ptx_parameters(text) == ["u64", "b8[2]", "f32"]


FAULTS: dict[str, Callable[[Variant], Variant]] = {
    "its signature names": lambda good: replace(good, signature=dict(sorted(good.signature.items()))),
    "constants are": lambda good: replace(good, constants={}),
    "aligned": lambda good: replace(good, aligned=("factor",)),
    "is no file name": lambda good: replace(good, name="../x"),
    "its grid names": lambda good: replace(good, grid=("x", "1", "1")),
    "is no expression": lambda good: replace(good, grid=("1 +", "1", "1")),
}


@pytest.mark.parametrize("cause", FAULTS)
def test_a_variant_that_contradicts_its_kernel_is_refused(cause: str) -> None:
    check(SAMPLE)
    with pytest.raises(ExportError, match=cause):
        check(FAULTS[cause](SAMPLE))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_fits_its_kernel(variant: Variant) -> None:
    check(variant)


def test_names_of_variants_are_unique() -> None:
    counts = Counter(variant.name for variant in VARIANTS)
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_every_module_with_variants_is_listed() -> None:
    with_variants = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "variants" for node in ast.parse(path.read_text()).body
        )
    }
    assert with_variants == set(operations.MODULES)


def test_the_page_on_kernels_names_every_module() -> None:
    page = (PACKAGE.parents[1] / "docs" / "kernels.md").read_text()
    assert [name for name in operations.MODULES if f"`{name}`" not in page] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="launches on a GPU")
def test_a_launch_through_the_driver_alone(exported: Path) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    manifest = read_manifest(exported)
    for name in (SAMPLE.name, SMALL.name):
        kernel = manifest.kernel(name, torch.cuda.get_device_capability())
        _launch_and_compare(driver, kernel, exported)


def _launch_and_compare(driver: Any, kernel: Kernel, folder: Path) -> None:
    x = torch.randn(4000, device="cuda", dtype=torch.float16)
    out = torch.full((4000,), float("nan"), device="cuda")
    numbers: dict[str, Any] = {"factor": 1.5, "half": 0.5, "brain": 0.25, "double": -3.0, "offset": 7}
    launch = kernel.launch(
        {"x": x.data_ptr(), "out": out.data_ptr(), "count": 4000, "flag": False, **numbers}
        | dict.fromkeys(kernel.sizes, 1)
    )
    module = _checked(driver.cuModuleLoadData(kernel.image(folder)))
    function = _checked(driver.cuModuleGetFunction(module, kernel.entry.encode()))
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
    config.sharedMemBytes = launch.shared_bytes
    config.hStream = torch.cuda.current_stream().cuda_stream
    _checked(driver.cuLaunchKernelEx(config, function, launch.address, 0))
    torch.cuda.synchronize()
    torch.testing.assert_close(out, scaled_sum_reference(x, **numbers), rtol=1e-6, atol=1e-6)
    _checked(driver.cuModuleUnload(module))


def _checked(answer: tuple[Any, ...]) -> Any:
    assert int(answer[0]) == 0, answer[0]
    return answer[1] if len(answer) > 1 else None
