"""What the batcher asks of a worker and what it answers: the messages of steploom.worker.v1 as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from steploom_common.arena import RegionRef
from steploom_engine_worker.engine import AdapterVersion, Costs, MemoryUse, ModelInfo, Stage
from steploom_engine_worker.schedule import Sampler


@dataclass(frozen=True)
class Picture:
    """uint8 RGB pixels, in the message or in a shared-memory arena."""

    height: int
    width: int
    data: bytes = field(default=b"", repr=False)  # empty: in the region
    region: RegionRef | None = None


@dataclass(frozen=True)
class Admit:
    """Puts a job into a free slot."""

    job_id: str
    slot: int
    instruction: str
    picture: Picture
    output: RegionRef | None  # None: the picture returns in the report
    steps: int
    guidance_scale: float
    image_guidance_scale: float
    seed: int
    sampler: Sampler | None = None  # None: the model's default
    preview_every: int = 0  # steps; 0: none
    adapter: str = ""
    adapter_digest: str = ""  # of the version; empty: the one that counts by now
    traceparent: str = ""  # of the span that the job belongs to, for the log


@dataclass(frozen=True)
class Tick:
    """One forward pass of one stage."""

    tick_id: int
    stage: Stage
    slots: Sequence[int]
    steps: Sequence[int] = ()  # denoise: of each slot, from 0; empty otherwise


@dataclass(frozen=True)
class Release:
    """Frees a slot."""

    slot: int


@dataclass(frozen=True)
class LoadAdapter:
    """Reads an adapter of the model directory, and takes it between two ticks."""

    change_id: int
    name: str
    at_once: bool = False  # whatever comes after this command waits for it


@dataclass(frozen=True)
class DropAdapter:
    """Forgets a version of an adapter, with which no job is in a slot."""

    change_id: int
    name: str
    digest: str


Command = Admit | Tick | Release | LoadAdapter | DropAdapter


class TickStatus(IntEnum):
    """The values are those of steploom.worker.v1.TickStatus."""

    OK = 1  # its jobs have moved on; those in TickDone.failures go no further
    FAILED = 2  # it raised: no job of the tick has moved
    SKIPPED = 3  # a slot was not at the named step: nothing was run


@dataclass(frozen=True)
class SlotPicture:
    """A finished picture or a preview."""

    slot: int
    picture: Picture


@dataclass(frozen=True)
class TickDone:
    """The answer to a tick."""

    tick_id: int
    status: TickStatus
    seconds: float = 0.0  # of device time
    start_unix_s: float = 0.0  # seconds since the epoch
    error: str = ""
    pictures: Sequence[SlotPicture] = ()
    failures: Mapping[int, str] = field(default_factory=dict)  # by slot; of an OK tick: why its job cannot go on
    idle_s: float = 0.0  # for which the device had nothing to do before it


@dataclass(frozen=True)
class Ready:
    """The worker can be driven."""

    worker_id: str
    engine: str
    device: str
    slots: int
    model: ModelInfo
    costs: Costs
    progress: tuple[int, int] = (0, 0)  # parts that are prepared, and that there are; see `engine.Engine.progress`
    memory: MemoryUse = field(default_factory=MemoryUse)


@dataclass(frozen=True)
class Prepared:
    """The engine has become faster, between ticks."""

    costs: Costs  # seconds of the buckets that cost less from now on
    progress: tuple[int, int]
    memory: MemoryUse = field(default_factory=MemoryUse)


@dataclass(frozen=True)
class Leaving:
    """The worker takes no more jobs; it ends when the batcher has hung up."""


@dataclass(frozen=True)
class Preparing:
    """A preparation keeps ticks waiting: they are not lost."""


@dataclass(frozen=True)
class AdapterChanged:
    """The answer to a LoadAdapter or DropAdapter."""

    change_id: int
    versions: Sequence[AdapterVersion]  # that there are now
    memory: MemoryUse
    digest: str = ""  # of the version that was loaded
    error: str = ""  # why it has not been done; empty: it has
    is_missing: bool = False  # of an error: there is no adapter of that name


News = Prepared | Leaving | Preparing | AdapterChanged  # what a batcher is told beside the ends of ticks
