"""Which slot is at which step: decides whether a tick may run, and moves its jobs when it has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from steploom_engine_worker.commands import Admit, Tick
from steploom_engine_worker.engine import Stage


class Phase(Enum):
    """How far a slot's job is."""

    ADMITTED = "admitted"
    ENCODED = "encoded"  # and `step` of its steps are done
    DECODED = "decoded"
    BROKEN = "broken"  # its admission failed: every tick that names it fails


class IllegalMove(ValueError):
    """A command that does not fit the state of a slot; nothing has changed."""


class Verdict(Enum):
    """What to do with a tick."""

    RUN = "run"
    SKIP = "skip"
    FAIL = "fail"


@dataclass
class Place:
    """A slot's job and how far it is."""

    admit: Admit
    phase: Phase = Phase.ADMITTED
    step: int = 0  # the next one, from 0
    error: str = ""  # why it is broken

    def __str__(self) -> str:
        return f"{self.phase.value}, {self.step} of {self.admit.steps} steps done"

    def is_at(self, stage: Stage, step: int) -> bool:
        """Whether this stage, and for denoise this step, comes next."""
        if stage is Stage.ENCODE:
            return self.phase is Phase.ADMITTED
        if self.phase is not Phase.ENCODED:
            return False
        if stage is Stage.DENOISE:
            return self.step == step < self.admit.steps
        return self.step == self.admit.steps

    def advance(self, stage: Stage) -> None:
        """Moves past `stage`."""
        if stage is Stage.DENOISE:
            self.step += 1
        else:
            self.phase = Phase.ENCODED if stage is Stage.ENCODE else Phase.DECODED


class Ledger:
    """The jobs in the slots of one engine."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._places: dict[int, Place] = {}

    def __repr__(self) -> str:
        return f"Ledger({self.statistics()})"

    def statistics(self) -> dict[str, int]:
        """Slots in each phase, and free ones."""
        phases = Counter(place.phase.value for place in list(self._places.values()))
        return {"free": self._num_slots - self.num_used, **phases}

    @property
    def num_used(self) -> int:
        """How many slots hold a job."""
        return len(self._places)

    @property
    def used(self) -> list[int]:
        """Slots that hold a job."""
        return sorted(self._places)

    def __getitem__(self, slot: int) -> Place:
        return self._places[slot]

    def admit(self, admit: Admit) -> None:
        """Puts a job into a free slot.

        Raises:
            IllegalMove: there is no such slot, or it holds a job.
        """
        if not 0 <= admit.slot < self._num_slots:
            raise IllegalMove(f"there is no slot {admit.slot}, only 0 to {self._num_slots - 1}")
        if admit.slot in self._places:
            raise IllegalMove(f"slot {admit.slot} holds job {self._places[admit.slot].admit.job_id!r}")
        self._places[admit.slot] = Place(admit)

    def break_slot(self, slot: int, error: str) -> None:
        """Makes every tick that names the slot's job fail."""
        self._places[slot].phase = Phase.BROKEN
        self._places[slot].error = error

    def release(self, slot: int) -> None:
        """Frees a slot.

        Raises:
            IllegalMove: it is free.
        """
        if self._places.pop(slot, None) is None:
            raise IllegalMove(f"slot {slot} is free")

    def judge(self, tick: Tick) -> tuple[Verdict, str]:
        """Whether a tick may run, and if not, why."""
        problem = _malformed(tick)
        if problem:
            return Verdict.FAIL, problem
        places = [self._places.get(slot) for slot in tick.slots]
        broken = [place.error for place in places if place is not None and place.phase is Phase.BROKEN]
        if broken:
            return Verdict.FAIL, "; ".join(broken)
        steps = tick.steps or (0,) * len(tick.slots)
        for slot, place, step in zip(tick.slots, places, steps, strict=True):
            if place is None or not place.is_at(tick.stage, step):
                return Verdict.SKIP, f"slot {slot} is not at {tick.stage.name.lower()} {step} but {place or 'free'}"
        return Verdict.RUN, ""

    def commit(self, tick: Tick) -> None:
        """Moves the jobs of a tick that has run."""
        for slot in tick.slots:
            self._places[slot].advance(tick.stage)


def _malformed(tick: Tick) -> str:
    if not tick.slots:
        return "the tick names no slot"
    if len(set(tick.slots)) != len(tick.slots):
        return f"the tick names a slot twice: {list(tick.slots)}"
    wanted = len(tick.slots) if tick.stage is Stage.DENOISE else 0
    if len(tick.steps) != wanted:
        return f"the tick has {len(tick.steps)} steps for {len(tick.slots)} slots"
    return ""
