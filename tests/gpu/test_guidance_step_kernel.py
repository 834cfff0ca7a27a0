"""Guidance and sampler step by the kernel, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steploom_common.guidance import Branch, branch_weights
from steploom_kernels.guidance_step import NOISE, guidance_step, step_slots, step_slots_reference, step_slots_triton
from steploom_kernels.philox_noise import as_int64, philox_noise_reference

NUM_SLOTS = 6
MAX_STEPS = 4
PADDING = -1
GUARD = 1.25  # where slot -1 would be
# three branches, two, one, and both kinds of two; padding amid the jobs and at the end
JOBS = [(4, (7.5, 1.5)), (0, (3.0, 3.0)), (PADDING, None), (5, (1.0, 1.0)), (2, (2.0, 1.0)), (PADDING, None)]
STEPS = [3, 0, PADDING, 2, 1, 0]
SEEDS = [0, 1, 2**63 + 5, 3, 2**64 - 1, 77]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [
    (4, 16, 16),  # two programs a job, and nothing left over
    (4, 6, 6),  # less than a program, no vector lines up
    (4, 33, 4),  # the last of two programs is nearly empty
    (1, 2, 2),  # the least that there is
    (16, 4, 4),  # latents of a newer kind
]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Tick:
    """Slots, descriptors and prediction of one tick."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype = torch.float32, shape: tuple[int, int, int] = (4, 6, 6),
        index: torch.dtype = torch.int32, has_noise: bool = False,
    ) -> None:  # fmt: skip
        job_rows, weights, first = [], torch.zeros(NUM_SLOTS, len(Branch)), 0
        for slot, scales in JOBS:
            branches = branch_weights(*scales) if scales else {}
            where = {branch: first + number for number, branch in enumerate(branches)}
            job_rows.append([where.get(branch, first) if scales else 0 for branch in Branch])
            if scales:
                weights[slot] = torch.tensor([branches.get(branch, 0.0) for branch in Branch])
            first += len(branches)
        prediction = random(0, first, *shape).to(device, dtype).contiguous(memory_format=torch.channels_last)
        coefficients = random(1, NUM_SLOTS, MAX_STEPS, 6).to(device)
        if not has_noise:
            coefficients[:, :, NOISE] = 0.0
        coefficients[4, :, NOISE] = 0.0  # of a batch in which others add noise
        self.inputs = {
            "prediction": prediction,
            "job_rows": torch.tensor(job_rows, dtype=index, device=device),
            "job_slots": torch.tensor([slot for slot, _ in JOBS], dtype=index, device=device),
            "job_steps": torch.tensor(STEPS, dtype=index, device=device),
            "weights": weights.to(device),
            "coefficients": coefficients,
            "seeds": as_int64(SEEDS, device),
        }
        self.state = {"latents": random(2, NUM_SLOTS, *shape), "history": random(3, NUM_SLOTS, *shape)}

    def after(self, step: Callable[..., None], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Latents and history after a step of a copy of the state, and of nothing that lies before it in memory."""
        device = self.inputs["seeds"].device
        with_guard = {
            name: torch.cat([torch.full_like(value[:1], GUARD), value]).to(device, dtype)
            for name, value in self.state.items()
        }
        state = {name: value[1:] for name, value in with_guard.items()}
        inputs = {
            name: value.to(dtype) if name in ("weights", "coefficients") else value
            for name, value in self.inputs.items()
        }
        step(**inputs, **state)
        assert all((value[0] == GUARD).all() for value in with_guard.values()), "padding was written to slot -1"
        return state["latents"], state["history"]


def assert_like_the_reference(tick: Tick, tolerance: float = 4e-6) -> None:
    for found, expected in zip(
        tick.after(step_slots_triton), tick.after(step_slots_reference, torch.float64), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("has_noise", [False, True], ids=["without noise", "with noise"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tick_is_the_references(
    shape: tuple[int, int, int], dtype: torch.dtype, has_noise: bool, device: torch.device
) -> None:
    """The prediction is read, not computed: half precision costs nothing against a reference that reads the same."""
    assert_like_the_reference(Tick(device, dtype, shape, has_noise=has_noise), 1e-5 if has_noise else 4e-6)


def test_indices_may_have_64_bits(device: torch.device) -> None:
    assert_like_the_reference(Tick(device, index=torch.int64))


def test_slots_without_a_job_are_not_touched(device: torch.device) -> None:
    tick = Tick(device, has_noise=True)
    for name, value in zip(("latents", "history"), tick.after(step_slots_triton), strict=True):
        for slot in (1, 3):
            assert torch.equal(value[slot].cpu(), tick.state[name][slot])


def test_a_tick_of_padding_changes_nothing(device: torch.device) -> None:
    tick = Tick(device, has_noise=True)
    tick.inputs["job_slots"].fill_(PADDING)
    for step in (step_slots_triton, step_slots_reference):
        latents, history = tick.after(step)
        assert torch.equal(latents.cpu(), tick.state["latents"])
        assert torch.equal(history.cpu(), tick.state["history"])


def test_a_job_that_overflows_leaves_its_neighbours_alone(device: torch.device) -> None:
    tick = Tick(device, has_noise=True)
    tick.inputs["prediction"][0] = torch.nan  # of the job in slot 4
    latents, history = tick.after(step_slots_triton)
    assert latents[4].isnan().all()
    others = [slot for slot in range(NUM_SLOTS) if slot != 4]
    assert latents[others].isfinite().all()
    assert history[others].isfinite().all()


def test_noise_is_that_of_the_slots_seed_and_the_next_offset(device: torch.device) -> None:
    tick = Tick(device, has_noise=True)
    silent = Tick(device)
    added = (tick.after(step_slots_triton)[0] - silent.after(step_slots_triton)[0]).cpu()
    for (slot, _), step in zip(JOBS, STEPS, strict=True):
        if slot != PADDING:
            noise = philox_noise_reference(as_int64([SEEDS[slot]]), as_int64([step + 1]), added[0].numel())
            expected = tick.inputs["coefficients"][slot, step, NOISE].cpu() * noise.view(added[0].shape)
            torch.testing.assert_close(added[slot], expected, rtol=0, atol=2e-5)


def test_a_jobs_result_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    tick = Tick(device, has_noise=True)
    together = tick.after(step_slots_triton)
    for name in ("job_rows", "job_slots", "job_steps"):
        tick.inputs[name] = tick.inputs[name][3:4].contiguous()  # the job in slot 5
    alone = tick.after(step_slots_triton)
    assert all(torch.equal(one[5], many[5]) for one, many in zip(alone, together, strict=True))


def test_the_reference_is_the_equation_over_what_each_job_needs(device: torch.device) -> None:
    tick = Tick(device)
    latents, history = tick.after(step_slots)
    slots, steps = [4, 0, 5, 2], [3, 0, 2, 1]
    state = {name: value.to(device, copy=True) for name, value in tick.state.items()}
    guidance_step(
        tick.inputs["prediction"],
        tick.inputs["job_rows"][[0, 1, 3, 4]].long(),
        tick.inputs["weights"][slots],
        tick.inputs["coefficients"][slots, steps],
        torch.tensor(slots, device=device),
        **state,
    )
    torch.testing.assert_close(latents, state["latents"], rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(history, state["history"], rtol=2e-6, atol=4e-6)


def test_no_job_is_no_launch(device: torch.device) -> None:
    tick = Tick(device)
    for name in ("job_rows", "job_slots", "job_steps"):
        tick.inputs[name] = tick.inputs[name][:0]
    assert torch.equal(tick.after(step_slots_triton)[0].cpu(), tick.state["latents"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("prediction", lambda t: t.contiguous(), "prediction must be channels last"),
        ("prediction", lambda t: t.double(), "prediction is torch.float64"),
        ("prediction", lambda t: t[:, :2], r"prediction is \[8, 2, 6, 6\], must be \[any, 4, 6, 6\]"),
        ("job_rows", lambda t: t[:, :2], r"job_rows is \[6, 2\], must be \[6, 3\]"),
        ("job_slots", lambda t: t.short(), "job_slots is torch.int16"),
        ("job_steps", lambda t: t[:2], r"job_steps is \[2\], must be \[6\]"),
        ("weights", lambda t: t[:2], r"weights is \[2, 3\], must be \[6, 3\]"),
        ("coefficients", lambda t: t[..., :5], r"coefficients is \[6, 4, 5\], must be \[6, any, 6\]"),
        ("seeds", lambda t: t.int(), "seeds is torch.int32"),
        ("latents", lambda t: t.double(), "latents is torch.float64"),
        ("latents", lambda t: t[:, :3].contiguous(), "latents has 3 channels, must be a power of two"),
        ("latents", lambda t: t[:, :, :, :5].contiguous(), "latents has 6 x 5 pixels, must be a multiple of 4"),
        ("history", lambda t: t.permute(0, 1, 3, 2), "history must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, change: Callable[[Tensor], Tensor], message: str, device: torch.device
) -> None:
    tick = Tick(device)
    arguments = tick.inputs | {part: value.to(device) for part, value in tick.state.items()}
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match=message):
        step_slots_triton(**arguments)
