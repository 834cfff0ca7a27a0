"""What the kernels around the networks compute, in numpy; by the names of their functions in a cubin.

Each is given how to reach device memory, the types of its arguments, their values with the compiled-in constants, and
the grid. Half precision is float16: numpy has no bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
At = Callable[..., Array]  # address, type, shape
Values = Mapping[str, Any]
Kernel = Callable[[At, Mapping[str, str], Values, tuple[int, int, int]], None]

_TYPES = {
    "*fp16": np.float16,
    "*fp32": np.float32,
    "*i32": np.int32,
    "*i64": np.int64,
    "*u8": np.uint8,
}
_FULL, _NONE = 0, 2  # branches
_MASK = np.uint64(0xFFFFFFFF)


class Fault(Exception):
    """A kernel has touched what is not memory."""


class _Arguments:
    """Arguments of a launch, pointers as arrays."""

    def __init__(self, at: At, types: Mapping[str, str], values: Values) -> None:
        self._at, self._types, self._values = at, types, values

    def __getitem__(self, name: str) -> int:
        return int(self._values[name])

    def array(self, name: str, *shape: int) -> Array:
        """What a pointer points to."""
        return self._at(self._values[name], _TYPES[self._types[name]], *shape)


def gather_samples(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """The UNet's input, and the numbers of each row."""
    given = _Arguments(at, types, values)
    rows, slots, steps = grid[1], given["num_slots"], given["max_steps"]
    pixels, channels = given["pixels"], given["channels"]
    sample = given.array("sample", rows, pixels, 2 * channels)
    latents = given.array("latents", slots, channels, pixels)
    known = given.array("image_latents", slots + 1, channels, pixels)
    times, adapters = given.array("out_timesteps", rows), given.array("out_adapters", rows)
    gates, scales = given.array("out_gates", rows), given.array("out_scales", rows, 2)
    for row, slot in enumerate(_checked(given.array("row_slots", rows), slots)):
        is_job = slot >= 0
        branch, step = given.array("row_branches", rows)[row], given.array("row_steps", rows)[row]
        sample[row, :, :channels] = latents[slot].T if is_job else 0.0
        sample[row, :, channels:] = known[slot if is_job and branch != _NONE else slots].T
        times[row] = given.array("timesteps", slots, steps)[slot, step] if is_job else 0.0
        adapters[row] = given.array("adapters", slots)[slot] if is_job else -1
        gates[row] = given.array("gates", slots)[slot] if is_job else 0.0
        scales[row] = given.array("scales", slots, 2)[slot] if is_job else 1.0


def gather_text(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """The text states of each row."""
    given = _Arguments(at, types, values)
    rows, slots, count = grid[1], given["num_slots"], given["count"]
    context, text = given.array("context", rows, count), given.array("text", slots + 1, count)
    branches = given.array("row_branches", rows)
    for row, slot in enumerate(_checked(given.array("row_slots", rows), slots)):
        context[row] = text[slot if slot >= 0 and branches[row] == _FULL else slots]


def step_slots(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """Guidance, sampler step and noise of each job."""
    given = _Arguments(at, types, values)
    jobs, pixels, channels, steps = grid[1], given["pixels"], given["channels"], given["max_steps"]
    rows = given.array("job_rows", jobs, 3)
    job_slots, job_steps = given.array("job_slots", jobs), given.array("job_steps", jobs)
    slots = int(job_slots.max()) + 1
    prediction = given.array("prediction", int(rows.max()) + 1, pixels, channels).astype(np.float32)
    for job, slot in enumerate(job_slots):
        if slot < 0:
            continue
        weights = given.array("weights", slots, 3)[slot]
        a, b, c, h, p, q = given.array("coefficients", slots, steps, 6)[slot, job_steps[job]]
        guided = sum(weight * prediction[row].T for weight, row in zip(weights, rows[job]))  # noqa: B905 - both three
        latents = given.array("latents", slots, channels, pixels)[slot]
        history = given.array("history", slots, channels, pixels)[slot]
        old = latents.copy()
        latents[:] = a * old + b * guided + h * history
        if c:
            noise = normal_values(given.array("seeds", slots)[slot], int(job_steps[job]) + 1, channels * pixels)
            latents += c * noise.reshape(channels, pixels)
        history[:] = p * old + q * guided


def start_slots(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """A job's picture as latents, and its first noise."""
    given = _Arguments(at, types, values)
    jobs, pixels, channels = grid[1], given["pixels"], given["channels"]
    job_slots = given.array("job_slots", jobs)
    slots = int(job_slots.max()) + 1
    encoded = given.array("encoded", jobs, pixels, channels)
    for job, slot in enumerate(job_slots):
        if slot < 0:
            continue
        given.array("image_latents", slots + 1, channels, pixels)[slot] = encoded[job].T
        given.array("history", slots, channels, pixels)[slot] = 0.0
        noise = normal_values(given.array("seeds", slots)[slot], 0, channels * pixels).reshape(channels, pixels)
        scale = given.array("initial_scales", slots)[slot]
        given.array("latents", slots, channels, pixels)[slot] = noise * scale


def put_text(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """A job's text states into its slot."""
    given = _Arguments(at, types, values)
    jobs, count = grid[1], given["count"]
    job_slots = given.array("job_slots", jobs)
    for job, slot in enumerate(job_slots):
        if slot >= 0:
            given.array("text", int(slot) + 1, count)[slot] = given.array("states", jobs, count)[job]


def gather_latents(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """What jobs have come to, for the decoder."""
    given = _Arguments(at, types, values)
    jobs, pixels, channels = grid[1], given["pixels"], given["channels"]
    out = given.array("out", jobs, pixels, channels)
    for job, slot in enumerate(given.array("job_slots", jobs)):
        out[job] = given.array("latents", int(slot) + 1, channels, pixels)[slot].T if slot >= 0 else 0.0


def are_finite(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """Which rows are finite throughout."""
    given = _Arguments(at, types, values)
    rows = grid[0]
    given.array("out", rows)[:] = np.isfinite(given.array("values", rows, given["count"])).all(axis=1)


def pixels_in(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """Bytes of pictures to numbers, by slot."""
    given = _Arguments(at, types, values)
    batch, count = grid[1], given["count"]
    out = given.array("out", batch, count)
    for item, slot in enumerate(given.array("slots", batch)):
        if slot >= 0:
            out[item] = given.array("pixels", int(slot) + 1, count)[slot].astype(np.float32) / np.float32(127.5) - 1.0
        else:
            out[item] = 0.0


def pixels_out(at: At, types: Mapping[str, str], values: Values, grid: tuple[int, int, int]) -> None:
    """Numbers to bytes of pictures, both channels last."""
    given = _Arguments(at, types, values)
    batch, count = grid[1], 3 * given["pixels"]
    image = given.array("image", batch, count).astype(np.float32)
    with np.errstate(invalid="ignore"):
        given.array("out", batch, count)[:] = np.clip(image * 127.5 + 127.5, 0.0, 255.0).round().astype(np.uint8)


def normal_values(seed: int, offset: int, count: int) -> NDArray[np.float32]:
    """Standard normal values of a seed, as steploom_kernels.philox_noise lays them out."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    key = np.uint64(int(seed) & 0xFFFFFFFF), np.uint64(int(seed) >> 32 & 0xFFFFFFFF)
    c0, c1 = blocks & _MASK, blocks >> np.uint64(32)
    c2, c3 = (np.full_like(blocks, part) for part in (offset & 0xFFFFFFFF, offset >> 32))
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)  # no more than 64 bits
        c0, c1, c2, c3 = (
            second >> np.uint64(32) ^ c1 ^ key[0], second & _MASK, first >> np.uint64(32) ^ c3 ^ key[1], first & _MASK
        )  # fmt: skip
        key = (key[0] + np.uint64(0x9E3779B9)) & _MASK, (key[1] + np.uint64(0xBB67AE85)) & _MASK
    values = np.stack([*_box_muller(c0, c1), *_box_muller(c2, c3)], axis=-1)
    return values.reshape(-1)[:count].astype(np.float32)


def _box_muller(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> tuple[Array, Array]:
    radius = np.sqrt(-2.0 * np.log(((first >> np.uint64(8)) + np.uint64(1)).astype(np.float64) * 2.0**-24))
    angle = 2.0 * math.pi * (second >> np.uint64(8)).astype(np.float64) * 2.0**-24
    return radius * np.cos(angle), radius * np.sin(angle)


def _checked(row_slots: Array, slots: int) -> list[int]:
    if row_slots.max(initial=-1) >= slots:
        raise Fault(f"a row is of slot {row_slots.max()}, there are {slots}")
    return [int(slot) for slot in row_slots]


KERNELS: Mapping[str, Kernel] = {
    "_gather_samples_kernel": gather_samples,
    "_gather_text_kernel": gather_text,
    "_step_slots_kernel": step_slots,
    "_start_slots_kernel": start_slots,
    "_put_text_kernel": put_text,
    "_gather_latents_kernel": gather_latents,
    "_are_finite_kernel": are_finite,
    "_pixels_in_kernel": pixels_in,
    "_pixels_out_kernel": pixels_out,
}
