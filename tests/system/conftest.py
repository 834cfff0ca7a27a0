"""Whole systems of real processes: started once a module, ended with it, nothing left behind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from steploom_loadtest.stack import Stack, Tables, running

StartStack = Callable[..., Stack]

READY_S = 180.0  # the services import and start on two busy cores
TEST_S = 300.0


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
async def _bounded() -> AsyncIterator[None]:
    """No test waits for ever, whatever it waits for."""

    def end() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel(f"not done within {TEST_S:g} s")

    loop = asyncio.get_running_loop()
    timer = loop.call_later(TEST_S, end)
    yield
    timer.cancel()
