"""The modules that hold kernels, named in one place: what is exported and measured."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from steploom_kernels.jit import Variant

MODULES = (
    "group_norm",
    "layer_norm",
    "add",
    "attention",
    "geglu",
    "linear_geglu",
    "gelu",
    "silu",
    "cast",
    "interleave",
    "fp8",
    "gated_lora",
    "gather_rows",
    "guidance_step",
    "philox_noise",
    "pixels_in",
    "pixels_out",
    "slot_edges",
    "are_finite",
)


def all_variants() -> Iterator[Variant]:
    """Every compiled form of every kernel, in the order of `MODULES`."""
    for name in MODULES:
        yield from import_module(f"steploom_kernels.{name}").variants()
