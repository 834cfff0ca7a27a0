"""What holds for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Without a GPU kernels run in Triton's interpreter. Triton looks when it is imported, which any module may do first.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# CI runs the same examples each time, so that it judges the commit alone; runs by hand look for new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """An engine flushes denormal numbers to zero, for the whole thread: later tests get theirs back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
