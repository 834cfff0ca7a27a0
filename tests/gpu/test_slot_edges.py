"""What encode and decode ticks move between slots and networks, by kernels, against the references."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor

from steploom_kernels.are_finite import are_finite, are_finite_reference, are_finite_triton
from steploom_kernels.philox_noise import as_int64
from steploom_kernels.slot_edges import (
    gather_latents,
    gather_latents_triton,
    put_text,
    put_text_triton,
    start_slots_reference,
    start_slots_triton,
)

NUM_SLOTS = 5
JOB_SLOTS = [3, -1, 0, 4, -1]  # padding amid the jobs and at the end
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [
    (4, 16, 16),  # two programs a job, and nothing left over
    (4, 10, 14),  # the second program is nearly empty
    (1, 2, 2),  # one block of noise
    (16, 4, 4),  # latents of a newer kind
]
NOISE_TOLERANCE = 4e-6 * 14.6  # of the noise itself, times the largest scale


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_jobs_start_with_their_noise_and_their_picture(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], index: torch.dtype
) -> None:
    encoded = channels_last(random(0, len(JOB_SLOTS), *shape).to(device, dtype))
    slots = torch.tensor(JOB_SLOTS, dtype=index, device=device)
    seeds = as_int64([1, 2**63 + 5, 2**64 - 1, 7, 2**40], device)
    scales = torch.tensor([1.0, 2.0, 3.0, 14.6, 0.5], device=device)
    states = []
    for run in (start_slots_triton, start_slots_reference):
        image = torch.full((NUM_SLOTS + 1, *shape), 7.0, dtype=dtype, device=device)
        latents, history = (torch.full((NUM_SLOTS, *shape), value, device=device) for value in (8.0, 9.0))
        run(encoded, slots, seeds, scales, image, latents, history)
        states.append((image, latents, history))
    (image, latents, history), (known, expected, zero) = states
    assert torch.equal(image, known)
    assert torch.equal(history, zero)
    torch.testing.assert_close(latents, expected, rtol=0, atol=NOISE_TOLERANCE)
    assert (latents[[1, 2]] == 8.0).all()
    assert (image[[1, 2, 5]] == 7.0).all()
    assert float(latents[3].std()) > float(latents[0].std())  # by its scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", [(77, 32), (7, 3)])  # more than a program; odd
def test_text_goes_to_the_slots_of_its_jobs_alone(
    device: torch.device, dtype: torch.dtype, text: tuple[int, int]
) -> None:
    states = random(1, len(JOB_SLOTS), *text).to(device, dtype)
    slots = torch.tensor(JOB_SLOTS, dtype=torch.int32, device=device)
    before = torch.full((NUM_SLOTS + 1, *text), torch.nan, dtype=dtype, device=device)
    after = before.clone()
    put_text_triton(states, slots, after)
    for job, slot in enumerate(JOB_SLOTS):
        if slot >= 0:
            assert torch.equal(after[slot], states[job])
    assert after[[1, 2, 5]].isnan().all()
    put_text(states.cpu(), slots.cpu(), reference := before.cpu())
    torch.testing.assert_close(after.cpu(), reference, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_decoder_gets_the_latents_of_jobs_and_zeros(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    latents = random(2, NUM_SLOTS, *shape)
    slots = torch.tensor(JOB_SLOTS, dtype=torch.int32)
    out = channels_last(torch.full((len(JOB_SLOTS), *shape), torch.nan, dtype=dtype))
    expected = gather_latents(latents, slots, out.clone())
    got = gather_latents_triton(latents.to(device), slots.to(device), out.to(device))
    torch.testing.assert_close(got.cpu(), expected, rtol=cast_error(dtype, device), atol=0)
    assert (expected[[1, 4]] == 0.0).all()
    assert torch.equal(expected[0], latents[3].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 4096, 10_000])  # one value; one turn; more, and not whole
def test_a_row_with_one_bad_value_is_told_from_the_others(device: torch.device, dtype: torch.dtype, count: int) -> None:
    largest = torch.finfo(dtype).max
    values = random(3, 7, count).to(dtype)
    values[0, 0] = torch.nan
    values[1, count // 2] = torch.inf
    values[2, count - 1] = -torch.inf
    values[3, 0], values[4, count - 1] = largest, -largest
    out = torch.ones(7, dtype=torch.bool, device=device)
    out[3:] = False
    got = are_finite_triton(values.to(device), out)
    assert got.data_ptr() == out.data_ptr()
    assert got.tolist() == [False] * 3 + [True] * 4 == are_finite_reference(values).tolist()
    assert are_finite(values).tolist() == got.tolist()


def test_what_cannot_be_launched_is_refused(device: torch.device) -> None:
    slots = torch.zeros(1, dtype=torch.int32, device=device)
    odd = torch.zeros(2, 4, 3, 3, device=device)
    with pytest.raises(ValueError, match="pixels, must be a multiple of 4"):
        gather_latents_triton(odd, slots, channels_last(torch.zeros(1, 4, 3, 3, device=device)))
    with pytest.raises(ValueError, match="channels, must be a power of two"):
        gather_latents_triton(odd[:, :3].contiguous(), slots, channels_last(torch.zeros(1, 3, 3, 3, device=device)))
    state = torch.zeros(2, 4, 4, 4, device=device)
    with pytest.raises(ValueError, match="channels last"):
        gather_latents_triton(state, slots, torch.zeros(1, 4, 4, 4, device=device))
