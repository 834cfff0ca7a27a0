"""Traces of arrivals: what asks for a picture, and when. The same trace drives the simulator and a live service."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from steploom_common.adapter import NONE


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace."""

    at: float  # seconds from the start of the trace: when it must be sent, however the service does
    tier: str
    steps: int  # denoising steps
    rows: int  # UNet rows of a step
    deadline_s: float  # from arrival to answer
    cancel_after_s: float | None = None  # from arrival; None: the caller waits
    adapter: str = NONE  # by name, or empty: the tier's; what it costs is in `rows`
    side: int = 128  # pixels of the picture that is sent, which is square

    @property
    def label(self) -> str:
        """The class of requests that it is reported in."""
        return f"{self.tier} {self.steps} steps"


@dataclass(frozen=True)
class RequestClass:
    """Requests of one kind in a mix."""

    tier: str
    steps: int
    weight: int = 1  # share of the mix: so many of each deal
    rows: int = 3  # UNet rows of a step
    deadline_s: float = 60.0
    cancel_share: float = 0.0  # of them are cancelled, at a moment drawn evenly up to `cancel_within_s`
    cancel_within_s: float = 1.0
    adapter: str = NONE
    side: int = 128  # pixels of the picture that is sent


FREE_AND_PRO = (RequestClass("free", 3, 9, deadline_s=20.0), RequestClass("pro", 35, 1, deadline_s=60.0))
"""Nine requests of few steps for each one of many; the model itself draws all of them, three rows a step."""

STUDENT_AND_PRO = (replace(FREE_AND_PRO[0], rows=1, adapter="few-step"), FREE_AND_PRO[1])
"""The same, with the few steps drawn by a distilled adapter of that name, one row a step."""


MIXES = {"plain": FREE_AND_PRO, "student": STUDENT_AND_PRO}
"""By the name that command lines take."""


def patient(kind: RequestClass, deadline_s: float = 600.0) -> Arrival:
    """A request of this kind that waits for long: refused callers come again at once, and cost more than rows."""
    return Arrival(0.0, kind.tier, kind.steps, kind.rows, deadline_s, adapter=kind.adapter, side=kind.side)


def poisson(mix: Sequence[RequestClass], rate: float, duration_s: float, seed: int = 0) -> list[Arrival]:
    """Arrivals of an open-loop Poisson process: nobody waits for an answer before the next request comes.

    Classes come in shuffled deals, each of which holds them in exactly the shares of the mix: a short trace asks for as
    much work as a long one, and what differs between seeds is the order.

    Args:
        mix: classes and their shares.
        rate: requests a second, all classes together.
        duration_s: length of the trace.
        seed: the same one gives the same trace.
    """
    return _trace(mix, rate, duration_s, seed, lambda rng: rng.expovariate(rate))


def bursty(
    mix: Sequence[RequestClass], rate: float, duration_s: float, cv: float = 3.0, seed: int = 0
) -> list[Arrival]:
    """The same with gaps of a gamma distribution: above a `cv` of 1 arrivals come in bursts, below it more evenly.

    Args:
        mix: classes and their shares.
        rate: requests a second in the long run.
        duration_s: length of the trace.
        cv: coefficient of variation of the gaps, their deviation over their mean, above 0; 1: as `poisson`.
        seed: the same one gives the same trace.
    """
    if cv <= 0:
        raise ValueError(f"a coefficient of variation must be above 0, got {cv}")
    spread = cv * cv
    return _trace(mix, rate, duration_s, seed, lambda rng: rng.gammavariate(1.0 / spread, spread / rate))


def steady(mix: Sequence[RequestClass], rate: float, duration_s: float, seed: int = 0) -> list[Arrival]:
    """The same with equal gaps."""
    return _trace(mix, rate, duration_s, seed, lambda _: 1.0 / rate)


def exactly(draw: Callable[[float], Sequence[Arrival]], rate: float, duration_s: float) -> list[Arrival]:
    """A drawn trace stretched so that it holds as many requests as its rate says: chance is in their moments alone.

    Of Poisson arrivals that is the process itself, given its count.

    Args:
        draw: a trace of so many seconds.
        rate: requests a second.
        duration_s: length of the trace.
    """
    count = max(1, round(rate * duration_s))
    drawn_s = 2.0 * duration_s
    while len(drawn := draw(drawn_s)) <= count:
        drawn_s *= 2.0
    stretch = duration_s / drawn[count].at
    return [replace(arrival, at=arrival.at * stretch) for arrival in drawn[:count]]


def _trace(
    mix: Sequence[RequestClass], rate: float, duration_s: float, seed: int, gap: Callable[[random.Random], float]
) -> list[Arrival]:
    if rate <= 0 or not mix:
        raise ValueError(f"a trace needs a rate above 0 and a mix, got {rate} and {len(mix)} classes")
    rng = random.Random(seed)
    deal: list[RequestClass] = []
    trace = []
    at = gap(rng)
    while at < duration_s:
        if not deal:
            deal = [item for item in mix for _ in range(item.weight)]
            rng.shuffle(deal)
        trace.append(_arrival(deal.pop(), at, rng))
        at += gap(rng)
    return trace


def burst(kind: RequestClass, count: int, at: float = 0.0) -> list[Arrival]:
    """`count` equal requests at one moment."""
    return [replace(patient(kind, kind.deadline_s), at=at)] * count


def _arrival(kind: RequestClass, at: float, rng: random.Random) -> Arrival:
    is_cancelled = rng.random() < kind.cancel_share
    cancel_after_s = rng.uniform(0.0, kind.cancel_within_s) if is_cancelled else None
    return Arrival(at, kind.tier, kind.steps, kind.rows, kind.deadline_s, cancel_after_s, kind.adapter, kind.side)
