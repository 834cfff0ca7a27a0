"""What moves between the slots of jobs and the networks at both ends of a job's course, and the look at results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steploom_kernels.are_finite import are_finite, are_finite_reference
from steploom_kernels.bench.case import TOLERANCES, Case
from steploom_kernels.bench.shapes import normal
from steploom_kernels.slot_edges import gather_latents, put_text, start_slots, start_slots_reference

_JOBS = (1, 4)
_CHANNELS, _SIDE = 4, 64  # of Stable Diffusion's latents
_TEXT = (77, 768)  # tokens and width of its text states
_SINGLE, _HALF = 4, 2  # bytes


def cases() -> Iterator[Case]:
    """For one job and for several; and for the rows of some jobs."""
    for jobs in _JOBS:
        yield _start(jobs)
        yield _text(jobs)
        yield _gather(jobs)
    for rows, count in ((1, _CHANNELS * _SIDE**2), (12, _CHANNELS * _SIDE**2), (1, 3 * 512**2)):
        yield _finite(rows, count)


def _order(jobs: int, device: torch.device, generator: torch.Generator) -> Tensor:
    return torch.randperm(jobs, device=device, generator=generator).int()


def _start(jobs: int) -> Case:
    values = _CHANNELS * _SIDE**2

    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        encoded = normal(device, generator, jobs, _SIDE, _SIDE, _CHANNELS).permute(0, 3, 1, 2)
        seeds = torch.randint(2**62, (jobs,), device=device, generator=generator)
        scales = torch.rand(jobs, device=device, generator=generator)
        image = encoded.new_zeros(jobs + 1, _CHANNELS, _SIDE, _SIDE)
        state = [torch.ones(jobs, _CHANNELS, _SIDE, _SIDE, device=device) for _ in range(2)]
        return encoded, _order(jobs, device, generator), seeds, scales, image, *state

    return Case(
        op="start_slots",
        shape=f"{jobs} jobs, {_SIDE}x{_SIDE} fp16",
        make=make,
        run=lambda *inputs: _changed(start_slots, inputs),
        eager=lambda *inputs: _changed(start_slots_reference, inputs),
        reference=lambda *inputs: _changed(start_slots_reference, inputs),
        num_bytes=jobs * values * 2 * (_SINGLE + _HALF),
        tolerance=TOLERANCES[torch.float32],
        rank=4,
    )


def _changed(run: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    run(*inputs)
    return inputs[-3:]


def _text(jobs: int) -> Case:
    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        states = normal(device, generator, jobs, *_TEXT)
        return states, _order(jobs, device, generator), states.new_zeros(jobs + 1, *_TEXT)

    def run(states: Tensor, slots: Tensor, text: Tensor) -> Tensor:
        put_text(states, slots, text)
        return text

    def eager(states: Tensor, slots: Tensor, text: Tensor) -> Tensor:
        text[slots.long()] = states
        return text

    return Case(
        op="put_text",
        shape=f"{jobs} x {_TEXT[0]}x{_TEXT[1]} fp16",
        make=make,
        run=run,
        eager=eager,
        reference=eager,
        num_bytes=2 * jobs * _TEXT[0] * _TEXT[1] * _HALF,
        tolerance=0.0,
        rank=4,
    )


def _gather(jobs: int) -> Case:
    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
        latents = normal(device, generator, jobs, _CHANNELS, _SIDE, _SIDE, dtype=torch.float32)
        out = latents.new_zeros(jobs, _SIDE, _SIDE, _CHANNELS, dtype=torch.float16).permute(0, 3, 1, 2)
        return latents, _order(jobs, device, generator), out

    def eager(latents: Tensor, slots: Tensor, out: Tensor) -> Tensor:
        return out.copy_(latents[slots.long()])

    return Case(
        op="gather_latents",
        shape=f"{jobs} jobs, {_SIDE}x{_SIDE} fp16",
        make=make,
        run=gather_latents,
        eager=eager,
        reference=eager,
        num_bytes=jobs * _CHANNELS * _SIDE**2 * (_SINGLE + _HALF),
        tolerance=TOLERANCES[torch.float16],
        rank=4,
    )


def _finite(rows: int, count: int) -> Case:
    def make(device: torch.device, generator: torch.Generator) -> tuple[Tensor]:
        return (normal(device, generator, rows, count),)

    return Case(
        op="are_finite",
        shape=f"{rows} x {count} fp16",
        make=make,
        run=lambda values: are_finite(values).float(),
        eager=lambda values: are_finite_reference(values).float(),
        reference=lambda values: are_finite_reference(values).float(),
        num_bytes=rows * count * _HALF,
        tolerance=0.0,
        rank=4,
    )
