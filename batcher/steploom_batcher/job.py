"""A job's life inside the scheduler: its states, how far it is planned, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from steploom_batcher.cost_model import CostModel
from steploom_batcher.fairness import Flow
from steploom_batcher.types import Entry, JobSpec, Stage, Tick, Usage


class State(Enum):
    """Where a job is."""

    QUEUED = auto()  # waits for a slot
    RUNNING = auto()  # has a slot; its ticks are planned
    LEAVING = auto()  # ended, but ticks that name its slot are still in flight
    ENDED = auto()


_MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.ENDED}),
    State.RUNNING: frozenset({State.QUEUED, State.LEAVING, State.ENDED}),
    State.LEAVING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


class IllegalMoveError(RuntimeError):
    """A move that the table does not hold; nothing has changed."""


@dataclass(frozen=True)
class JobCosts:
    """A job's cost by stage, fixed when it is admitted so that sums over jobs stay consistent."""

    latency_s: dict[Stage, float]  # of a tick with this job alone
    work_s: dict[Stage, float]  # what its rows add to a busy device

    @classmethod
    def of(cls, spec: JobSpec, model: CostModel) -> JobCosts:
        """From a worker's cost table."""
        known = model.derived.get(spec.rows)
        if known is None:
            rows = {Stage.ENCODE: 1, Stage.DENOISE: spec.rows, Stage.DECODE: 1}
            known = model.derived[spec.rows] = cls(
                {stage: model.seconds(stage, rows[stage]) for stage in Stage},
                {stage: rows[stage] * model.seconds_per_row(stage) for stage in Stage},
            )
        assert isinstance(known, cls)
        return known

    def total(self, table: dict[Stage, float], steps: int) -> float:
        """A whole job of `steps` by one of the two tables."""
        return table[Stage.ENCODE] + steps * table[Stage.DENOISE] + table[Stage.DECODE]


@dataclass(slots=True, eq=False)
class Job:
    """One job. `stage` and `step` name what is planned next; ticks in flight are already behind them."""

    spec: JobSpec
    costs: JobCosts
    submitted: float
    due: float  # when its tier owes the answer, or its own deadline if that is sooner: what it is ordered by
    sequence: int  # order of admission
    flow: Flow  # what it shares the device as

    state: State = State.QUEUED
    worker_id: str = ""  # empty while queued
    slot: int = -1
    stage: Stage | None = Stage.ENCODE  # None: all is planned
    step: int = 0  # denoise: next step to plan, from 0
    in_flight: int = 0  # ticks that name it
    has_begun: bool = False  # its worker knows it: a tick for it has been planned there
    num_postponed: int = 0  # ticks that went before its next one, though it was more urgent
    num_crashes: int = 0  # workers that died with this job in a tick
    work_left_s: float = 0.0  # counted in the backlog

    first_planned: float | None = None
    denoise_planned: float | None = None
    denoise_s: float = 0.0
    encode_s: float = 0.0
    num_ticks: int = 0
    num_denoise_ticks: int = 0
    denoise_rows: int = field(default=0)  # of all jobs, in this job's denoise ticks

    def __post_init__(self) -> None:
        self.work_left_s = self.costs.total(self.costs.work_s, self.spec.steps)

    def move(self, state: State) -> None:
        """Changes the state.

        Raises:
            IllegalMoveError: the table has no such move.
        """
        if state not in _MOVES[self.state]:
            raise IllegalMoveError(f"job {self.spec.job_id} cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def is_ready(self) -> bool:
        """A tick can take it now."""
        return self.state is State.RUNNING and self.stage is not None

    @property
    def rows(self) -> int:
        """Rows that its next tick computes for it."""
        return self.spec.rows if self.stage is Stage.DENOISE else 1

    @property
    def steps_left(self) -> int:
        """Denoise ticks still to plan of a job that is at them; else 0."""
        return self.spec.steps - self.step if self.stage is Stage.DENOISE else 0

    @property
    def ticks_left(self) -> int:
        """Ticks still to plan, the decode included."""
        match self.stage:
            case Stage.ENCODE:
                return self.spec.steps + 2
            case Stage.DENOISE:
                return self.spec.steps - self.step + 1
            case Stage.DECODE:
                return 1
            case _:
                return 0

    @property
    def progress(self) -> str:
        """How far it is planned, in words."""
        if self.state is State.QUEUED:
            return "no slot yet"
        if self.stage is Stage.DENOISE:
            return f"step {self.step} of {self.spec.steps}"
        return f"stage {self.stage.name.lower()}" if self.stage else "its last tick"

    @property
    def remaining_s(self) -> float:
        """Predicted time to its end if it had the device to itself from now on."""
        latency = self.costs.latency_s
        match self.stage:
            case Stage.ENCODE:
                return self.costs.total(latency, self.spec.steps)
            case Stage.DENOISE:
                return (self.spec.steps - self.step) * latency[Stage.DENOISE] + latency[Stage.DECODE]
            case Stage.DECODE:
                return latency[Stage.DECODE]
            case _:
                return 0.0

    @property
    def latest_start(self) -> float:
        """When its next tick must begin at the latest: deadline minus remaining time. Slack is this minus now."""
        return self.spec.deadline - self.remaining_s

    def plan(self, now: float) -> Entry:
        """Enters the tick that is being built; moves on to what comes after it."""
        assert self.stage is not None
        entry = Entry(self.spec.job_id, self.slot, self.step)
        self.in_flight += 1
        self.has_begun = True
        self.num_ticks += 1
        self.num_postponed = 0
        if self.first_planned is None:
            self.first_planned = now
        if self.stage is Stage.ENCODE:
            self.stage = Stage.DENOISE
        elif self.stage is Stage.DENOISE:
            if self.denoise_planned is None:
                self.denoise_planned = now
            self.step += 1
            if self.step == self.spec.steps:
                self.stage, self.step = Stage.DECODE, 0
        else:
            self.stage = None
        return entry

    def roll_back(self, stage: Stage, step: int) -> None:
        """Plans again from (stage, step), unless it is already to plan from before that."""
        if self.stage is None or (stage, step) < (self.stage, self.step):
            self.stage, self.step = stage, step

    def restart(self) -> None:
        """Back to the beginning: it has no worker any more. The seed makes the second run equal to the first."""
        self.worker_id, self.slot = "", -1
        self.stage, self.step = Stage.ENCODE, 0
        self.in_flight, self.has_begun = 0, False
        self.denoise_planned = None

    def record(self, tick: Tick, seconds: float, now: float) -> None:
        """Books a tick that is done."""
        if tick.stage is Stage.ENCODE:
            self.encode_s = seconds
        elif tick.stage is Stage.DENOISE:
            self.num_denoise_ticks += 1
            self.denoise_rows += tick.rows
            self.denoise_s = now - (self.denoise_planned if self.denoise_planned is not None else now)

    def usage(self, decode_s: float) -> Usage:
        """The account of a finished job."""
        assert self.first_planned is not None
        return Usage(
            queue_s=self.first_planned - self.submitted,
            encode_s=self.encode_s,
            denoise_s=self.denoise_s,
            decode_s=decode_s,
            ticks=self.num_ticks,
            mean_rows_per_tick=self.denoise_rows / max(1, self.num_denoise_ticks),
        )
