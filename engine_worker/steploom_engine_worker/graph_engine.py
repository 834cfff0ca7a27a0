"""The engine on a GPU: each bucket's tick is one recorded graph, and the host never waits for the device within it.

It serves as soon as the largest graph of each stage is recorded: whatever is smaller is padded to it. The others are
recorded while it serves, one by one, on the thread that starts the ticks and so between two of them: nothing else is at
the memory that graphs of a lane share while one of them is made. The longest that a tick waits for it is one recording:
five times its network, the first of them with the compilation of kernels and the trying out of libraries'.

Three lanes. Admissions copy pictures and tables to the device; encode and decode run in one lane, beside the denoise
ticks in another, and marks keep the order that a job's own stages need. What a tick found out (values that are not
finite, pictures, previews) is copied back behind it, and read by whoever waits for it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from steploom_common.adapter import rows_with
from steploom_common.settings import ConfigError
from steploom_engine_worker.adapter import load_adapter, merged_unet
from steploom_engine_worker.adapter_files import AdapterFiles
from steploom_engine_worker.calibration import input_scales
from steploom_engine_worker.capacity import slots_that_fit
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Costs, Done, HostMemory, Job, Pending, Pixels, Stage
from steploom_engine_worker.errors import AdapterRefused, ModelError, is_fatal
from steploom_engine_worker.fused.unet import FusedUNet, cannot_fuse
from steploom_engine_worker.fused.vae import FusedDecoder, FusedEncoder, cannot_fuse_vae
from steploom_engine_worker.graphs import DecodeWork, EncodeWork, HostRing, JobGraph, StepGraph, pad_jobs
from steploom_engine_worker.lane import Lane, Mark, open_lane
from steploom_engine_worker.model import Model, load_model, load_unet
from steploom_engine_worker.model_files import model_root
from steploom_engine_worker.pinned import PinnedMemory
from steploom_engine_worker.readiness import GATED, PLAIN, Kind, Readiness, Recording
from steploom_engine_worker.registrar import registrar_of
from steploom_engine_worker.rows import NO_ADAPTER, pack_rows
from steploom_engine_worker.slots import Slots
from steploom_engine_worker.torch_engine import TorchEngine, device_of
from steploom_kernels.fp8 import cannot_multiply

MAX_PENDING = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Buckets:
    """Rows, or jobs, for which graphs are recorded; rising."""

    encode: Sequence[int]
    denoise: Sequence[int]
    decode: Sequence[int]

    def of(self, stage: Stage) -> Sequence[int]:
        """Those of a stage."""
        return {Stage.ENCODE: self.encode, Stage.DENOISE: self.denoise, Stage.DECODE: self.decode}[stage]


def load_graph_engine(config: WorkerConfig) -> GraphEngine:
    """The engine that the settings describe, on their CUDA device, with as many graphs as it needs to serve.

    Raises:
        ModelError: the model directory is wrong, or its UNet is none that can be fused.
        ConfigError: torch cannot use the device, or not for what is asked.
    """
    device, dtype = device_of(config), getattr(torch, config.dtype)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of the calling thread, which is the one that drives the engine
        torch.backends.cudnn.benchmark = True  # every shape comes again and again
    root = model_root(config.model)
    model = load_model(root, dtype)
    problem = cannot_fuse(model.unet)
    if problem:
        raise ModelError(root / "unet" / "config.json", problem)
    buckets = Buckets(config.encode_buckets, config.denoise_buckets, config.decode_buckets)
    num_slots = config.num_slots
    if device.type == "cuda" and not config.slots:
        num_slots = slots_that_fit(torch.cuda.mem_get_info(device)[0], slot_bytes(model, config.max_steps, dtype))
    begin = time.perf_counter()
    scales = _input_scales(config, model, device, dtype)
    spare = config.spare_adapters
    engine = GraphEngine(
        model, num_slots, config.max_steps, device, dtype, buckets, config.merge_adapters, scales, spare
    )
    while config.record_all and engine.prepare() is not None:
        pass
    megabytes = engine.slots.num_bytes / 1e6
    seconds = time.perf_counter() - begin
    log.info("%d slots, %.0f MB; %d of %d buckets recorded in %.1f s", num_slots, megabytes, *engine.progress, seconds)
    return engine


def _input_scales(
    config: WorkerConfig, model: Model, device: torch.device, dtype: torch.dtype
) -> Mapping[str, float] | None:
    """Of the maps that are to be multiplied in e4m3; None: none is."""
    if config.fp8 == "off":
        return None
    problem = cannot_multiply(device, dtype)
    if problem:
        raise ConfigError("worker.fp8", f"is {config.fp8!r}, {problem}")
    scales = input_scales(model, device, dtype)
    torch.cuda.empty_cache()  # what its passes took: graphs keep memory of their own
    return scales


def slot_bytes(model: Model, max_steps: int, dtype: torch.dtype) -> int:
    """Device memory that one more slot takes."""
    text_shape = model.num_tokens, int(model.text_encoder.config.hidden_size)
    meta = torch.device("meta")  # has shapes alone
    one, two = (Slots(count, max_steps, model.latent_shape, text_shape, model.side, meta, dtype) for count in (1, 2))
    return two.num_bytes - one.num_bytes


@dataclass
class _Tick:
    """A tick that is under way; see `engine.Pending`."""

    start: Mark
    end: Mark
    failures: Callable[[], dict[int, str]]
    pictures: Callable[[], list[Pixels]] = field(default=list)
    previews: Mapping[int, Callable[[], Pixels]] = field(default_factory=dict)

    def wait(self) -> Done:
        self.end.wait()
        return Done(self.pictures(), self.failures(), self.end.seconds_since(self.start), self.previews)


class GraphEngine(TorchEngine):
    """See the module, and `engine.Engine`. Runs on a CPU too, where nothing is recorded: for tests.

    Args:
        model: its UNet and VAE are taken apart: nobody else may use them.
        num_slots: jobs at once.
        max_steps: of a job.
        device: where.
        dtype: of the networks.
        buckets: what is recorded: the largest at once, the others by `prepare`.
        merge_adapters: whether ticks of one adapter alone run on weights with its changes in them.
        input_scales: of the UNet's maps that are multiplied in e4m3; see `calibration`. None: none is.
        spare_adapters: that may be loaded while it serves. Each gets a form of its own, merged, whatever
            `merge_adapters` says: what is recorded already cannot learn of it.
    """

    _num_spare = 1  # what is recorded works on it: the last slot but those of the empty conditions

    def __init__(
        self,
        model: Model,
        num_slots: int,
        max_steps: int,
        device: torch.device,
        dtype: torch.dtype,
        buckets: Buckets,
        merge_adapters: bool = True,
        input_scales: Mapping[str, float] | None = None,
        spare_adapters: int = 0,
    ) -> None:
        self._input_scales = input_scales
        self._tokens: HostRing | None = None
        super().__init__(model, num_slots, max_steps, device, dtype, merge_adapters, spare_adapters)
        self._buckets = buckets
        self._admission, self._side, self._main = (open_lane(device) for _ in range(3))
        self._marks: list[Mark | None] = [None] * num_slots  # where what was last asked for of a slot ends
        most_jobs = max(*buckets.encode, *buckets.decode)
        ring = partial(HostRing, MAX_PENDING, device=device)
        # a tick may take a bucket once for each form
        in_flight = (MAX_PENDING + 1) * (len(self._forms) + spare_adapters) - 1
        self._packed = {bucket: HostRing(in_flight, (8 * bucket,), torch.int32, device) for bucket in buckets.denoise}
        self._job_slots = ring((most_jobs,), torch.int64)
        self._flags = ring((2, max(most_jobs, *buckets.denoise)), torch.bool)
        self._decoded = ring((max(buckets.decode), model.side, model.side, 3), torch.uint8)
        self._estimates = ring((min(num_slots, max(buckets.denoise)), *model.latent_shape), torch.float32)
        self._pinned = PinnedMemory(registrar_of(device))
        self._staged = HostRing(num_slots - 1, (model.side, model.side, 3), torch.uint8, device)
        self._orders_staged = HostRing(num_slots - 1, (self.slots.order_size,), torch.float32, device)
        # an encode tick has tokens, and perhaps a mask
        self._tokens = HostRing(2 * MAX_PENDING + 1, (most_jobs, model.num_tokens), torch.int64, device)
        self._steps: dict[Recording, StepGraph] = {}
        self._encodes: dict[Recording, tuple[JobGraph, EncodeWork]] = {}
        self._decodes: dict[Recording, tuple[JobGraph, DecodeWork]] = {}
        self._seconds: dict[Recording, float] = {}  # of one tick
        self._readiness = Readiness(self._kinds(model), self._alone(model))
        self._is_prepared_for = False  # what ticks want is counted
        self._text_problem = self._why_text_is_apart()
        if self._text_problem:
            log.warning("the text encoder is not recorded, encode ticks take longer: %s", self._text_problem)
        self._record()

    def _build_networks(self, model: Model, merge_adapters: bool) -> None:
        """The forms of the UNet, and a VAE's halves where it can be fused, in place of the model's."""
        adapters = [item.network for item in model.adapters]
        scales = self._input_scales
        self._forms = {PLAIN: FusedUNet(model.unet, adapters, input_scales=scales)}
        if adapters:
            self._forms[GATED] = self._forms[PLAIN]
        for number, adapter in enumerate(adapters if merge_adapters else []):
            merged = merged_unet(model.unet, adapter)
            self._forms[number] = FusedUNet(merged, adapters, are_merged=True, input_scales=scales)
        self._networks = dataclasses.replace(model, unet=None)
        self._encoder: FusedEncoder | None = None
        self._decoder: FusedDecoder | None = None
        if not cannot_fuse_vae(model.vae):
            self._encoder, self._decoder = FusedEncoder(model.vae), FusedDecoder(model.vae)
            self._networks = dataclasses.replace(self._networks, vae=None)

    def _encode_pictures(self, pictures: Tensor) -> Tensor:
        latents: Tensor = (self._encoder or super()._encode_pictures)(pictures)
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        image: Tensor = (self._decoder or super()._decode_latents)(latents)
        return image

    def _loaded(self, number: int, files: AdapterFiles) -> FusedUNet:
        """The model's own UNet was taken apart: another is read, merged and fused on the host."""
        unet = load_unet(self._networks.root, self._dtype)
        adapter = load_adapter(unet, files).to(self._dtype)
        merged = merged_unet(unet, adapter).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        scales = self._input_scales
        return FusedUNet(merged, [adapter], are_merged=True, input_scales=scales, first_number=number)

    def _take(self, number: int, network: FusedUNet) -> None:
        """A copy to the device, and one recording: so long the next tick waits."""
        needed = self._readiness.add_form(number, self._buckets.denoise)
        try:
            self._forms[number] = network.to(self._device)
            self._make(needed)
        except Exception as error:
            self._leave(number)
            if is_fatal(error) and not isinstance(error, torch.OutOfMemoryError):  # torch's own is not the device's
                raise
            self._main.mark().wait()  # its memory is free only now
            raise AdapterRefused(f"it cannot be made ready on {self._device}: {error}") from error

    def _leave(self, number: int) -> None:
        """Its own form goes; what the gated form holds of an adapter of the start stays, for it is recorded."""
        if (Stage.DENOISE, number) in self._readiness.kinds:
            self._readiness.drop_form(number)
        for recording in [item for item in self._steps if item.form == number]:
            del self._steps[recording], self._seconds[recording]
        self._forms.pop(number, None)

    def _kinds(self, model: Model) -> Mapping[Kind, Sequence[int]]:
        """All buckets of every stage and form; of equal ones the earlier is the more urgent."""
        buckets = self._buckets
        merged = [form for form in self._forms if form not in (PLAIN, GATED)]
        kinds: dict[Kind, Sequence[int]] = {(Stage.DENOISE, form): buckets.denoise for form in (PLAIN, *merged)}
        kinds[Stage.ENCODE, PLAIN], kinds[Stage.DECODE, PLAIN] = buckets.encode, buckets.decode
        if GATED in self._forms:
            # where every adapter has its own form, this one serves until that is recorded, and crowds of adapters
            has_all = len(merged) == len(model.adapters)
            kinds[Stage.DENOISE, GATED] = buckets.denoise[-1:] if has_all else buckets.denoise
        return kinds

    def _alone(self, model: Model) -> Mapping[Kind, int]:
        """Jobs and rows of a request alone, with the model's default scales."""
        scales = model.defaults.guidance_scale, model.defaults.image_guidance_scale
        traits = {number: item.manifest.traits for number, item in enumerate(model.adapters)}
        forms = [form for form in self._forms if form != GATED]
        rows = {(Stage.DENOISE, form): rows_with(traits.get(form), *scales) for form in forms}
        apart = [rows_with(item, *scales) for number, item in traits.items() if number not in self._forms]
        if apart:  # a request of theirs is gated though it is alone
            rows[Stage.DENOISE, GATED] = min(apart)
        most = self._buckets.denoise[-1]
        return {
            **{kind: min(count, most) for kind, count in rows.items()},
            (Stage.ENCODE, PLAIN): 1,
            (Stage.DECODE, PLAIN): 1,
        }

    def _record(self) -> None:
        """What is needed to serve."""
        for recording in self._readiness.needed:
            self._make(recording)

    @torch.inference_mode()
    def _make(self, recording: Recording) -> None:
        """A recording, and its cost; on a slot that is no job's."""
        stage, form, bucket = recording
        spare = self.num_slots
        graph: StepGraph | JobGraph
        if stage is Stage.DENOISE:
            graph = StepGraph(bucket, self.slots, self._forms[form], form != PLAIN, self._main)
            self._steps[recording] = graph
        elif stage is Stage.ENCODE:
            encode_text = None if self._text_problem else self._text_states
            encode = EncodeWork(bucket, self.slots, self._encode_pictures, encode_text)
            graph = JobGraph(bucket, encode, spare, self._device, self._side)
            self._encodes[recording] = graph, encode
        else:
            decode = DecodeWork(bucket, self.slots, self._decode_latents)
            graph = JobGraph(bucket, decode, spare, self._device, self._side)
            self._decodes[recording] = graph, decode
        self._seconds[recording] = _seconds_of(graph.replay, self._lane(stage))
        self._readiness.add(recording)

    @torch.inference_mode()
    def _why_text_is_apart(self) -> str:
        """Why the text encoder cannot be recorded with the rest of an encode tick; empty where it can."""
        if self._text_has_mask:
            return "it has a mask, and looks into that"
        tokens = torch.zeros(1, self._networks.num_tokens, dtype=torch.int64, device=self._device)
        return self._side.obstacle(lambda: self._text_states(tokens))

    def _modules(self) -> Iterator[nn.Module]:
        networks = self._networks
        halves = networks.vae, networks.text_encoder, self._encoder, self._decoder
        yield from (item.network for item in networks.adapters)
        yield from (item for item in (*halves, *self._forms.values()) if item is not None)

    def _lane(self, stage: Stage) -> Lane:
        return self._main if stage is Stage.DENOISE else self._side

    @property
    def progress(self) -> tuple[int, int]:
        return self._readiness.progress

    def prepare(self) -> Costs | None:
        if not self._is_prepared_for:  # until now there was the warm-up alone
            self._is_prepared_for = True
            self._readiness.forget_wanted()
        recording = self._readiness.next()
        if recording is None:
            return None
        try:
            self._make(recording)
        except Exception as error:
            if is_fatal(error) and not isinstance(error, torch.OutOfMemoryError):  # torch's own is not the device's
                raise
            log.warning("%s is not recorded, larger ones serve in its place: %s", recording, error)
            self._lane(recording.stage).mark().wait()  # its memory is free only now
            self._readiness.drop(recording)
            return {}
        log.debug("%s recorded, %.1f ms", recording, self._seconds[recording] * 1e3)
        return self._costs_on(recording)

    def _costs_on(self, recording: Recording) -> Costs:
        """Seconds of the buckets that run on it where no row has an adapter."""
        stage = recording.stage
        look_up = self._readiness.look_up
        ours = [bucket for bucket in self._buckets.of(stage) if look_up(stage, PLAIN, bucket) == recording]
        return {(stage, bucket): self._seconds[recording] for bucket in ours}

    @property
    def max_pending(self) -> int:
        return MAX_PENDING

    def admit(self, slot: int, job: Job) -> None:
        with self._admission.working():
            self._admission.follow(self._marks[slot])  # of a job that nobody waits for any more, perhaps
            super().admit(slot, job)
            self._marks[slot] = self._admission.mark()

    def _order_memory(self) -> Tensor:
        return self._orders_staged.next()

    def _put_pixels(self, slot: int, pixels: Pixels) -> None:
        target = self.slots.pixels[slot]
        if self._pinned.start_copy(pixels, lambda given: target.copy_(torch.from_numpy(given), non_blocking=True)):
            return
        staged = self._staged.next()
        staged.numpy()[:] = pixels
        target.copy_(staged, non_blocking=True)

    def share(self, memory: HostMemory) -> None:
        self._pinned.add(memory)

    def unshare(self, memory: HostMemory) -> None:
        self._pinned.remove(memory)

    def _place(self, tokens: Tensor) -> Tensor:
        if self._tokens is None:
            return super()._place(tokens)
        return self._stage(tokens, len(tokens)).to(self._device, non_blocking=True)

    def _stage(self, tokens: Tensor, count: int) -> Tensor:
        """Tokens where the device can read them without waiting; the first job's again for those beyond the jobs."""
        assert self._tokens is not None
        staged = self._tokens.next()[:count]
        staged[: len(tokens)] = tokens
        staged[len(tokens) :] = tokens[0]
        return staged

    def _begin(self, lane: Lane, slots: Sequence[int]) -> Mark:
        """Lets a lane wait for whatever was last asked for of these slots."""
        for mark in {id(self._marks[slot]): self._marks[slot] for slot in slots}.values():
            lane.follow(mark)
        return lane.mark()

    def _end(self, lane: Lane, slots: Sequence[int]) -> Mark:
        """The end of what a lane was asked for of these slots."""
        mark = lane.mark()
        for slot in slots:
            self._marks[slot] = mark
        return mark

    @torch.inference_mode()
    def encode(self, slots: Sequence[int]) -> Done | Pending:
        graph, work = self._encodes[self._readiness.take(Stage.ENCODE, PLAIN, len(slots))]
        instructions = [self._instructions[slot] for slot in slots]
        tokens = None if self._text_problem else self._stage(self._tokenise(instructions).input_ids, graph.bucket)
        with self._side.working():
            start = self._begin(self._side, slots)
            if tokens is not None:
                work.tokens.copy_(tokens, non_blocking=True)
            graph.start(pad_jobs(graph.bucket, slots, self._job_slots.next()))
            are_texts_finite = work.are_texts_finite
            if tokens is None:
                text = self._encode_text(instructions)
                self.slots.text[graph.slots[: len(slots)]] = text
                are_texts_finite = torch.isfinite(text).flatten(1).all(1)
            flags = self._flags.next()
            flags[0, : len(slots)].copy_(work.are_finite[: len(slots)], non_blocking=True)
            flags[1, : len(slots)].copy_(are_texts_finite[: len(slots)], non_blocking=True)
            end = self._end(self._side, slots)

        def failures() -> dict[int, str]:
            return {
                **_failed(flags[0], slots, "the VAE's encoder"),
                **_failed(flags[1], slots, "the text encoder"),
            }

        return _Tick(start, end, failures)

    @torch.inference_mode()
    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        flags = self._flags.next()[0]
        row_slots: list[int] = []
        with self._main.working():
            start = self._begin(self._main, slots)
            for recording, jobs in self._passes(slots):
                graph, done = self._steps[recording], len(row_slots)
                own = [slots[job] for job in jobs]
                packed = self._packed[graph.bucket].next()
                packed.numpy()[:] = pack_rows(graph.bucket, self.slots, own, [steps[job] for job in jobs])
                graph.start(packed)
                row_slots += [own[job] for job in self.slots.rows(own)[0]]
                count = len(row_slots) - done
                flags[done : len(row_slots)].copy_(graph.are_finite[:count], non_blocking=True)
            previews = self._previews(self._copy_estimates(previewed))
            end = self._end(self._main, slots)
        return _Tick(start, end, lambda: _failed(flags, row_slots, "the UNet"), previews=previews)

    def _passes(self, slots: Sequence[int]) -> list[tuple[Recording, Sequence[int]]]:
        """What a denoise tick runs on, and for which of its jobs: one pass for all, or one for those of each adapter.

        An adapter that was loaded while the engine serves has a form of its own, and always a pass. Rows of several
        others share a pass at a price, since each takes the products of every adapter along. It is known what both ways
        take; the one that takes less is gone.
        """
        by_adapter: dict[int, list[int]] = {}
        for job, slot in enumerate(slots):
            by_adapter.setdefault(self.slots.adapters[slot], []).append(job)
        loaded = [number for number in by_adapter if number >= self._shelf.num_own]
        passes: list[tuple[Recording, Sequence[int]]] = [
            (self._take_step(number, [slots[job] for job in by_adapter[number]]), by_adapter[number])
            for number in loaded
        ]
        if not loaded:
            return self._own_passes(slots, range(len(slots)), by_adapter)
        own = {number: jobs for number, jobs in by_adapter.items() if number not in loaded}
        every = sorted(job for jobs in own.values() for job in jobs)
        return passes + self._own_passes(slots, every, own) if own else passes

    def _own_passes(
        self, slots: Sequence[int], every: Sequence[int], by_adapter: Mapping[int, Sequence[int]]
    ) -> list[tuple[Recording, Sequence[int]]]:
        """Of the jobs of each adapter that the gated form knows, and of none."""
        own = [slots[job] for job in every]
        together = self._take_step(self._form(own), own)
        forms = {adapter: PLAIN if adapter == NO_ADAPTER else adapter for adapter in by_adapter}
        if len(by_adapter) == 1 or not self._forms.keys() >= set(forms.values()):
            return [(together, every)]
        apart: list[tuple[Recording, Sequence[int]]] = [
            (self._take_step(forms[adapter], [slots[job] for job in jobs]), jobs)
            for adapter, jobs in by_adapter.items()
        ]
        takes_less = sum(self._seconds[recording] for recording, _ in apart) < self._seconds[together]
        return apart if takes_less else [(together, every)]

    def _take_step(self, form: int, slots: Sequence[int]) -> Recording:
        return self._readiness.take(Stage.DENOISE, form, len(self.slots.rows(slots)[0]))

    def _copy_estimates(self, slots: Sequence[int]) -> dict[int, Tensor]:
        """What the jobs of slots are becoming, to the host, before the next tick can change it."""
        if not slots:
            return {}
        staged = self._estimates.next()
        for place, slot in enumerate(slots):
            staged[place].copy_(self.slots.history[slot], non_blocking=True)
        return {slot: staged[place] for place, slot in enumerate(slots)}

    @torch.inference_mode()
    def decode(self, slots: Sequence[int]) -> Done | Pending:
        graph, work = self._decodes[self._readiness.take(Stage.DECODE, PLAIN, len(slots))]
        with self._side.working():
            start = self._begin(self._side, slots)
            graph.start(pad_jobs(graph.bucket, slots, self._job_slots.next()))
            flags, pictures = self._flags.next(), self._decoded.next()
            flags[0, : len(slots)].copy_(work.are_finite[: len(slots)], non_blocking=True)
            pictures[: len(slots)].copy_(work.pictures[: len(slots)], non_blocking=True)
            end = self._end(self._side, slots)
        return _Tick(
            start,
            end,
            lambda: _failed(flags[0], slots, "the VAE's decoder"),
            lambda: list(pictures[: len(slots)].numpy()),
        )

    def _form(self, slots: Sequence[int]) -> int:
        """Which form of the UNet a tick needs, by the adapters of its jobs."""
        numbers = {self.slots.adapters[slot] for slot in slots}
        if numbers == {NO_ADAPTER}:
            return PLAIN
        number = min(numbers)
        return number if len(numbers) == 1 and number in self._forms else GATED


def _seconds_of(replay: Callable[[], None], lane: Lane) -> float:
    """What is recorded, once: its first run is slower and not counted."""
    with lane.working():
        replay()
        start = lane.mark()
        replay()
        end = lane.mark()
    end.wait()
    return end.seconds_since(start)


def _failed(are_finite: Tensor, slots: Sequence[int], source: str) -> dict[int, str]:
    """The slots of rows whose values are not finite."""
    reason = f"{source} gave values that are not finite"
    return {slot: reason for slot, is_finite in zip(slots, are_finite.tolist(), strict=False) if not is_finite}
