"""What holds for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """An engine flushes denormal numbers to zero, for the whole thread: later tests get theirs back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
