"""The line that moves while a load runs."""

from __future__ import annotations

import asyncio
import io

from rich.console import Console

from steploom.load_display import Display
from steploom_loadtest.live import Load
from steploom_loadtest.report import OK, Record
from steploom_loadtest.traces import Arrival

NOW, LATER = (Arrival(at, "free", 3, 3, 1.0) for at in (0.0, 3000.0))
LOAD = Load([NOW, NOW, NOW, LATER], rate=2.0, seconds=3600.0)


def shown(is_terminal: bool, is_quiet: bool = False) -> str:
    """Of a load with three requests that were sent, two of which have ended, one of them with a picture too late."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=140, color_system=None)

    async def follow() -> None:
        with Display(console, is_quiet) as display:
            display.hear(Record(NOW, OK, 0.1))  # of no load yet: nothing to show
            with display.following(LOAD):
                display.begin()
                display.hear(Record(NOW, OK, 2.0))
                display.hear(Record(NOW, "UNAVAILABLE", 0.1))
                await asyncio.sleep(0)  # a look
            display.say("a line")

    asyncio.run(follow())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_line_counts_what_was_sent_and_what_became_of_it() -> None:
    said = shown(is_terminal=True)
    assert "2.00/s" in said
    assert "sent 3, open 1, pictures 1, in time 0, without 1" in said
    assert "a line" in said


def test_into_a_file_only_lines_that_stay_are_written() -> None:
    assert shown(is_terminal=False) == "a line\n"


def test_a_quiet_load_says_nothing() -> None:
    assert shown(is_terminal=True, is_quiet=True) == ""
