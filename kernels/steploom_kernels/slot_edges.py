"""The ends of a job's course: what an encode tick puts into its slot, and what a decode tick takes from there.

Networks read and write pixels with their channels beside each other; the state of a slot lies in planes. Each launch
moves between both and does on the way what else is to be done. Which slot a job has is data on the device; a job whose
slot is negative is padding: it changes nothing, and a network gets zeros for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steploom_kernels.checks import (
    NETWORK_TYPES,
    require_array,
    require_channels_last,
    require_dtype,
    require_indices,
    require_shape,
)
from steploom_kernels.jit import Variant, cdiv, jit, runs_on_triton, tl
from steploom_kernels.philox_noise import normal_values, philox_noise


def start_slots(
    encoded: Tensor,
    job_slots: Tensor,
    seeds: Tensor,
    initial_scales: Tensor,
    image_latents: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    """A job's picture as latents, and its first noise: that of its seed at offset 0 (see `philox_noise`), scaled.

    Args:
        encoded: [jobs, channels, h, w], channels last in memory: what the VAE's encoder gave.
        job_slots: int32 or int64 [jobs], each at most once, or -1 for padding.
        seeds: int64 [slots], the bits of a uint64.
        initial_scales: float32 [slots], of the noise.
        image_latents: [slots + 1, channels, h, w], of the type of `encoded`, changed.
        latents: float32 [slots, channels, h, w], changed. On a GPU h * w is a multiple of 4, and channels a power of 2.
        history: as latents; zero afterwards.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    arguments = encoded, job_slots, seeds, initial_scales, image_latents, latents, history
    (start_slots_triton if runs_on_triton(latents) else start_slots_reference)(*arguments)


def start_slots_reference(
    encoded: Tensor,
    job_slots: Tensor,
    seeds: Tensor,
    initial_scales: Tensor,
    image_latents: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    """`start_slots` in plain torch."""
    is_job = job_slots >= 0
    slots = job_slots[is_job].long()
    noise = philox_noise(seeds[slots], torch.zeros_like(slots), math.prod(latents.shape[1:]))
    latents[slots] = (noise * initial_scales[slots, None]).view(-1, *latents.shape[1:])
    history[slots] = 0.0
    image_latents[slots] = encoded[is_job]


def put_text(states: Tensor, job_slots: Tensor, text: Tensor) -> None:
    """A job's text states into its slot.

    Args:
        states: [jobs, tokens, width].
        job_slots: int32 or int64 [jobs], each at most once, or -1 for padding.
        text: [slots + 1, tokens, width], of the same type, changed.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(text):
        put_text_triton(states, job_slots, text)
    else:
        text[job_slots[job_slots >= 0].long()] = states[job_slots >= 0]


def gather_latents(latents: Tensor, job_slots: Tensor, out: Tensor) -> Tensor:
    """What jobs have come to, as the VAE's decoder takes it; zeros for padding.

    Args:
        latents: float32 [slots, channels, h, w].
        job_slots: int32 or int64 [jobs], or -1 for padding.
        out: [jobs, channels, h, w], channels last in memory: where to put it.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(latents):
        return gather_latents_triton(latents, job_slots, out)
    gathered = latents[job_slots.clamp(min=0).long()]
    return out.copy_(gathered.masked_fill(job_slots[:, None, None, None] < 0, 0.0))


_PIXELS = 128  # a program's, of both launches that turn planes to pixels
_VALUES = 1024  # a program's, of text


def start_slots_triton(
    encoded: Tensor,
    job_slots: Tensor,
    seeds: Tensor,
    initial_scales: Tensor,
    image_latents: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    """`start_slots` as one launch."""
    slots, channels, height, width = _require_state("latents", latents)
    require_array("history", history, [torch.float32], *latents.shape)
    require_array("image_latents", image_latents, [encoded.dtype], slots + 1, channels, height, width)
    _require_pixels("encoded", encoded, channels, height, width)
    require_indices("job_slots", job_slots, len(encoded))
    require_array("seeds", seeds, [torch.int64], slots)
    require_array("initial_scales", initial_scales, [torch.float32], slots)
    if len(encoded):
        _start_slots_kernel[(cdiv(height * width, _PIXELS), len(encoded))](
            latents, history, image_latents, encoded, job_slots, seeds, initial_scales, height * width,
            channels=channels, block=_PIXELS, num_warps=4,
        )  # fmt: skip


def put_text_triton(states: Tensor, job_slots: Tensor, text: Tensor) -> None:
    """`put_text` as one launch."""
    require_array("text", text, NETWORK_TYPES, None, None, None)
    require_array("states", states, [text.dtype], None, *text.shape[1:])
    require_indices("job_slots", job_slots, len(states))
    count = text[0].numel()
    if len(states):
        _put_text_kernel[(cdiv(count, _VALUES), len(states))](
            text, states, job_slots, count, block=_VALUES, num_warps=4
        )


def gather_latents_triton(latents: Tensor, job_slots: Tensor, out: Tensor) -> Tensor:
    """`gather_latents` as one launch."""
    _, channels, height, width = _require_state("latents", latents)
    _require_pixels("out", out, channels, height, width)
    require_indices("job_slots", job_slots, len(out))
    if len(out):
        _gather_latents_kernel[(cdiv(height * width, _PIXELS), len(out))](
            out, latents, job_slots, height * width, channels=channels, block=_PIXELS, num_warps=4
        )
    return out


def _require_state(name: str, state: Tensor) -> torch.Size:
    require_array(name, state, [torch.float32], None, None, None, None)
    if state.shape[1] & (state.shape[1] - 1):
        raise ValueError(f"{name} has {state.shape[1]} channels, must be a power of two")
    if state[0, 0].numel() % 4:
        raise ValueError(f"{name} has {state.shape[2]} x {state.shape[3]} pixels, must be a multiple of 4")
    return state.shape


def _require_pixels(name: str, pixels: Tensor, *shape: int) -> None:
    require_shape(name, pixels, None, *shape)
    require_dtype(name, pixels, *NETWORK_TYPES)
    require_channels_last(name, pixels)


@jit
def _start_slots_kernel(
    latents: tl.tensor,
    history: tl.tensor,
    image_latents: tl.tensor,
    encoded: tl.tensor,
    job_slots: tl.tensor,
    seeds: tl.tensor,
    initial_scales: tl.tensor,
    pixels: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    job = tl.program_id(1)
    slot = tl.load(job_slots + job).to(tl.int64)
    if slot < 0:
        return
    first = tl.program_id(0) * block
    channel = tl.arange(0, channels)[:, None]
    pixel = first + tl.arange(0, block)[None, :]
    inside = pixel < pixels
    size = channels * pixels
    known = tl.load(encoded + job.to(tl.int64) * size + pixel * channels + channel, mask=inside, other=0.0)
    # four pixels of a channel are one Philox block
    blocks = channel * (pixels // 4) + first // 4 + tl.arange(0, block // 4)[None, :]
    seed = tl.load(seeds + slot)
    noise = normal_values(seed, seed - seed, blocks) * tl.load(initial_scales + slot)
    in_slot = slot * size + channel * pixels + pixel
    tl.store(image_latents + in_slot, known, mask=inside)
    tl.store(latents + in_slot, noise, mask=inside)
    tl.store(history + in_slot, tl.zeros_like(noise), mask=inside)


@jit
def _put_text_kernel(
    text: tl.tensor, states: tl.tensor, job_slots: tl.tensor, count: tl.tensor, block: tl.constexpr
) -> None:
    job = tl.program_id(1)
    slot = tl.load(job_slots + job).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    is_kept = index < tl.where(slot >= 0, count, 0)  # nowhere for padding
    values = tl.load(states + job.to(tl.int64) * count + index, mask=is_kept)
    tl.store(text + slot * count + index, values, mask=is_kept)


@jit
def _gather_latents_kernel(
    out: tl.tensor,
    latents: tl.tensor,
    job_slots: tl.tensor,
    pixels: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    job = tl.program_id(1)
    slot = tl.load(job_slots + job).to(tl.int64)
    pixel = tl.program_id(0) * block + tl.arange(0, block)[:, None]
    channel = tl.arange(0, channels)[None, :]
    size = channels * pixels
    is_job = pixel < tl.where(slot >= 0, pixels, 0)  # nowhere in padding
    values = tl.load(latents + slot * size + channel * pixels + pixel, mask=is_job, other=0.0)
    place = out + job.to(tl.int64) * size + pixel * channels + channel
    tl.store(place, values.to(out.dtype.element_ty), mask=pixel < pixels)


def variants() -> list[Variant]:
    """The compiled forms: for four latent channels, and int32 indices."""
    return [item for name in ("fp16", "bf16", "fp32") for item in _variants(name)]


def _variants(name: str) -> list[Variant]:
    return [
        Variant(
            name=f"start_slots_{name}",
            kernel=_start_slots_kernel,
            signature={
                "latents": "*fp32",
                "history": "*fp32",
                "image_latents": f"*{name}",
                "encoded": f"*{name}",
                "job_slots": "*i32",
                "seeds": "*i64",
                "initial_scales": "*fp32",
                "pixels": "i32",
                "channels": "constexpr",
                "block": "constexpr",
            },
            constants={"channels": 4, "block": _PIXELS},
            grid=("cdiv(pixels, block)", "jobs", "1"),
            aligned=("latents", "history", "image_latents", "encoded", "pixels"),
        ),
        Variant(
            name=f"put_text_{name}",
            kernel=_put_text_kernel,
            signature={
                "text": f"*{name}",
                "states": f"*{name}",
                "job_slots": "*i32",
                "count": "i32",
                "block": "constexpr",
            },
            constants={"block": _VALUES},
            grid=("cdiv(count, block)", "jobs", "1"),
            aligned=("text", "states", "count"),
        ),
        Variant(
            name=f"gather_latents_{name}",
            kernel=_gather_latents_kernel,
            signature={
                "out": f"*{name}",
                "latents": "*fp32",
                "job_slots": "*i32",
                "pixels": "i32",
                "channels": "constexpr",
                "block": "constexpr",
            },
            constants={"channels": 4, "block": _PIXELS},
            grid=("cdiv(pixels, block)", "jobs", "1"),
            aligned=("out", "latents", "pixels"),
        ),
    ]
