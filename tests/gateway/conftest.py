"""Fixtures for tests of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_house import House, arenas, eventually, opened


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """The usual house; nothing may be left when it closes."""
    before = asyncio.all_tasks()
    async with opened(tmp_path) as house:
        yield house
    closing = asyncio.current_task()
    assert await eventually(lambda: asyncio.all_tasks() - {closing} <= before), asyncio.all_tasks()
    assert not arenas(tmp_path)
