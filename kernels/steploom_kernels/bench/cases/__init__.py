"""What is measured, a module for each family of operations."""

from __future__ import annotations

from steploom_kernels.bench.case import Case
from steploom_kernels.bench.cases import (
    activations,
    adapters,
    attention,
    engine,
    feed_forward,
    fp8,
    norms,
    slots,
    upsampling,
)


def all_cases() -> list[Case]:
    """Every case of every family."""
    families = (norms, attention, activations, feed_forward, upsampling, fp8, adapters, engine, slots)
    return [case for family in families for case in family.cases()]


def all_plans() -> list[Case]:
    """Every launch plan that might be the best, where there are several."""
    return [*attention.sweep(), *feed_forward.sweep(), *norms.sweep(), *upsampling.sweep()]
