"""Kernels of other projects that compute the same, where they are installed."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from steploom_kernels.bench.case import Rival

_HAS_LIGER = find_spec("liger_kernel") is not None


def liger_layer_norm(eps: float) -> dict[str, Rival]:
    """Liger's layer norm on (x, weight, bias)."""
    if not _HAS_LIGER:
        return {}

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return _liger("layer_norm").layer_norm_forward(x, weight, bias, eps)[0]

    return {"liger": Rival(run)}


def liger_group_norm(groups: int, eps: float, *, silu: bool) -> dict[str, Rival]:
    """Liger's group norm on (x, weight, bias); x is brought into the order of its axes, the only one that it takes."""
    if not _HAS_LIGER:
        return {}

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        result = _liger("group_norm").group_norm_forward(x, x.shape[1], groups, weight, bias, eps)[0]
        return torch.nn.functional.silu(result) if silu else result

    return {"liger": Rival(run, prepare=lambda x, weight, bias: (x.contiguous(), weight, bias))}


def liger_geglu() -> dict[str, Rival]:
    """Liger's GEGLU on (hidden, gate): by the hyperbolic tangent, and on halves that were taken apart before."""
    if not _HAS_LIGER:
        return {}

    def run(hidden: Tensor, gate: Tensor) -> Any:
        return _liger("geglu").geglu_forward(gate, hidden)[2]

    def prepare(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(half.contiguous() for half in x.chunk(2, dim=-1))

    return {"liger (tanh)": Rival(run, prepare, is_same=False)}


def sdpa() -> dict[str, Rival]:
    """Torch's attention on (q, k, v), each [n, tokens, heads, d], by flash attention and by cuDNN, on a GPU."""
    if not torch.cuda.is_available():
        return {}
    backends = {"sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa cudnn": SDPBackend.CUDNN_ATTENTION}
    return {name: Rival(partial(_sdpa, backend)) for name, backend in backends.items()}


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        apart = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return apart.transpose(1, 2)


def _liger(name: str) -> Any:
    return import_module(f"liger_kernel.ops.{name}")
