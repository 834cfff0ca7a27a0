"""Guidance and sampler update against a loop over jobs in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steploom_common.guidance import Branch, branch_weights
from steploom_kernels import gather_rows as rows
from steploom_kernels.guidance_step import guidance_step

SHAPE = (4, 3, 5)  # odd sides: no tile fits
SLOTS = 6


def arrays(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def test_each_job_gets_its_own_coefficients_and_weights() -> None:
    scales = [(7.5, 1.5), (3.0, 3.0), (1.0, 1.0), (2.0, 1.0)]
    slots = [4, 0, 5, 2]
    prediction, coefficients = arrays(0, 8, *SHAPE), arrays(1, 4, 6)
    latents, history, noise = arrays(2, SLOTS, *SHAPE), arrays(3, SLOTS, *SHAPE), arrays(4, 4, *SHAPE)
    old, old_history = latents.clone(), history.clone()
    job_rows, weights, first = [], [], 0
    expected = {}
    for job, (text, picture) in enumerate(scales):
        branches = branch_weights(text, picture)
        where = {branch: first + index for index, branch in enumerate(branches)}
        job_rows.append([where.get(branch, first) for branch in Branch])
        weights.append([branches.get(branch, 0.0) for branch in Branch])
        first += len(branches)
        guided = sum(weight * prediction[where[branch]] for branch, weight in branches.items())
        a, b, c, h, p, q = coefficients[job]
        slot = slots[job]
        expected[slot] = (
            a * old[slot] + b * guided + c * noise[job] + h * old_history[slot],
            p * old[slot] + q * guided,
        )
    assert first == 8
    guidance_step(
        prediction,
        torch.tensor(job_rows),
        torch.tensor(weights),
        coefficients,
        torch.tensor(slots),
        latents,
        history,
        noise,
    )
    for slot in range(SLOTS):
        wanted = expected.get(slot, (old[slot], old_history[slot]))
        torch.testing.assert_close(latents[slot], wanted[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(history[slot], wanted[1], rtol=1e-5, atol=1e-5)


def test_a_job_that_overflows_leaves_its_neighbours_alone() -> None:
    prediction = arrays(0, 2, *SHAPE)
    prediction[0] = torch.nan
    latents, history = arrays(1, 2, *SHAPE), torch.zeros(2, *SHAPE)
    guidance_step(
        prediction,
        torch.tensor([[0, 0, 0], [1, 1, 1]]),
        torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
        arrays(2, 2, 6),
        torch.tensor([0, 1]),
        latents,
        history,
    )
    assert latents[0].isnan().all()
    assert latents[1].isfinite().all()
    assert history[1].isfinite().all()


def test_branch_numbers_are_those_of_the_guidance_module() -> None:
    assert (rows.FULL, rows.IMAGE, rows.NONE) == (Branch.FULL, Branch.IMAGE, Branch.NONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_expands_branches(dtype: torch.dtype) -> None:
    latents = arrays(0, SLOTS, *SHAPE)
    image_latents, text = arrays(1, SLOTS + 1, *SHAPE).to(dtype), arrays(2, SLOTS + 1, 7, 9).to(dtype)
    image_latents[-1] = 0.0
    slots, branches = [3, 3, 3, 1, 0], [rows.FULL, rows.IMAGE, rows.NONE, rows.FULL, rows.NONE]
    sample, context = rows.gather_rows(latents, image_latents, text, torch.tensor(slots), torch.tensor(branches))
    assert sample.dtype == context.dtype == dtype
    assert sample.is_contiguous(memory_format=torch.channels_last)
    for row, (slot, branch) in enumerate(zip(slots, branches, strict=True)):
        picture = torch.zeros(SHAPE, dtype=dtype) if branch == rows.NONE else image_latents[slot]
        torch.testing.assert_close(sample[row], torch.cat([latents[slot].to(dtype), picture]), rtol=0, atol=0)
        torch.testing.assert_close(context[row], text[slot if branch == rows.FULL else -1], rtol=0, atol=0)
