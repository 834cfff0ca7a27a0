"""Where kernels are tested: on the GPU, or where there is none in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The device of the tensors that kernels are launched on. The root's conftest.py chooses the interpreter."""
    pytest.importorskip("triton")
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
