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

# No example has a deadline: a machine that stalls says nothing of the code.
settings.register_profile("patient", deadline=None)
# CI runs the same examples each time, so that it judges the commit alone; runs by hand look for new ones.
settings.register_profile("ci", settings.get_profile("patient"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """An engine flushes denormal numbers to zero, for the whole thread: later tests get theirs back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
