"""Ahead-of-time export: every kernel as cubin and PTX for every target, and the manifest to launch them by.

No GPU is needed. `python -m steploom_kernels.aot --out DIR [--arch 80,90] [--only NAME]`; how an export is used:
`launch_recipe`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from steploom_kernels.grid_expression import BadExpression, names
from steploom_kernels.jit import HAS_TRITON, Variant
from steploom_kernels.launch_recipe import MANIFEST, Argument, File, Kernel, Manifest
from steploom_kernels.operations import all_variants

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
WARP_SIZE = 32
# Triton's launcher passes two more pointers after a kernel's own arguments: memory for programs that spill into global
# memory, and for its profiler. Kernels that use either are refused, so both are null.
HIDDEN = ("global_scratch", "profile_scratch")
# Modules of the package that no kernel is compiled from.
_TOOLS = {"__init__.py", "aot.py", "grid_expression.py", "launch_recipe.py", "operations.py"}
_PTX_TYPES = {
    "i1": "u8",
    **{f"{sign}{bits}": f"u{bits}" for sign in "iu" for bits in (8, 16, 32, 64)},
    "fp16": "b8[2]",
    "bf16": "b8[2]",
    "fp32": "f32",
    "fp64": "f64",
}


class ExportError(Exception):
    """A kernel cannot be exported."""


def export(
    variants: Iterable[Variant],
    architectures: Sequence[int],
    folder: Path,
    say: Callable[[str], None],
) -> Manifest:
    """Compiles each variant for each architecture into the folder; the manifest comes last.

    Args:
        variants: what to compile; their names are unique. One that an architecture cannot run is left out there.
        architectures: of `ARCHITECTURES`, 90 for sm_90.
        folder: made if need be; files of the same names are replaced.
        say: progress, a line a kernel.

    Raises:
        ExportError: Triton is missing or only interprets, a variant contradicts its kernel, or does not compile to
            what a launch without Triton can give it.
    """
    if not HAS_TRITON:
        raise ExportError("Triton is not installed")
    variants = list(variants)
    _refuse_interpreted(variants)
    import triton

    folder.mkdir(parents=True, exist_ok=True)
    kernels = []
    for variant in variants:
        check(variant)
        for architecture in fitting(variant, architectures):
            kernel = _export_one(variant, architecture, folder)
            say(_line(kernel))
            kernels.append(kernel)
    manifest = Manifest(triton=triton.__version__, sources=_sources(), kernels=tuple(kernels))
    part = folder / f"{MANIFEST}.part"
    part.write_text(manifest.to_json())
    part.replace(folder / MANIFEST)  # whoever reads sees the old manifest or the new one whole
    return manifest


def fitting(variant: Variant, architectures: Iterable[int]) -> list[int]:
    """Those of the architectures that have what a variant uses."""
    return [architecture for architecture in architectures if architecture >= variant.lowest]


def check(variant: Variant) -> None:
    """Holds a variant against its kernel's parameters.

    Raises:
        ExportError: with the variant's name and what does not fit.
    """
    parameters = list(variant.kernel.arg_names)
    constants = [name for name, kind in variant.signature.items() if kind == "constexpr"]
    alignable = [name for name, kind in variant.signature.items() if kind[0] in "*iu"]
    if list(variant.signature) != parameters:
        raise ExportError(f"{variant.name}: its signature names {list(variant.signature)}, the kernel {parameters}")
    if set(variant.constants) != set(constants):
        raise ExportError(f"{variant.name}: constants are {list(variant.constants)}, the signature says {constants}")
    if not set(variant.aligned) <= set(alignable):
        raise ExportError(f"{variant.name}: aligned {list(variant.aligned)} is not among {alignable}")
    if not re.fullmatch(r"[a-z0-9_+]+", variant.name):
        raise ExportError(f"{variant.name!r} is no file name")
    pointers_and_floats = {name for name, kind in variant.signature.items() if kind[0] not in "iuc"}
    wrong = grid_names(variant) & pointers_and_floats
    if wrong:
        raise ExportError(f"{variant.name}: its grid names {sorted(wrong)}, which are not whole numbers")


def grid_names(variant: Variant) -> frozenset[str]:
    """What the grid is computed from: arguments, constants and sizes that the kernel itself does not take.

    Raises:
        ExportError: it is no arithmetic.
    """
    try:
        return frozenset().union(*map(names, variant.grid))
    except BadExpression as error:
        raise ExportError(f"{variant.name}: grid {error}") from None


def _export_one(variant: Variant, architecture: int, folder: Path) -> Kernel:
    compiled = _compile(variant, architecture)
    metadata = compiled.metadata
    target = f"sm_{architecture}"
    arguments = tuple(
        Argument(name, kind, aligned=name in variant.aligned)
        for name, kind in variant.signature.items()
        if kind != "constexpr"
    )
    _check_launch(variant, metadata, compiled.asm["ptx"], arguments)
    cubin = _write(folder / f"{variant.name}.{target}.cubin", compiled.asm["cubin"])
    registers, spilled = _resources(folder / cubin.name)
    return Kernel(
        name=variant.name,
        target=target,
        entry=metadata.name,
        cubin=cubin,
        ptx=_write(folder / f"{variant.name}.{target}.ptx", compiled.asm["ptx"].encode()),
        ptx_version=_search(r"\.version (\S+)", compiled.asm["ptx"]),
        arguments=arguments,
        hidden=HIDDEN,
        constants=dict(variant.constants),
        grid=variant.grid,
        sizes=tuple(sorted(grid_names(variant) - set(variant.signature))),
        threads=metadata.num_warps * WARP_SIZE,
        shared_bytes=metadata.shared,
        registers=registers,
        spilled_bytes=spilled,
    )


def _compile(variant: Variant, architecture: int) -> Any:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    positions = {name: index for index, name in enumerate(variant.signature)}
    source = ASTSource(
        fn=variant.kernel,
        signature=dict(variant.signature),
        constexprs=dict(variant.constants),
        attrs={(positions[name],): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "enable_fp_fusion": True}
    if variant.max_registers:
        options["maxnreg"] = variant.max_registers
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # else the paths of this machine stand in every cubin
        try:
            return triton.compile(source, target=GPUTarget("cuda", architecture, WARP_SIZE), options=options)
        except Exception as error:  # Triton's compiler raises many kinds
            raise ExportError(f"{variant.name} for sm_{architecture}: {type(error).__name__}: {error}") from error


def _check_launch(variant: Variant, metadata: Any, ptx: str, arguments: Sequence[Argument]) -> None:
    """That grid, threads, shared memory and the arguments with the hidden pointers are all that a launch must give."""
    needs = {
        "global scratch memory": metadata.global_scratch_size,
        "profiler scratch memory": metadata.profile_scratch_size,
        "a cluster": metadata.num_ctas != 1,
        "a cooperative launch": metadata.launch_cooperative_grid,
        "a dependent launch": metadata.launch_pdl,
    }
    needed = [what for what, value in needs.items() if value]
    if needed:
        raise ExportError(f"{variant.name} needs {', '.join(needed)}, which a launch without Triton does not give")
    expected = [*("u64" if item.type[0] == "*" else _PTX_TYPES.get(item.type, "?") for item in arguments)]
    expected += ["u64"] * len(HIDDEN)
    found = ptx_parameters(ptx)
    if found != expected:
        raise ExportError(f"{variant.name} compiled to the parameters {found}, a launch passes {expected}")


def ptx_parameters(ptx: str) -> list[str]:
    """Types of the parameters of a PTX module's only kernel, as ["u64", "u32", "b8[2]"]."""
    inside = _search(r"\.visible \.entry \w+\s*\(([^)]*)\)", ptx)
    found = re.findall(r"\.param\b[^,]*?\.([a-z]\d+)(?: [^,\[]*)?(\[\d+\])?\s*(?:,|$)", inside)
    return [kind + array for kind, array in found]


def _search(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ExportError(f"the compiler's output has no {pattern}")
    return match.group(1)


def _write(path: Path, data: bytes) -> File:
    path.write_bytes(data)
    return File(path.name, len(data), hashlib.sha256(data).hexdigest())


def _resources(cubin: Path) -> tuple[int | None, int | None]:
    """Registers a thread and bytes of its stack; None where CUDA's tool, which Triton brings, cannot tell."""
    with suppress(ImportError, AttributeError, OSError, subprocess.SubprocessError):
        from triton import knobs

        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        match = re.search(r"REG:(\d+).*?STACK:(\d+)", text)
        if match:
            return int(match.group(1)), int(match.group(2))
    return None, None


def _sources() -> dict[str, str]:
    files = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name not in _TOOLS]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _line(kernel: Kernel) -> str:
    unknown = "?"
    registers = unknown if kernel.registers is None else kernel.registers
    spilled = unknown if kernel.spilled_bytes is None else kernel.spilled_bytes
    return (
        f"{kernel.name} {kernel.target}: {kernel.threads} threads, {registers} registers, {spilled} bytes spilled,"
        f" {kernel.shared_bytes} bytes shared"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, or 2 where nothing or not all could be exported."""
    given = _parser().parse_args(arguments)
    try:
        variants = _chosen(given.only, given.arch)
        manifest = export(variants, given.arch, given.out, say=print)
    except ExportError as error:
        print(f"aot: {error}", file=sys.stderr)
        return 2
    print(f"{len(manifest.kernels)} kernels, Triton {manifest.triton}: {given.out / MANIFEST}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aot", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.sm_90.cubin, .ptx and kernels.json")
    parser.add_argument(
        "--arch",
        type=_architectures,
        default=ARCHITECTURES,
        help=f"compute capabilities; default: {','.join(map(str, ARCHITECTURES))}",
    )
    parser.add_argument("--only", metavar="NAME", help="one kernel; the manifest then holds only this")
    return parser


def _architectures(text: str) -> tuple[int, ...]:
    given = tuple(int(part) if part.isdecimal() else -1 for part in text.removeprefix("sm_").split(","))
    if not given or not set(given) <= set(ARCHITECTURES):
        known = ", ".join(map(str, ARCHITECTURES))
        raise argparse.ArgumentTypeError(f"{text!r} names an unknown target; known are {known}")
    return given


def _chosen(only: str | None, architectures: Sequence[int]) -> list[Variant]:
    variants = list(all_variants())
    known = [variant.name for variant in variants]
    if only is None:
        return variants
    if only not in known:
        raise ExportError(f"no kernel {only}; there are {', '.join(known)}")
    (chosen,) = (variant for variant in variants if variant.name == only)
    if not fitting(chosen, architectures):
        raise ExportError(f"{only} is for sm_{chosen.lowest} and later")
    return [chosen]


def _refuse_interpreted(variants: Iterable[Variant]) -> None:
    from triton.runtime.jit import JITFunction

    if not all(isinstance(variant.kernel, JITFunction) for variant in variants):
        raise ExportError("TRITON_INTERPRET is set: kernels are interpreted and cannot be compiled. Unset it")


if __name__ == "__main__":
    sys.exit(main())
