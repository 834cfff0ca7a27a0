"""The life of one supervised service, as a pure state machine: no clock, no process, no asyncio.

Time comes in as `now` (seconds, monotonic); what to do next goes out as a return value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from steploom.backoff import Backoff

CONFIGURATION_EXIT = 2  # what a service exits with when its configuration or its command line is wrong


class State(Enum):
    """Where a service stands; the values are shown to people."""

    IDLE = "not started"
    STARTING = "starting"
    UP = "up"
    WAITING = "waiting to restart"
    STOPPING = "stopping"
    ENDED = "ended"


MOVES = {
    State.IDLE: {State.STARTING, State.ENDED},
    State.STARTING: {State.UP, State.WAITING, State.STOPPING, State.ENDED},
    State.UP: {State.WAITING, State.STOPPING},
    State.WAITING: {State.STARTING, State.ENDED},
    State.STOPPING: {State.ENDED},
    State.ENDED: set(),
}


@dataclass(frozen=True)
class Restart:
    """Start the service again after a pause."""

    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """The service cannot come up; the whole system ends."""

    exit_code: int
    reason: str


@dataclass(frozen=True)
class Stopped:
    """The service ended because it was asked to."""


Verdict = Restart | GiveUp | Stopped


class Lifecycle:
    """One service's state and crash count.

    Args:
        backoff: the pauses between restarts.
        start_tries: how often a service that has never been up may crash.
        random: a number from 0 to 1, for the jitter.
    """

    def __init__(self, backoff: Backoff, start_tries: int, random: Callable[[], float]) -> None:
        self.state = State.IDLE
        self.restarts = 0
        self._backoff = backoff
        self._start_tries = start_tries
        self._random = random
        self._crashes = 0  # in a row
        self._up_since: float | None = None
        self._has_been_up = False

    def __repr__(self) -> str:
        return f"Lifecycle({self.state.value}, restarts={self.restarts}, crashes={self._crashes})"

    def started(self) -> None:
        """The process runs; it is not ready yet."""
        self.restarts += self.state is State.WAITING
        self._move(State.STARTING)

    def ready(self, now: float) -> None:
        """The service answers its health check."""
        self._move(State.UP)
        self._up_since = now
        self._has_been_up = True

    def replaced(self, now: float) -> None:
        """Another process has taken the place of the one that ran, and is ready."""
        if self.state is not State.UP:
            self._move(State.UP)
        self._up_since = now

    def recycled(self) -> None:
        """The process is gone as it was to, so that another one can start in its place: no crash."""
        self._up_since = None
        self._move(State.WAITING)

    def stop(self) -> None:
        """The service is asked to end, maybe not for the first time."""
        if self.state in (State.STOPPING, State.ENDED):
            return
        self._move(State.STOPPING if self.state in (State.STARTING, State.UP) else State.ENDED)

    def exited(self, code: int, now: float) -> Verdict:
        """The process is gone; `code` is negative for a signal, as in `subprocess`."""
        if self.state is State.STOPPING:
            self._move(State.ENDED)
            return Stopped()
        if self._up_since is not None and now - self._up_since >= self._backoff.stable_s:
            self._crashes = 0
        self._up_since = None
        self._crashes += 1
        return self._judge(code)

    def _judge(self, code: int) -> Verdict:
        if not self._has_been_up and code == CONFIGURATION_EXIT:
            self._move(State.ENDED)
            return GiveUp(CONFIGURATION_EXIT, "its configuration is wrong")
        if not self._has_been_up and self._crashes >= self._start_tries:
            self._move(State.ENDED)
            return GiveUp(1, f"it failed {self._crashes} times without coming up, last with {describe_exit(code)}")
        self._move(State.WAITING)
        return Restart(self._backoff.delay(self._crashes, self._random))

    def _move(self, state: State) -> None:
        if state not in MOVES[self.state]:
            raise ValueError(f"a service that is {self.state.value} cannot become {state.value}")
        self.state = state


def describe_exit(code: int) -> str:
    """'exit code 1' or 'signal 9'."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
