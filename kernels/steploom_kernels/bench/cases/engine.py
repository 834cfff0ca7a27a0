"""What an engine does around the UNet: noise, gathering, guidance and sampler step, and pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steploom_kernels.bench.case import TOLERANCES, Case, Rival
from steploom_kernels.bench.shapes import normal
from steploom_kernels.gather_rows import RowScalars, SlotScalars, gather_rows_reference, gather_scalars, gather_tick
from steploom_kernels.guidance_step import NUM_COEFFICIENTS, guidance_step, step_slots, step_slots_reference
from steploom_kernels.philox_noise import philox_noise, philox_noise_reference
from steploom_kernels.pixels_in import pixels_in, pixels_in_reference
from steploom_kernels.pixels_out import pixels_out, pixels_out_reference

_JOBS = (4, 8, 1, 16)  # of three rows each
_BRANCHES = 3
_CHANNELS = 4  # of latents
_SIDES = (64, 32)  # of latents: Stable Diffusion's and the embedded model's
_TEXTS = {64: (77, 768), 32: (32, 192)}  # tokens and width of their text states
_PIXELS = 8  # a latent's side in pixels
_STEPS = 50
_SINGLE, _HALF, _INDEX = 4, 2, 4  # bytes
# From the first float to the last: sums of a few products, and the noise's logarithm and sine.
_STATE_TOLERANCE = 1e-5


def cases() -> Iterator[Case]:
    """For one job and for many."""
    for side in _SIDES:
        for index, jobs in enumerate(_JOBS):
            rank = (1 if index == 0 else 2) if side == _SIDES[0] else 4
            yield _gather(side, jobs, rank)
            yield _step(side, jobs, rank, is_noisy=False)
            yield _step(side, jobs, rank, is_noisy=True)
            yield _noise(side, jobs, rank)
            yield _pixels_in(side, jobs, rank)
            yield _pixels_out(side, jobs, rank)


def _gather(side: int, jobs: int, rank: int) -> Case:
    rows, values = _BRANCHES * jobs, _CHANNELS * side * side
    tokens, width = _TEXTS[side]

    def make(device: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
        latents = normal(device, generator, jobs, _CHANNELS, side, side, dtype=torch.float32)
        image = normal(device, generator, jobs + 1, _CHANNELS, side, side)
        text = normal(device, generator, jobs + 1, tokens, width)
        slots = torch.randperm(jobs, device=device, generator=generator).repeat_interleave(_BRANCHES).int()
        branches = (torch.arange(rows, device=device) % _BRANCHES).int()
        steps = torch.randint(_STEPS, (rows,), device=device, generator=generator).int()
        scalars = SlotScalars(
            torch.rand(jobs, _STEPS, device=device, generator=generator),
            torch.zeros(jobs, dtype=torch.int32, device=device),
            *(torch.rand(shape, device=device, generator=generator) for shape in ((jobs,), (jobs, 2))),
        )
        return latents, image, text, scalars, slots, branches, steps, _gathered(rows, side, text)

    read = jobs * values * (_SINGLE + _HALF) + (jobs + 1) * tokens * width * _HALF
    written = rows * (2 * values + tokens * width) * _HALF
    return Case(
        op="gather_tick",
        shape=f"{rows} rows, {side}x{side} fp16",
        make=make,
        run=_gather_run,
        eager=_gather_eager,
        reference=_gather_eager,
        num_bytes=read + written,
        tolerance=0.0,
        rank=rank,
    )


def _gathered(rows: int, side: int, text: Tensor) -> tuple[Tensor, Tensor, RowScalars]:
    """The buffers that a graph reads, with not-a-numbers where nothing was written yet."""
    sample = text.new_full((rows, side, side, 2 * _CHANNELS), math.nan).permute(0, 3, 1, 2)
    numbers = [torch.full((rows, *shape), math.nan, device=text.device) for shape in ((), (), (2,))]
    adapters = torch.full((rows,), 85, dtype=torch.int32, device=text.device)
    scalars = RowScalars(numbers[0], adapters, numbers[1], numbers[2])
    return sample, text.new_full((rows, *text.shape[1:]), math.nan), scalars


def _gather_run(*inputs: Any) -> tuple[Tensor, ...]:
    sample, context, scalars = inputs[-1]
    gather_tick(*inputs[:-1], out=inputs[-1])
    return sample, context, *scalars


def _gather_eager(
    latents: Tensor,
    image: Tensor,
    text: Tensor,
    scalars: SlotScalars,
    slots: Tensor,
    branches: Tensor,
    steps: Tensor,
    _: object,
) -> tuple[Tensor, ...]:
    rows = gather_rows_reference(latents, image, text, slots, branches)
    return *rows, *gather_scalars(scalars, slots, steps)


def _step(side: int, jobs: int, rank: int, *, is_noisy: bool) -> Case:
    rows, values = _BRANCHES * jobs, _CHANNELS * side * side

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        prediction = normal(device, generator, rows, side, side, _CHANNELS).permute(0, 3, 1, 2)
        job_rows = torch.arange(rows, dtype=torch.int32, device=device).view(jobs, _BRANCHES)
        slots = torch.randperm(jobs, device=device, generator=generator).int()
        steps = torch.randint(_STEPS, (jobs,), device=device, generator=generator).int()
        weights = torch.tensor([7.5, -6.0, -0.5], device=device).repeat(jobs, 1)
        # a state that neither grows nor dies over many steps
        line = torch.tensor([0.9, -0.05, 0.3 if is_noisy else 0.0, 0.05, 1.0, -0.5], device=device)
        table = line.expand(jobs, _STEPS, NUM_COEFFICIENTS).contiguous()
        seeds = torch.randint(2**62, (jobs,), device=device, generator=generator)
        state = [normal(device, generator, jobs, _CHANNELS, side, side, dtype=torch.float32) for _ in range(2)]
        return prediction, job_rows, slots, steps, weights, table, seeds, *state

    return Case(
        op="step_slots_noise" if is_noisy else "step_slots",
        shape=f"{jobs} jobs, {side}x{side} fp16",
        make=make,
        run=_step_run,
        eager=_step_noisy if is_noisy else _step_plain,
        reference=_step_reference,
        num_bytes=rows * values * _HALF + 4 * jobs * values * _SINGLE,
        tolerance=_STATE_TOLERANCE,
        rank=rank,
    )


def _step_run(*inputs: Tensor) -> tuple[Tensor, ...]:
    step_slots(*inputs)
    return inputs[-2:]


def _step_reference(*inputs: Tensor) -> tuple[Tensor, ...]:
    state = [each.double() for each in inputs[-2:]]
    step_slots_reference(*inputs[:-2], *state)
    return tuple(state)


def _step_plain(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return _step_eager(*inputs, is_noisy=False)


def _step_noisy(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return _step_eager(*inputs, is_noisy=True)


def _step_eager(
    prediction: Tensor,
    job_rows: Tensor,
    slots: Tensor,
    steps: Tensor,
    weights: Tensor,
    table: Tensor,
    seeds: Tensor,
    latents: Tensor,
    history: Tensor,
    *,
    is_noisy: bool,
) -> tuple[Tensor, Tensor]:
    """The reference asks on the host whether there is noise to add, which no graph can hold: here it is known."""
    slots, steps = slots.long(), steps.long()
    lines = table[slots, steps]
    noise = None
    if is_noisy:
        noise = philox_noise_reference(seeds[slots], steps + 1, latents[0].numel()).view(-1, *latents.shape[1:])
    guidance_step(prediction, job_rows.long(), weights[slots], lines, slots, latents, history, noise)
    return latents, history


def _noise(side: int, jobs: int, rank: int) -> Case:
    count = _CHANNELS * side * side

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        seeds, offsets = (torch.randint(2**62, (jobs,), device=device, generator=generator) for _ in range(2))
        return seeds, offsets

    return Case(
        op="philox_noise",
        shape=f"{jobs} jobs, {side}x{side} fp32",
        make=make,
        run=lambda seeds, offsets: philox_noise(seeds, offsets, count),
        eager=lambda seeds, offsets: philox_noise_reference(seeds, offsets, count),
        reference=lambda seeds, offsets: philox_noise_reference(seeds, offsets, count),
        num_bytes=jobs * (count * _SINGLE + 16),
        tolerance=TOLERANCES[torch.float32],
        rank=rank,
        rivals={
            "torch.randn (other values)": Rival(
                lambda seeds, _: torch.randn(jobs, count, device=seeds.device), is_same=False
            )
        },
    )


def _pixels_in(side: int, jobs: int, rank: int) -> Case:
    pixels = _PIXELS * side if side == _SIDES[0] else 4 * side

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randint(256, (jobs, pixels, pixels, 3), device=device, generator=generator, dtype=torch.uint8),)

    return Case(
        op="pixels_in",
        shape=f"{jobs} x {pixels}x{pixels} fp16",
        make=make,
        run=lambda bytes_: pixels_in(bytes_, torch.float16),
        eager=lambda bytes_: pixels_in_reference(bytes_, torch.float16),
        reference=lambda bytes_: pixels_in_reference(bytes_, torch.float16),
        num_bytes=jobs * pixels * pixels * 3 * (1 + _HALF),
        tolerance=TOLERANCES[torch.float16],
        rank=rank,
    )


def _pixels_out(side: int, jobs: int, rank: int) -> Case:
    pixels = _PIXELS * side if side == _SIDES[0] else 4 * side

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor]:
        return (normal(device, generator, jobs, pixels, pixels, 3).permute(0, 3, 1, 2),)

    return Case(
        op="pixels_out",
        shape=f"{jobs} x {pixels}x{pixels} fp16",
        make=make,
        run=pixels_out,
        eager=pixels_out_reference,
        reference=pixels_out_reference,
        num_bytes=jobs * pixels * pixels * 3 * (1 + _HALF),
        tolerance=TOLERANCES[torch.float16],
        rank=rank,
    )
