"""Whole systems of real processes: started once a module, ended with it, nothing left behind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from steploom_loadtest.stack import Stack, Tables, running

StartStack = Callable[..., Stack]

READY_S = 60.0  # the services import and start on two busy cores


@pytest.fixture(scope="module")
def start_stack() -> Iterator[StartStack]:
    """Starts a system with the settings that it is given; ends all of the module's systems."""
    with ExitStack() as stacks:

        def start(tables: Tables) -> Stack:
            # not pytest's folder: its path is too long for a socket
            directory = stacks.enter_context(tempfile.TemporaryDirectory(prefix="steploom-test-"))
            return stacks.enter_context(running(Path(directory), tables, READY_S))

        yield start


@pytest.fixture(autouse=True)
async def _bounded() -> Iterator[None]:  # type: ignore[misc]
    """No test waits for ever, whatever it waits for."""
    async with asyncio.timeout(90):
        yield
