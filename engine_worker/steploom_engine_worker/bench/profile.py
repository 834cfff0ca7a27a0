"""Where a forward pass spends its time: kernels by kind, from torch's profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

# In this order: the first that matches a kernel's name.
_KINDS: Mapping[str, str] = {
    "attention": r"flash|fmha|attention|sdpa|mha_|_hopper_kernel",
    "convolution": r"conv|fprop|wgrad|implicit|xmma_f",
    "group norm": r"group_norm|_moments_kernel|_apply_kernel|_whole_kernel|RowwiseMoments|GroupNorm",
    "layer norm": r"layer_norm|LayerNorm",
    "product with GEGLU": r"linear_geglu",
    "GEGLU": r"geglu",
    "adapters": r"lora|gated_up",
    "quantisation": r"quantise",
    "addition": r"^_add",
    "matrix product": r"gemm|nvjet|cutlass|splitK|gemv|cublas",
    "copy and layout": r"copy|nchw|nhwc|Cat|transpose|upsample|interleave|Memcpy",
}


# Torch's operations that end in a library's kernels.
_CALLS = ("mm", "addmm", "addmm_", "bmm", "baddbmm_", "_scaled_mm", "conv2d", "scaled_dot_product_attention")
_LONGEST_CALLS = 30


class Call(NamedTuple):
    """An operation of torch on tensors of certain shapes, in one pass."""

    name: str
    shapes: str  # of its tensors
    seconds: float  # of all calls
    calls: float


def profile(run: Callable[[], object], repeats: int = 5) -> dict[str, list[tuple[str, float, float]]]:
    """Kernels of one call by kind, longest first: name, seconds, calls."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    kinds: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for event in profiler.key_averages():
        seconds = event.self_device_time_total / 1e6 / repeats
        if seconds > 0:
            kinds[kind_of(event.key)].append((event.key, seconds, event.count / repeats))
    return {kind: sorted(items, key=lambda item: -item[1]) for kind, items in kinds.items()}


def profile_calls(run: Callable[[], object], repeats: int = 5) -> list[Call]:
    """What libraries do in one call, by operation and shapes, longest first."""
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    found = [
        Call(
            name=event.key.removeprefix("aten::"),
            shapes=" ".join(str(shape) for shape in event.input_shapes if shape),
            seconds=event.device_time_total / 1e6 / repeats,
            calls=event.count / repeats,
        )
        for event in profiler.key_averages(group_by_input_shape=True)
        if event.key.removeprefix("aten::") in _CALLS
    ]
    return sorted(found, key=lambda call: -call.seconds)


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    for kind, pattern in _KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"


def markdown(kinds: Mapping[str, list[tuple[str, float, float]]], rows: int) -> str:
    """Kinds and their longest kernels, microseconds a row."""
    total = sum(seconds for items in kinds.values() for _, seconds, _ in items)
    lines = ["| kind | µs a row | share | launches | longest kernels (µs a row) |", "|---|---|---|---|---|"]
    for kind, items in sorted(kinds.items(), key=lambda item: -sum(seconds for _, seconds, _ in item[1])):
        seconds = sum(item[1] for item in items)
        launches = sum(item[2] for item in items)
        longest = ", ".join(f"`{name[:60]}` {each / rows * 1e6:.1f}" for name, each, _ in items[:3])
        lines.append(f"| {kind} | {seconds / rows * 1e6:.1f} | {seconds / total:.1%} | {launches:.0f} | {longest} |")
    lines.append(f"| all | {total / rows * 1e6:.1f} | | | |")
    return "\n".join(lines) + "\n"


def calls_markdown(calls: Sequence[Call], rows: int) -> str:
    """The longest, microseconds a row."""
    lines = ["| operation | shapes | calls | µs a row |", "|---|---|---|---|"]
    for call in calls[:_LONGEST_CALLS]:
        lines.append(f"| {call.name} | {call.shapes} | {call.calls:.0f} | {call.seconds / rows * 1e6:.1f} |")
    return "\n".join(lines) + "\n"
