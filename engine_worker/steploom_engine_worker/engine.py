"""The engine contract: what any device must offer, whatever runs on it.

An engine is told what to do on one thread, and does it in that order. It keeps no order of its own: which slot is at
which step is the `Ledger`'s to know. A stage that is started has its place in that order; when it is done is a question
of its own, so that a device need not stand still while its answer is on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.schedule import Sampler

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB
HostMemory = NDArray[np.uint8]  # [bytes]


class Stage(IntEnum):
    """Stages of a job, in order. The values are those of steploom.worker.v1.Stage."""

    ENCODE = 1
    DENOISE = 2
    DECODE = 3


Costs = Mapping[tuple[Stage, int], float]  # seconds of (stage, bucket)


@dataclass(frozen=True)
class Job:
    """One image request, as an engine sees it."""

    instruction: str
    pixels: Pixels = field(repr=False)  # of the model's size; as they are until its encode tick has been answered
    steps: int
    guidance_scale: float
    image_guidance_scale: float
    seed: int  # uint64
    sampler: Sampler | None = None  # None: the model's default
    adapter: str = ""  # empty: none
    adapter_digest: str = ""  # of the version that it was admitted with; another is taken only where that is gone


@dataclass(frozen=True)
class AdapterVersion:
    """An adapter as its files were when they were read."""

    name: str
    digest: str  # of both files, hex; equal digests draw equal pictures
    traits: AdapterTraits  # the requests that it was trained for


@dataclass(frozen=True)
class ReadAdapter:
    """An adapter that was read, and fits the model; made ready for the engine that read it."""

    version: AdapterVersion
    manifest: Any  # adapter_manifest.AdapterManifest
    number: int = -1  # that it is to have; less than 0: it is there already, and there is nothing to do
    network: Any = field(default=None, repr=False)  # what the engine is to run


@dataclass(frozen=True)
class ModelInfo:
    """What a batcher and a gateway must know of a model."""

    name: str
    height: int  # pixels that encode takes and decode gives
    width: int
    max_steps: int
    default_guidance_scale: float
    default_image_guidance_scale: float
    default_sampler: Sampler
    latent_shape: tuple[int, int, int]  # channels, height, width
    digest: str  # of the weights without adapters; equal digests draw equal pictures
    versions: tuple[AdapterVersion, ...] = ()  # of adapters, those of one name from the oldest to the one that counts

    @property
    def adapters(self) -> Mapping[str, AdapterTraits]:
        """What a job by an adapter's name alone gets."""
        return {item.name: item.traits for item in self.versions}


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a device's memory."""

    total: int = 0  # of the device; 0: not known
    free: int = 0  # that nobody has taken, this process or another
    slots: int = 0  # for the state of all jobs
    weights: int = 0  # of all networks, adapters and merged forms included

    def __str__(self) -> str:
        free = f"{self.free / 1e9:.2f} of {self.total / 1e9:.2f} GB free, " if self.total else ""
        return f"{free}{self.slots / 1e9:.2f} GB of slots, {self.weights / 1e9:.2f} GB of weights"


@dataclass(frozen=True)
class Done:
    """How a stage ended."""

    pictures: Sequence[Pixels] = field(default=(), repr=False)  # of decode, in the order of its slots
    failures: Mapping[int, str] = field(
        default_factory=dict
    )  # by slot, why its job cannot go on; all others have moved
    seconds: float | None = None  # of device time; None: from the call until it was done
    # of denoise, by slot, as asked for: gives a small picture of what the job is becoming, or raises
    previews: Mapping[int, Callable[[], Pixels]] = field(default_factory=dict, repr=False)

    def wait(self) -> Done:
        """Itself: there is nothing to wait for."""
        return self


class Pending(Protocol):
    """A stage that a device is at, or has before it."""

    def wait(self) -> Done:
        """Returns when it is done; on any thread, once.

        Raises:
            Exception: the device cannot go on, and nothing that was started after is of use.
        """


class Engine(Protocol):
    """Runs the stages of jobs that lie in slots. Every method but `release` may raise; no job has moved then. Where one
    does, the engine is asked by `check` whether it can go on.

    A job's result does not depend on the other jobs of a call beyond rounding.
    """

    @property
    def max_pending(self) -> int:
        """Stages that may be started before the first is done; 0: each is done when its method returns."""

    @property
    def name(self) -> str:
        """torch, tensorrt, fake"""

    @property
    def device(self) -> str:
        """Where it runs."""

    @property
    def num_slots(self) -> int:
        """Jobs it can hold."""

    @property
    def model(self) -> ModelInfo:
        """What it serves, with the adapters that it has by now."""

    @property
    def known_costs(self) -> Costs | None:
        """Seconds of each bucket where they are given; None: they must be measured."""

    @property
    def memory(self) -> MemoryUse:
        """What it takes of its device's memory, and what is left, by now."""

    @property
    def progress(self) -> tuple[int, int]:
        """How many of the parts that make its ticks fastest are prepared, and how many there are."""

    def prepare(self) -> Costs | None:
        """Prepares one of those parts, between stages. Jobs in slots do not notice, but for the time.

        Returns:
            Seconds of the buckets that cost less from now on; None: nothing was left to prepare.

        Raises:
            Exception: the device cannot go on.
        """

    def read_adapter(self, name: str) -> ReadAdapter:
        """Reads an adapter of the model directory and checks it; on any thread, whatever the engine does meanwhile.

        Raises:
            AdapterMissing: there is no folder of that name.
            ModelError: its files are wrong, or are those of another model.
            AdapterRefused: this engine takes none while it serves.
        """

    def put_adapter(self, adapter: ReadAdapter) -> None:
        """Between stages: from now on jobs by its name get it. Jobs in slots do not notice.

        Raises:
            AdapterRefused: there is no room for one more; nothing has changed.
            Exception: the device cannot go on.
        """

    def drop_adapter(self, name: str, digest: str) -> None:
        """Between stages: forgets a version, with which no job is in a slot; nothing where there is none."""

    def admit(self, slot: int, job: Job) -> None:
        """Puts a job into a slot. Cheap: the work is in `encode`.

        Raises:
            ValueError: the job is out of the model's bounds.
        """

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        """Picture, instruction and initial noise of each job into its slot."""

    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        """One sampler step of each job: step `steps[i]`, from 0, of the job in `slots[i]`. No slot comes twice.

        For the slots in `previewed` what it ends with has previews, of this very step whatever is started after it.
        """

    def decode(self, slots: Sequence[int]) -> Done | Pending:
        """Each job's picture. The slots stay as they are."""

    def release(self, slot: int) -> None:
        """Forgets the job of a slot."""

    def share(self, memory: HostMemory) -> None:
        """Memory in which pictures will come: mapped until `unshare`."""

    def unshare(self, memory: HostMemory) -> None:
        """Nothing touches that memory any more when this returns; on any thread, as `share`."""

    def check(self) -> None:
        """Asks the device whether it still works, and waits for its answer; on any thread.

        Raises:
            Exception: it does not, and never will again in this process.
        """
