"""The scheduler's vocabulary: what goes in (jobs, workers, outcomes) and what comes out (ticks, effects).

Times are seconds of one monotonic clock that the caller reads; the scheduler never does.

Most of it is frozen dataclasses. What is made or compared several times a tick is a named tuple, which takes a third of
the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple


class Stage(IntEnum):
    """Stages of a job, in order. The values are those of steploom.worker.v1.Stage."""

    ENCODE = 1
    DENOISE = 2
    DECODE = 3


class Status(IntEnum):
    """How a tick ended. The values are those of steploom.worker.v1.TickStatus."""

    OK = 1  # its jobs have moved on; those in Outcome.failures go no further
    FAILED = 2  # it raised; no job of it has moved
    SKIPPED = 3  # an earlier tick of one of its jobs failed; nothing was run


class Cause(Enum):
    """Why a job was refused or has failed; the values are the metric's labels."""

    QUEUE_FULL = "queue_full"
    CALLER_QUEUE_FULL = "caller_queue_full"  # the tier's has room, but not for this caller
    NO_SLOT = "no_slot"  # of the total bound on admitted jobs
    DEADLINE = "deadline"
    NO_WORKER = "no_worker"
    DRAINING = "draining"
    POISON = "poison"  # the model fails on this job alone


class Key(NamedTuple):
    """What must be equal for two rows to share a forward."""

    engine: str  # name and digest of the model
    latent_shape: tuple[int, ...]  # channels, height, width
    conditioning: str = "text+image"  # which conditioning inputs the rows carry


@dataclass(frozen=True)
class JobSpec:
    """One image request, as the scheduler sees it."""

    job_id: str
    key: Key
    tier: str
    steps: int  # denoising steps, at least 1
    rows: int  # UNet rows of one step, at least 1
    deadline: float  # when the answer is due
    caller: str = ""  # whose it is; empty: callers are not told apart
    traceparent: str = ""  # the span that it belongs to, as W3C has it, for the log alone; empty: none


StageCosts = Mapping[Stage, Mapping[int, float]]  # seconds of each bucket that the worker can run


@dataclass(frozen=True)
class WorkerProfile:
    """What a worker announces when it comes up."""

    worker_id: str
    key: Key  # what its engine can run
    num_slots: int
    costs: StageCosts  # measured at warm-up
    home: str = ""  # where others take its place: two are there while one leaves; empty: its id
    lineage: str = ""  # of its key: jobs that have not begun may run on another key of it; empty: on their own alone

    @property
    def place(self) -> str:
        """By which it is expected back."""
        return self.home or self.worker_id


class Entry(NamedTuple):
    """A job's part in a tick."""

    job_id: str
    slot: int
    step: int  # denoise: from 0; else 0


class Tick(NamedTuple):
    """One forward pass of one stage on one worker."""

    tick_id: int
    worker_id: str
    stage: Stage
    key: Key
    entries: tuple[Entry, ...]
    rows: int  # of the jobs
    bucket: int  # rows computed, padding included
    predicted_s: float  # by the cost model


@dataclass(frozen=True)
class Outcome:
    """A worker's answer to a tick."""

    status: Status
    seconds: float = 0.0  # of device time
    error: str = ""
    failures: Mapping[int, str] = field(default_factory=dict)  # by slot; of an OK tick: why its job cannot go on
    idle_s: float = 0.0  # for which the device had nothing to do before it


@dataclass(frozen=True)
class Admitted:
    """The job is in the queue."""

    predicted_s: float  # seconds from now to its predicted finish


@dataclass(frozen=True)
class Refused:
    """The job was not taken."""

    cause: Cause
    message: str
    retry_after_s: float = 0.0
    predicted_s: float | None = None  # seconds from now to the predicted finish; None where that is not the cause


@dataclass(frozen=True)
class Started:
    """The job's encode tick is done for the first time."""

    job_id: str


class Stepped(NamedTuple):
    """A denoising step is done."""

    job_id: str
    step: int  # 1 to steps
    steps: int


@dataclass(frozen=True)
class Finished:
    """The job's decode tick is done."""

    job_id: str
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """The job ends without a picture."""

    job_id: str
    cause: Cause
    message: str


@dataclass(frozen=True)
class Requeued:
    """The job lost its worker and starts again from its seed."""

    job_id: str


@dataclass(frozen=True)
class Release:
    """The worker may forget a slot: no later tick names it before a new admission."""

    worker_id: str
    slot: int
    job_id: str


Effect = Started | Stepped | Finished | Failed | Requeued | Release


@dataclass(frozen=True)
class Usage:
    """Where a finished job's time went; seconds."""

    queue_s: float  # from submit to the dispatch of its first tick
    encode_s: float  # device time of its encode tick
    denoise_s: float  # from the dispatch of its first denoise tick to the end of its last
    decode_s: float  # device time of its decode tick
    ticks: int
    mean_rows_per_tick: float  # of all jobs in its denoise ticks


@dataclass(frozen=True)
class TierStats:
    """One tier now."""

    queued: int
    running: int
    max_queued: int


@dataclass(frozen=True)
class WorkerStats:
    """One worker now."""

    num_slots: int
    slots_used: int
    ticks_in_flight: int
    costs: StageCosts = field(default_factory=dict)  # as predicted now: measured at warm-up, corrected by ticks since


@dataclass(frozen=True)
class SchedulerStats:
    """Counters since start, and what is queued and running now."""

    tiers: Mapping[str, TierStats]
    workers: Mapping[str, WorkerStats]
    submitted: int = 0
    admitted: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # by cause
    ticks: Mapping[str, int] = field(default_factory=dict)  # by stage
    denoise_rows: int = 0
    padding_rows: int = 0

    @property
    def mean_rows_per_tick(self) -> float:
        """Of the denoise ticks."""
        return self.denoise_rows / max(1, self.ticks.get("denoise", 0))
