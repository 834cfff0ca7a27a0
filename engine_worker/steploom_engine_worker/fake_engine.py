"""An engine without a model: takes its time from a cost table, fails on command, draws what tests can check."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from steploom_common.adapter import AdapterTraits, rows_with
from steploom_engine_worker.adapter_manifest import AdapterManifest, adapter_digest, read_adapter_manifest
from steploom_engine_worker.adapter_shelf import Shelf
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import (
    AdapterVersion,
    Costs,
    Done,
    HostMemory,
    Job,
    MemoryUse,
    ModelInfo,
    Pending,
    Pixels,
    ReadAdapter,
    Stage,
)
from steploom_engine_worker.errors import AdapterRefused, EngineError
from steploom_engine_worker.loadable import adapter_folder
from steploom_engine_worker.schedule import Sampler

POISON = "poison"  # an instruction with this word raises in every denoise tick
OVERFLOW = "overflow"  # this one fails in its first denoise tick, alone
CRASH = "crash"  # this one ends the process in its first denoise tick
HANG = "hang"  # this one never ends its first denoise tick
EXHAUST = "exhaust"  # this one runs out of memory
CRASH_EXIT_CODE = 13

_DISTILLED = AdapterTraits(max_steps=4, is_guidance_distilled=True)  # of each of its adapters
_OWN_MANIFEST = AdapterManifest(traits=_DISTILLED)
_OWN_DIGEST = "own"


@dataclass(frozen=True)
class _Own:
    """An adapter that it says it has; see `description.DescribedAdapter`."""

    name: str
    manifest: AdapterManifest = _OWN_MANIFEST
    digest: str = _OWN_DIGEST


class FakeEngine:
    """See the module. Seconds of a tick are `base + per_item * jobs`, of denoise `base + per_row * rows`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._fake = config.fake
        self._num_slots = config.num_slots
        self._jobs: dict[int, Job] = {}
        self._done: dict[int, int] = {}  # steps by slot
        self._denoise_ticks = 0
        self._costs = {
            **{(Stage.ENCODE, bucket): self._seconds(Stage.ENCODE, bucket) for bucket in config.encode_buckets},
            **{(Stage.DENOISE, bucket): self._seconds(Stage.DENOISE, bucket) for bucket in config.denoise_buckets},
            **{(Stage.DECODE, bucket): self._seconds(Stage.DECODE, bucket) for bucket in config.decode_buckets},
        }
        self._model = _model(self._fake, config.max_steps)
        self._root = Path(config.model) if config.model else None
        self._shelf = Shelf([_Own(name) for name in self._fake.adapters], config.spare_adapters)

    @property
    def name(self) -> str:
        return "fake"

    @property
    def device(self) -> str:
        return "none"

    @property
    def max_pending(self) -> int:
        return 0

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def known_costs(self) -> Costs | None:
        return self._costs

    @property
    def memory(self) -> MemoryUse:
        return MemoryUse()

    @property
    def progress(self) -> tuple[int, int]:
        return 0, 0

    def prepare(self) -> Costs | None:
        return None

    def read_adapter(self, name: str) -> ReadAdapter:
        if self._root is None:
            raise AdapterRefused("a fake engine has a model directory only where worker.model names one")
        folder = adapter_folder(self._root, name)
        digest, manifest = adapter_digest(folder), read_adapter_manifest(folder, "")
        version = AdapterVersion(name, digest, manifest.traits)
        return ReadAdapter(version, manifest, -1 if self._shelf.holds(version) else self._shelf.place())

    def put_adapter(self, adapter: ReadAdapter) -> None:
        if self._shelf.holds(adapter.version):
            self._shelf.renew(adapter.version)
        else:
            self._shelf.put(adapter.number, adapter.version, adapter.manifest)
        self._model = replace(self._model, versions=self._shelf.versions)

    def drop_adapter(self, name: str, digest: str) -> None:
        self._shelf.drop(name, digest)
        self._model = replace(self._model, versions=self._shelf.versions)

    def admit(self, slot: int, job: Job) -> None:
        if not 1 <= job.steps <= self._model.max_steps:
            raise ValueError(f"steps is {job.steps}, must be 1 to {self._model.max_steps}")
        digest = ""  # of a version that was loaded while it served
        if job.adapter:
            held = self._shelf.find(job.adapter, job.adapter_digest)
            digest = held.version.digest if held.number >= self._shelf.num_own else ""
        self._jobs[slot] = replace(job, pixels=job.pixels.copy(), adapter_digest=digest)  # drawn from to the end
        self._done[slot] = 0

    def encode(self, slots: Sequence[int]) -> Done | Pending:
        self._spend(Stage.ENCODE, len(slots))
        return Done()

    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        self._denoise_ticks += 1
        self._spend(Stage.DENOISE, sum(self._rows(self._jobs[slot]) for slot in slots))
        for slot in slots:
            _obey(self._jobs[slot].instruction)
        if self._denoise_ticks == self._fake.fail_tick:
            raise EngineError(f"tick {self._denoise_ticks} fails as it was told to")
        for slot, step in zip(slots, steps, strict=True):
            if self._done[slot] != step:
                raise EngineError(f"slot {slot} is at step {self._done[slot]}, not {step}")
            self._done[slot] += 1
        bad = [slot for slot in slots if OVERFLOW in self._jobs[slot].instruction]
        previews = {slot: partial(self.preview, slot) for slot in previewed}
        return Done(failures=dict.fromkeys(bad, "overflows, as it was told to"), previews=previews)

    def decode(self, slots: Sequence[int]) -> Done | Pending:
        self._spend(Stage.DECODE, len(slots))
        return Done([draw(self._jobs[slot], self._done[slot]) for slot in slots])

    def preview(self, slot: int) -> Pixels:
        """Shows how far a job is by now."""
        return np.ascontiguousarray(draw(self._jobs[slot], self._done[slot])[::4, ::4])

    def release(self, slot: int) -> None:
        self._jobs.pop(slot, None)
        self._done.pop(slot, None)

    def share(self, memory: HostMemory) -> None:
        pass

    def unshare(self, memory: HostMemory) -> None:
        pass

    def check(self) -> None:
        pass

    def _seconds(self, stage: Stage, count: int) -> float:
        fake = self._fake
        base, each = {
            Stage.ENCODE: (fake.encode_s, fake.encode_item_s),
            Stage.DENOISE: (fake.denoise_s, fake.denoise_row_s),
            Stage.DECODE: (fake.decode_s, fake.decode_item_s),
        }[stage]
        return base + each * count

    def _rows(self, job: Job) -> int:
        return rows_with(self._model.adapters.get(job.adapter), job.guidance_scale, job.image_guidance_scale)

    def _spend(self, stage: Stage, count: int) -> None:
        seconds = self._seconds(stage, count)
        if seconds > 0:
            time.sleep(seconds)


def draw(job: Job, steps_done: int) -> Pixels:
    """The picture of a job: its input, shifted by a number that seed, instruction, steps and adapter decide."""
    scales = f"{job.guidance_scale:.6g}|{job.image_guidance_scale:.6g}"
    text = f"{job.seed}|{job.instruction}|{steps_done}|{scales}|{job.adapter}{job.adapter_digest}"
    shift = np.frombuffer(hashlib.sha256(text.encode()).digest()[:3], np.uint8)  # one for each of red, green, blue
    return np.asarray(job.pixels + shift, np.uint8)  # modulo 256


def _obey(instruction: str) -> None:
    if CRASH in instruction:
        os._exit(CRASH_EXIT_CODE)
    if HANG in instruction:
        threading.Event().wait()
    if EXHAUST in instruction:
        raise MemoryError("out of memory, as it was told to")
    if POISON in instruction:
        raise EngineError("poisoned instruction")


def _model(fake: FakeConfig, max_steps: int) -> ModelInfo:
    return ModelInfo(
        name="fake",
        height=fake.height,
        width=fake.width,
        max_steps=max_steps,
        default_guidance_scale=7.5,
        default_image_guidance_scale=1.5,
        default_sampler=Sampler.DDIM,
        latent_shape=(4, fake.height // 8, fake.width // 8),
        digest="fake",
        versions=tuple(AdapterVersion(name, _OWN_DIGEST, _DISTILLED) for name in fake.adapters),
    )
