"""Asks a process for its health for as long as it lives: when it serves first, and when it says nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from steploom.health import Answer, ask, channel_to
from steploom_common.patience import Patience

_POLL_S = 0.1  # until it serves
_LOOK_S = 5.0  # from then on at most, for the wait before each question and for its answer
_LOOKS = 6  # within the time for which a process may say nothing


@dataclass(frozen=True)
class Silence:
    """For how long a process may say nothing; whatever it says is a sign of life. Seconds; 0: for ever."""

    start_s: float  # before its first words: imports take long on a busy machine
    hang_s: float  # afterwards


async def attend(address: str, silence: Silence, on_serving: Callable[[], None]) -> float:
    """Returns when the process has said nothing for too long, with the seconds; calls `on_serving` once.

    A process that says that it does not serve is well: it warms up, or what it needs is away. Time in which we
    ourselves stood still does not count.
    """
    look_s = min(_LOOK_S, silence.hang_s / 2 / _LOOKS) if silence.hang_s else _LOOK_S
    patience = Patience(2 * look_s)
    has_answered = is_serving = False
    async with channel_to(address) as channel:
        while True:
            answer = await ask(channel, look_s)
            if answer is Answer.NONE:
                limit_s = silence.hang_s if has_answered else silence.start_s
                if limit_s and patience.look(asyncio.get_running_loop().time()) > limit_s:
                    return patience.waited_s
            else:
                patience.heard()
                has_answered = True
            if answer is Answer.SERVING and not is_serving:
                is_serving = True
                on_serving()
            await asyncio.sleep(look_s if is_serving else _POLL_S)
