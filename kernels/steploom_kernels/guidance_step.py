"""Guidance and sampler step of all jobs of a tick at once, written back to their slots.

`guidance_step` is the equation, over what the caller has gathered for each job. `step_slots` is the whole step: weights
and coefficients of a job, and its seed, are found by its slot and step, which are data on the device, so that one
captured graph serves any set of jobs; a job whose slot is negative is padding and touches nothing.

On a GPU it is one launch. A program takes a run of pixels of one job: whole pixels of the prediction (channels last),
planes of the slot's float32 state, 16 bytes a thread each. Every value is read once and nothing but the new state is
written: the guided prediction and the noise, drawn where a step adds any, live in registers.
"""

from __future__ import annotations

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

# Columns of a coefficient table; see `guidance_step`.
X, PREDICTION, NOISE, HISTORY, X0_X, X0_PREDICTION = range(6)
NUM_COEFFICIENTS = 6


def guidance_step(
    prediction: Tensor,
    job_rows: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    slots: Tensor,
    latents: Tensor,
    history: Tensor,
    noise: Tensor | None = None,
) -> None:
    """One step of each job, in place: with g the weighted sum of a job's branches (arXiv 2211.09800, equation 3)

        latents <- a * latents + b * g + c * noise + h * history
        history <- p * latents + q * g          (of the old latents: the estimate of the finished picture)

    Args:
        prediction: [rows, channels, h, w], the UNet's output.
        job_rows: int64 [jobs, 3], the row of each branch; a branch that was not computed names any row of its own job.
        weights: [jobs, 3], zero for a branch that was not computed.
        coefficients: [jobs, 6], the columns a, b, c, h, p, q.
        slots: int64 [jobs], each at most once.
        latents: [slots, channels, h, w], changed.
        history: [slots, channels, h, w], changed.
        noise: [jobs, channels, h, w], or None where every c is zero.
    """
    branches = prediction.to(latents.dtype)[job_rows]  # [jobs, 3, channels, h, w]
    guided = sum(_column(weights, branch) * branches[:, branch] for branch in range(weights.shape[1]))
    old = latents[slots]
    new = _column(coefficients, X) * old + _column(coefficients, PREDICTION) * guided
    new += _column(coefficients, HISTORY) * history[slots]
    if noise is not None:
        new += _column(coefficients, NOISE) * noise
    history[slots] = _column(coefficients, X0_X) * old + _column(coefficients, X0_PREDICTION) * guided
    latents[slots] = new


def step_slots(
    prediction: Tensor,
    job_rows: Tensor,
    job_slots: Tensor,
    job_steps: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    """`guidance_step` of each job with the line of its slot and step, and with noise where that line's c is not zero.

    The noise of step k is that of the slot's seed at offset k + 1; see `philox_noise`.

    Args:
        prediction: [rows, channels, h, w], channels last in memory: the UNet's output.
        job_rows: int32 or int64 [jobs, 3], the row of each branch; a branch that was not computed names any row of its
            own job, and a padding job any row at all.
        job_slots: int32 or int64 [jobs], each at most once, or -1 for padding.
        job_steps: int32 or int64 [jobs], the index of the step that the job takes.
        weights: float32 [slots, 3], zero for a branch that is not computed.
        coefficients: float32 [slots, max_steps, 6], columns as in `guidance_step`.
        seeds: int64 [slots], the bits of a uint64.
        latents: float32 [slots, channels, h, w], changed. On a GPU h * w is a multiple of 4, and channels a power of 2.
        history: as latents, changed.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    arguments = prediction, job_rows, job_slots, job_steps, weights, coefficients, seeds, latents, history
    (step_slots_triton if runs_on_triton(latents) else step_slots_reference)(*arguments)


def step_slots_reference(
    prediction: Tensor,
    job_rows: Tensor,
    job_slots: Tensor,
    job_steps: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    """`step_slots` in plain torch. The state may be of float64: then so is the arithmetic."""
    is_job = job_slots >= 0
    slots, steps = job_slots[is_job].long(), job_steps[is_job].long()
    lines = coefficients[slots, steps]
    noise = None
    if lines[:, NOISE].any():
        drawn = philox_noise(seeds[slots], steps + 1, latents[0].numel())
        noise = drawn.view(-1, *latents.shape[1:]).to(latents.dtype)
    guidance_step(prediction, job_rows[is_job].long(), weights[slots], lines, slots, latents, history, noise)


def _column(table: Tensor, index: int) -> Tensor:
    return table[:, index, None, None, None]


_PIXELS = 128  # a program's: with four channels 16 bytes of each state a thread


def step_slots_triton(
    prediction: Tensor,
    job_rows: Tensor,
    job_slots: Tensor,
    job_steps: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    """`step_slots` as one launch."""
    _check(prediction, job_rows, job_slots, job_steps, weights, coefficients, seeds, latents, history)
    jobs, channels, pixels = len(job_slots), latents.shape[1], latents.shape[2] * latents.shape[3]
    if jobs:
        _step_slots_kernel[(cdiv(pixels, _PIXELS), jobs)](
            latents, history, prediction, job_rows, job_slots, job_steps, weights, coefficients, seeds,
            pixels, coefficients.shape[1], channels=channels, block=_PIXELS, num_warps=4,
        )  # fmt: skip


def _check(
    prediction: Tensor,
    job_rows: Tensor,
    job_slots: Tensor,
    job_steps: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    latents: Tensor,
    history: Tensor,
) -> None:
    require_array("latents", latents, [torch.float32], None, None, None, None)
    slots, channels, height, width = latents.shape
    if channels & (channels - 1):
        raise ValueError(f"latents has {channels} channels, must be a power of two")
    if height * width % 4:
        raise ValueError(f"latents has {height} x {width} pixels, must be a multiple of 4")
    require_array("history", history, [torch.float32], *latents.shape)
    require_shape("prediction", prediction, None, channels, height, width)
    require_dtype("prediction", prediction, *NETWORK_TYPES)
    require_channels_last("prediction", prediction)
    require_indices("job_slots", job_slots, None)
    require_indices("job_steps", job_steps, len(job_slots))
    require_indices("job_rows", job_rows, len(job_slots), 3)
    require_array("weights", weights, [torch.float32], slots, 3)
    require_array("coefficients", coefficients, [torch.float32], slots, None, NUM_COEFFICIENTS)
    require_array("seeds", seeds, [torch.int64], slots)


@jit
def _step_slots_kernel(
    latents: tl.tensor,
    history: tl.tensor,
    prediction: tl.tensor,
    job_rows: tl.tensor,
    job_slots: tl.tensor,
    job_steps: tl.tensor,
    weights: tl.tensor,
    coefficients: tl.tensor,
    seeds: tl.tensor,
    pixels: tl.tensor,
    max_steps: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    job = tl.program_id(1)
    # whatever does not wait for the slot is on its way before the slot is known
    slot = tl.load(job_slots + job).to(tl.int64)
    step = tl.load(job_steps + job).to(tl.int64)
    full = tl.load(job_rows + job * 3).to(tl.int64)
    image = tl.load(job_rows + job * 3 + 1).to(tl.int64)
    none = tl.load(job_rows + job * 3 + 2).to(tl.int64)
    if slot < 0:
        return
    line = coefficients + (slot * max_steps + step) * 6
    a, b, c = tl.load(line), tl.load(line + 1), tl.load(line + 2)
    h, p, q = tl.load(line + 3), tl.load(line + 4), tl.load(line + 5)
    weight = weights + slot * 3

    first = tl.program_id(0) * block
    channel = tl.arange(0, channels)[:, None]
    pixel = first + tl.arange(0, block)[None, :]
    inside = pixel < pixels
    size = channels * pixels
    in_row = prediction + pixel * channels + channel
    guided = tl.load(weight) * tl.load(in_row + full * size, mask=inside, other=0.0).to(tl.float32)
    guided += tl.load(weight + 1) * tl.load(in_row + image * size, mask=inside, other=0.0).to(tl.float32)
    guided += tl.load(weight + 2) * tl.load(in_row + none * size, mask=inside, other=0.0).to(tl.float32)

    in_slot = slot * size + channel * pixels + pixel
    old = tl.load(latents + in_slot, mask=inside, other=0.0)
    before = tl.load(history + in_slot, mask=inside, other=0.0)
    new = a * old + b * guided + h * before
    if c != 0.0:
        # four pixels of a channel are one Philox block
        blocks = channel * (pixels // 4) + first // 4 + tl.arange(0, block // 4)[None, :]
        new += c * normal_values(tl.load(seeds + slot), step + 1, blocks)
    tl.store(history + in_slot, p * old + q * guided, mask=inside)
    tl.store(latents + in_slot, new, mask=inside)


def variants() -> list[Variant]:
    """The compiled forms: for four latent channels, and int32 indices."""
    return [
        Variant(
            name=f"step_slots_{name}",
            kernel=_step_slots_kernel,
            signature={
                "latents": "*fp32",
                "history": "*fp32",
                "prediction": f"*{name}",
                "job_rows": "*i32",
                "job_slots": "*i32",
                "job_steps": "*i32",
                "weights": "*fp32",
                "coefficients": "*fp32",
                "seeds": "*i64",
                "pixels": "i32",
                "max_steps": "i32",
                "channels": "constexpr",
                "block": "constexpr",
            },
            constants={"channels": 4, "block": _PIXELS},
            grid=("cdiv(pixels, block)", "jobs", "1"),
            aligned=("latents", "history", "prediction", "pixels"),
        )
        for name in ("fp16", "bf16", "fp32")
    ]
