"""What `steploom up` and `steploom status` say of plain models."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from gateway_house import eventually
from rich.console import Console
from served_plain import opened_plain

from steploom.plain_models import ModelLine, plain_models, ready_words
from steploom.status import Snapshot
from steploom.watch import Look, screen
from steploom_batcher.plain.fake_host import identity_config
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse

READY = [ModelLine(name, "1", "ready", "") for name in "abcdefghij"]
BROKEN = ModelLine("z", "", "unavailable", "backend: is [none]")


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (READY[:2], "a, b"),
        ([READY[0], ModelLine("a", "2", "ready", ""), BROKEN], "a; not ready: 1, see steploom status"),
        (READY, "a, b, c, d, e, f, g, h and 2 more"),
        ([BROKEN], "no model is ready yet; not ready: 1, see steploom status"),
        ([], "no model is ready yet"),
    ],
)
def test_what_can_be_called(models: list[ModelLine], words: str) -> None:
    assert ready_words(models, "127.0.0.1:8001") == f"Open Inference Protocol at 127.0.0.1:8001: {words}"


async def test_a_model_is_shown_while_its_host_is_away(tmp_path: Path) -> None:
    async with opened_plain(tmp_path, [identity_config(), identity_config("other")]) as house:
        house.host.loaded.discard("other")
        house.host.change()

        async def shown() -> list[tuple[str, str, str, str]]:
            lines = await asyncio.to_thread(plain_models, f"unix:{tmp_path}/batcher.sock", 60.0)
            return [(line.name, line.version, line.state, line.reason) for line in lines]

        assert ("identity", "1", "ready", "") in await shown()
        assert await eventually(lambda: house.batcher.plain.models[1].reason == "unloaded")
        await house.host.stop()
        assert await eventually(lambda: not house.batcher.plain.is_up)
        assert await shown() == [
            ("identity", "1", "unavailable", "its host is away"),
            ("other", "", "unavailable", "unloaded"),
        ]


async def test_without_hosts_there_are_none(tmp_path: Path) -> None:
    async with opened_plain(tmp_path) as house:
        await house.batcher.stop()
        assert await asyncio.to_thread(plain_models, f"unix:{tmp_path}/batcher.sock", 60.0) == []


def test_the_live_screen_has_them() -> None:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(screen(None, Look(0.0, Snapshot("g", "SERVING", "b", StatusResponse(), [BROKEN]))))
    assert "z                     unavailable  backend: is [none]" in captured.get()
