"""What lies beside engines: kernels that run around them, compiled for their GPU, and constants of the model."""

from __future__ import annotations

from pathlib import Path

from steploom_engine_worker.export.host import write_host
from steploom_engine_worker.model import Model
from steploom_engine_worker.tensorrt.kernels import kernel_names
from steploom_kernels import aot
from steploom_kernels.launch_recipe import RecipeError, read_manifest
from steploom_kernels.operations import all_variants

OLDEST_GPU = (8, 0)  # that the kernels are compiled for

_HALVES = {"fp16": "fp16", "bf16": "bf16", "fp8": "fp16"}  # types of the networks' edges, by precision


def write_companions(folder: Path, kernels: Path, model: Model, precision: str, capability: tuple[int, int]) -> bool:
    """Writes what is missing or out of date.

    Args:
        folder: of the engines.
        kernels: of the kernels.
        model: whose tokenizer and constants these are; in float32, as CPUs are slow at half precision.
        precision: of the engines.
        capability: of the GPU.

    Returns:
        Whether kernels were compiled.

    Raises:
        ModelError: the tokenizer cannot be used without its library.
        ExportError: of `steploom_kernels.aot`: kernels cannot be compiled.
    """
    write_host(folder, model)
    names = kernel_names(_HALVES[precision])
    if _are_there(kernels, names, capability):
        return False
    variants = [variant for variant in all_variants() if variant.name in names]
    aot.export(variants, [10 * capability[0] + capability[1]], kernels, lambda _line: None)
    return True


def _are_there(folder: Path, names: tuple[str, ...], capability: tuple[int, int]) -> bool:
    try:
        manifest = read_manifest(folder)
        for name in names:
            manifest.kernel(name, capability).image(folder)
    except RecipeError:
        return False
    return True
