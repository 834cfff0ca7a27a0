"""When a process counts as hung, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from steploom import attendance
from steploom.attendance import Silence, attend
from steploom.health import Answer
from steploom_batcher import virtual_time

SILENCE = Silence(start_s=600.0, hang_s=60.0)
SERVING, OTHER, NONE = Answer.SERVING, Answer.OTHER, Answer.NONE


class Asked:
    """A process that answers as is said for the time; no answer takes as long as is waited for one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, says: Callable[[float], Answer]) -> None:
        self.times = 0
        self.served_at: list[float] = []
        self.given_up_at = 0.0
        self._says = says
        monkeypatch.setattr(attendance, "channel_to", nullcontext_of)
        monkeypatch.setattr(attendance, "ask", self._ask)

    def attend(self, silence: Silence = SILENCE, for_s: float = 5000.0) -> bool:
        """Whether the process is given up."""

        async def scenario() -> bool:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(for_s):
                    await attend("unix:/nowhere", silence, lambda: self.served_at.append(loop.time()))
            except TimeoutError:
                return False
            self.given_up_at = loop.time()
            return True

        return virtual_time.run(scenario())

    async def _ask(self, channel: object, timeout_s: float) -> Answer:
        self.times += 1
        answer = self._says(asyncio.get_running_loop().time())
        if answer is NONE:
            await asyncio.sleep(timeout_s)
        return answer


def nullcontext_of(address: str) -> nullcontext[str]:
    return nullcontext(address)


def test_one_that_answers_is_well_whatever_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    warms_up = Asked(monkeypatch, lambda now: OTHER)
    assert not warms_up.attend()
    assert not warms_up.served_at
    serves = Asked(monkeypatch, lambda now: SERVING if now < 1000 else OTHER)
    assert not serves.attend()
    assert len(serves.served_at) == 1
    assert serves.times < 1001  # it is not asked all the time


def test_one_that_says_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, lambda now: SERVING if now < 100 else NONE)
    assert asked.attend()
    assert 160 < asked.given_up_at < 180


def test_a_pause_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, lambda now: NONE if now % 100 > 50 else SERVING)  # for 50 s of every 100
    assert not asked.attend()


def test_before_its_first_words_a_process_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Asked(monkeypatch, lambda now: NONE if now < 590 else SERVING)
    assert not slow.attend()
    assert slow.served_at
    dumb = Asked(monkeypatch, lambda now: NONE)
    assert dumb.attend()
    assert 600 < dumb.given_up_at < 620


def test_without_a_bound_nobody_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, lambda now: SERVING if now < 100 else NONE)
    assert not asked.attend(Silence(start_s=0.0, hang_s=0.0))


def test_time_in_which_we_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions without an answer, and ten minutes of ours gone with the second."""
    unanswered: list[float] = []

    def says(now: float) -> Answer:
        if now < 100 or len(unanswered) == 2:
            return SERVING
        unanswered.append(now)
        if len(unanswered) == 2:
            asyncio.get_running_loop()._virtual_now += 600.0  # type: ignore[attr-defined]
        return NONE

    assert not Asked(monkeypatch, says).attend()
    assert len(unanswered) == 2
