"""What passes between driver, workers and callers as plain data: payloads, commands, reports and a job's events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steploom_batcher.types import Outcome, StageCosts, Tick, Usage
from steploom_common.adapter import AdapterTraits
from steploom_common.arena import RegionRef


@dataclass(frozen=True)
class AdapterVersion:
    """An adapter as its files were when a worker read them."""

    name: str
    digest: str  # equal digests draw equal pictures
    traits: AdapterTraits


@dataclass(frozen=True)
class Picture:
    """uint8 RGB, height x width x 3: the bytes, or where they lie."""

    height: int  # pixels
    width: int  # pixels
    place: bytes | RegionRef


@dataclass(frozen=True)
class Payload:
    """What the worker needs of a job and the scheduler does not."""

    instruction: str
    picture: Picture
    output: RegionRef | None  # None: the picture returns in the report
    steps: int
    guidance_scale: float
    image_guidance_scale: float
    seed: int  # uint64
    sampler: int  # steploom.v1.Sampler
    preview_every: int = 0  # steps; 0: none
    adapter: str = ""  # empty: none
    adapter_digest: str = ""  # of its version; empty: any


@dataclass(frozen=True)
class Admit:
    """Puts a job into a free slot; goes out just before its first encode tick there."""

    job_id: str
    slot: int
    payload: Payload
    traceparent: str = ""  # for the worker's log


@dataclass(frozen=True)
class Free:
    """The worker may forget a slot; comes after the last tick that names it."""

    slot: int


@dataclass(frozen=True)
class LoadAdapter:
    """Lets the worker read an adapter, and take it between two ticks."""

    change_id: int
    name: str
    at_once: bool = False  # whatever comes after this command waits for it


@dataclass(frozen=True)
class DropAdapter:
    """Lets the worker forget a version; comes after the last job that has it."""

    change_id: int
    name: str
    digest: str


Command = Admit | Tick | Free | LoadAdapter | DropAdapter


@dataclass(frozen=True)
class TickReport:
    """A worker's answer to a tick."""

    tick_id: int
    outcome: Outcome
    pictures: tuple[tuple[int, Picture], ...] = ()  # by slot: results of a decode, or previews
    start_unix_s: float = 0.0  # seconds since the epoch, on the worker's clock


@dataclass(frozen=True)
class Model:
    """The model that a worker serves."""

    name: str
    height: int  # pixels that encode takes and decode gives
    width: int
    max_steps: int
    guidance_scale: float  # default
    image_guidance_scale: float  # default
    sampler: int  # default; steploom.v1.Sampler
    adapters: Mapping[str, AdapterTraits]  # by name; the first that fits a request is the automatic choice
    latent_shape: tuple[int, ...]  # channels, height, width
    digest: str  # of the weights without adapters
    versions: tuple[AdapterVersion, ...] = ()  # of adapters; of one name from the oldest to the one that counts

    @property
    def held(self) -> tuple[AdapterVersion, ...]:
        """`versions`, also where nothing but `adapters` is known."""
        return self.versions or tuple(AdapterVersion(name, "", traits) for name, traits in self.adapters.items())


@dataclass(frozen=True)
class Preparation:
    """How far a worker is with what makes its ticks fastest."""

    done: int = 0  # parts
    total: int = 0  # 0: it prepares nothing while it serves


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker's device."""

    total: int = 0  # 0: not known
    free: int = 0  # that nobody has taken
    slots: int = 0  # for the state of all jobs
    weights: int = 0  # of all networks


@dataclass(frozen=True)
class Prepared:
    """A worker's ticks cost less from now on."""

    costs: StageCosts  # of the buckets that do
    progress: Preparation
    memory: Memory = Memory()


@dataclass(frozen=True)
class Leaving:
    """A worker takes no more jobs, and ends when it is hung up on."""


@dataclass(frozen=True)
class Preparing:
    """A preparation keeps a worker's ticks waiting: they are not lost."""


@dataclass(frozen=True)
class AdapterChanged:
    """A worker's answer to a LoadAdapter or DropAdapter."""

    change_id: int
    versions: tuple[AdapterVersion, ...]  # that it has now
    memory: Memory = Memory()
    digest: str = ""  # of the version that was loaded
    error: str = ""  # why it has not been done; empty: it has
    is_missing: bool = False  # of an error: there is no adapter of that name


Report = TickReport | Prepared | Leaving | Preparing | AdapterChanged


@dataclass(frozen=True)
class Ready:
    """What a worker says first."""

    worker_id: str  # its own name, for the log
    engine: str
    device: str
    num_slots: int
    model: Model
    costs: StageCosts
    progress: Preparation = Preparation()
    memory: Memory = Memory()


@dataclass(frozen=True)
class Begun:
    """Event: the job's encode tick is done."""


@dataclass(frozen=True)
class Progress:
    """Event: a denoising step is done; steps that nobody read in time are left out."""

    step: int  # 1 to steps
    steps: int
    preview: Picture | None


@dataclass(frozen=True)
class Done:
    """Event, the last one: the picture."""

    picture: Picture
    usage: Usage


Event = Begun | Progress | Done
