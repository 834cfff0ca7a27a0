"""The stages of a tick over memory of their own, so that each can be recorded once and replayed for any set of jobs.

Which slots, branches and steps a tick has is data: small integers that are copied to the device before it. A tick of
fewer rows or jobs than its bucket is padded: a padded row belongs to no slot (index -1), reads no job and changes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steploom_engine_worker.fused.unet import FusedUNet
from steploom_engine_worker.lane import Lane
from steploom_engine_worker.rows import NO_ADAPTER, PADDING
from steploom_engine_worker.slots import Slots
from steploom_kernels.gather_rows import RowScalars, SlotScalars, gather_tick
from steploom_kernels.guidance_step import step_slots
from steploom_kernels.philox_noise import philox_noise
from steploom_kernels.pixels_in import pixels_in
from steploom_kernels.pixels_out import pixels_out


class HostRing:
    """Arrays on the host that a device reads or writes while the next tick is prepared: each is used in turn.

    Args:
        depth: ticks that may be under way.
        shape: of an array.
        dtype: of an array.
        device: whose copies shall not wait for the host.
    """

    def __init__(self, depth: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        is_pinned = device.type == "cuda"
        self._arrays = [torch.zeros(tuple(shape), dtype=dtype, pin_memory=is_pinned) for _ in range(depth + 1)]
        self._turn = 0

    def next(self) -> Tensor:
        """The array that was used longest ago."""
        self._turn = (self._turn + 1) % len(self._arrays)
        return self._arrays[self._turn]


class StepGraph:
    """A denoise tick of a bucket of rows.

    Args:
        bucket: rows.
        slots: the jobs' memory.
        unet: makes the predictions.
        has_adapters: whether rows may be of an adapter.
        lane: where it runs.

    Attributes:
        are_finite: bool [bucket], of each row, after a tick.
        replay: asks for the latest tick again. Before the first one it is padding alone.
    """

    def __init__(self, bucket: int, slots: Slots, unet: FusedUNet, has_adapters: bool, lane: Lane) -> None:
        device, dtype = slots.latents.device, slots.image_latents.dtype
        _, channels, height, width = slots.latents.shape

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.bucket = bucket
        self.are_finite = zeros(bucket, dtype=torch.bool)
        self._slots, self._unet, self._has_adapters = slots, unet, has_adapters
        sample = zeros(bucket, 2 * channels, height, width, dtype=dtype)
        self._sample = sample.contiguous(memory_format=torch.channels_last)
        self._context = zeros(bucket, *slots.text.shape[1:], dtype=dtype)
        self._rows = RowScalars(
            zeros(bucket, dtype=torch.float32),
            torch.full((bucket,), NO_ADAPTER, dtype=torch.int32, device=device),
            zeros(bucket, dtype=torch.float32),
            torch.ones(bucket, 2, device=device),
        )
        self._packed = zeros(8 * bucket, dtype=torch.int32)
        self._packed[:bucket] = PADDING
        self._packed[3 * bucket : 4 * bucket] = PADDING
        self.replay = lane.record(self._run)

    def start(self, packed: Tensor) -> None:
        """Asks for a tick; `packed` is the host's, as `pack_rows` makes it."""
        self._packed.copy_(packed, non_blocking=True)
        self.replay()

    def _run(self) -> None:
        slots = self._slots
        row_slots, row_branches, row_steps, job_slots, job_steps = self._packed[: 5 * self.bucket].view(5, -1)
        job_rows = self._packed[5 * self.bucket :].view(-1, 3)
        scalars = SlotScalars(slots.timesteps, slots.adapter_numbers, slots.gates, slots.scales)
        gather_tick(
            slots.latents, slots.image_latents, slots.text, scalars, row_slots, row_branches, row_steps,
            out=(self._sample, self._context, self._rows),
        )  # fmt: skip
        rows = self._rows if self._has_adapters else None
        prediction = self._unet(self._sample, self._rows.timesteps, self._context, rows)
        _are_finite(prediction, self.are_finite)
        step_slots(
            prediction, job_rows, job_slots, job_steps, slots.weights, slots.coefficients, slots.seeds,
            slots.latents, slots.history,
        )  # fmt: skip


class JobGraph:
    """A tick of a bucket of jobs. Padding repeats the first job: it computes the same once more.

    Args:
        bucket: jobs.
        run: given the slots [bucket], int64 on the device, does the work.
        spare: a slot that never holds a job: recording works on it, while others may hold some.
        device: where.
        lane: where it runs.

    Attributes:
        slots: int64 [bucket], on the device, of the latest tick.
        replay: asks for the latest tick again; before the first one all of it is the spare slot's.
    """

    def __init__(
        self, bucket: int, run: Callable[[Tensor], None], spare: int, device: torch.device, lane: Lane
    ) -> None:
        self.bucket = bucket
        self.slots = torch.full((bucket,), spare, dtype=torch.int64, device=device)
        self.replay = lane.record(lambda: run(self.slots))

    def start(self, slots: Tensor) -> None:
        """Asks for a tick; `slots` is the host's."""
        self.slots.copy_(slots, non_blocking=True)
        self.replay()


class EncodeWork:
    """What an encode tick does, over the memory of a bucket.

    Args:
        bucket: jobs.
        slots: their memory.
        encode: pictures to latents.
        encode_text: tokens to text states; None: texts are not a part of it.

    Attributes:
        are_finite: bool [bucket], of the picture of each job, after a tick.
        are_texts_finite: the same of its text.
        tokens: int64 [bucket, tokens], of each job, to be filled before a tick.
    """

    def __init__(
        self,
        bucket: int,
        slots: Slots,
        encode: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor], Tensor] | None,
    ) -> None:
        device = slots.latents.device
        self.are_finite = torch.zeros(bucket, dtype=torch.bool, device=device)
        self.are_texts_finite = torch.zeros_like(self.are_finite)
        self.tokens = torch.zeros(bucket, slots.text.shape[1], dtype=torch.int64, device=device)
        self._slots, self._encode, self._encode_text = slots, encode, encode_text
        self._starts = torch.zeros(bucket, dtype=torch.int64, device=device)

    def __call__(self, index: Tensor) -> None:
        """Picture, text and initial noise of the jobs of these slots."""
        slots = self._slots
        image_latents = self._encode(pixels_in(slots.pixels[index], slots.image_latents.dtype))
        _are_finite(image_latents, self.are_finite)
        slots.image_latents[index] = image_latents.to(slots.image_latents.dtype).contiguous()
        shape = slots.latents.shape[1:]
        noise = philox_noise(slots.seeds[index], self._starts, math.prod(shape))
        slots.latents[index] = (noise * slots.initial_scale[index, None]).view(-1, *shape)
        slots.history[index] = torch.zeros_like(slots.history[index])
        if self._encode_text is not None:
            text = self._encode_text(self.tokens)
            _are_finite(text, self.are_texts_finite)
            slots.text[index] = text


class DecodeWork:
    """What a decode tick does, over the memory of a bucket.

    Attributes:
        are_finite: bool [bucket], of each job, after a tick.
        pictures: uint8 [bucket, side, side, 3], after a tick.
    """

    def __init__(self, bucket: int, slots: Slots, decode: Callable[[Tensor], Tensor]) -> None:
        device = slots.latents.device
        self.are_finite = torch.zeros(bucket, dtype=torch.bool, device=device)
        self.pictures = torch.zeros(bucket, *slots.pixels.shape[1:], dtype=torch.uint8, device=device)
        self._slots, self._decode = slots, decode

    def __call__(self, index: Tensor) -> None:
        """The pictures of the jobs of these slots."""
        image = self._decode(self._slots.latents[index])
        _are_finite(image, self.are_finite)
        pixels_out(image, self.pictures)


def pad_jobs(bucket: int, slots: Sequence[int], out: Tensor) -> Tensor:
    """The slots, and the first again for the rest of the bucket, in a host's array of at least as many."""
    out[:bucket] = torch.tensor([*slots, *[slots[0]] * (bucket - len(slots))])
    return out[:bucket]


def _are_finite(values: Tensor, out: Tensor) -> Any:
    return torch.all(torch.isfinite(values).flatten(1), dim=1, out=out)
