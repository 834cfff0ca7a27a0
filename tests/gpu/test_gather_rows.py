"""Rows gathered by kernels, against the references. Nothing is computed, so all is equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor

from steploom_kernels.gather_rows import (
    FULL,
    IMAGE,
    NO_ADAPTER,
    NONE,
    RowScalars,
    SlotScalars,
    gather_rows,
    gather_rows_reference,
    gather_rows_triton,
    gather_scalars,
    gather_tick,
    gather_tick_triton,
)

NUM_SLOTS = 5
MAX_STEPS = 7
PADDING = -1
# a guided job, padding amid the rows, a job of two branches, a student's single row, and padding at the end
ROWS = [(3, FULL), (3, IMAGE), (3, NONE), (PADDING, NONE), (0, FULL), (0, NONE), (4, FULL), (PADDING, FULL)]
STEPS = [6, 6, 6, 0, 2, 2, 0, PADDING]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [
    (4, 16, 16),  # two programs a row, and nothing left over
    (4, 5, 5),  # odd: no vector of pixels lines up
    (1, 3, 50),  # the last of two programs is nearly empty
    (16, 4, 4),  # latents of a newer kind
]
TEXTS = [(77, 16), (7, 3)]  # more than a program; odd


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


class Tick:
    """Slots, descriptors and poisoned outputs of one tick."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype = torch.float16, shape: tuple[int, int, int] = (4, 5, 5),
        text_shape: tuple[int, int] = (7, 3), index: torch.dtype = torch.int32, rows: list[tuple[int, int]] = ROWS,
    ) -> None:  # fmt: skip
        channels, height, width = shape
        self.latents = random(0, NUM_SLOTS, *shape).to(device)
        self.image_latents = random(1, NUM_SLOTS + 1, *shape).to(device, dtype)
        self.image_latents[-1] = 0.0
        self.text = random(2, NUM_SLOTS + 1, *text_shape).to(device, dtype)
        slots, branches = zip(*rows, strict=True)
        self.row_slots = torch.tensor(slots, dtype=index, device=device)
        self.row_branches = torch.tensor(branches, dtype=index, device=device)
        self.row_steps = torch.tensor(STEPS[: len(rows)], dtype=index, device=device)
        self.slots = SlotScalars(
            random(3, NUM_SLOTS, MAX_STEPS).to(device),
            torch.tensor([2, 0, 1, NO_ADAPTER, 1], dtype=torch.int32, device=device),
            random(4, NUM_SLOTS).to(device),
            random(5, NUM_SLOTS, 2).to(device),
        )
        sample = poisoned(len(rows), height, width, 2 * channels, dtype=dtype, device=device).permute(0, 3, 1, 2)
        self.out = sample, poisoned(len(rows), *text_shape, dtype=dtype, device=device)
        self.scalars = RowScalars(
            poisoned(len(rows), dtype=torch.float32, device=device),
            torch.full((len(rows),), 99, dtype=torch.int32, device=device),
            poisoned(len(rows), dtype=torch.float32, device=device),
            poisoned(len(rows), 2, dtype=torch.float32, device=device),
        )

    @property
    def gathered(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.latents, self.image_latents, self.text, self.row_slots, self.row_branches

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, SlotScalars, Tensor, Tensor, Tensor]:
        return (
            self.latents, self.image_latents, self.text, self.slots, self.row_slots, self.row_branches, self.row_steps,
        )  # fmt: skip


def assert_rows(tick: Tick, sample: Tensor, context: Tensor, device: torch.device) -> None:
    expected = gather_rows_reference(*tick.gathered)
    assert sample.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sample, expected[0], rtol=cast_error(tick.text.dtype, device), atol=0)
    torch.testing.assert_close(context, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_the_references(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    tick = Tick(device, dtype, shape)
    gather_rows_triton(*tick.gathered, out=tick.out)
    assert_rows(tick, *tick.out, device)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("text_shape", TEXTS)
def test_text_is_the_references(text_shape: tuple[int, int], index: torch.dtype, device: torch.device) -> None:
    tick = Tick(device, text_shape=text_shape, index=index)
    assert_rows(tick, *gather_rows_triton(*tick.gathered), device)


def test_many_rows_take_the_large_blocks(device: torch.device) -> None:
    """Above 8 rows a program copies more text."""
    tick = Tick(device, text_shape=(77, 16), rows=[*ROWS, (2, FULL), (2, IMAGE)])
    assert_rows(tick, *gather_rows_triton(*tick.gathered), device)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_a_tick_gathers_rows_and_their_numbers(index: torch.dtype, device: torch.device) -> None:
    tick = Tick(device, shape=(4, 16, 16), index=index)
    gather_tick_triton(*tick.arguments, out=(*tick.out, tick.scalars))
    assert_rows(tick, *tick.out, device)
    for name, value, expected in zip(
        RowScalars._fields, tick.scalars, gather_scalars(tick.slots, tick.row_slots, tick.row_steps), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=name)


def test_padding_is_the_empty_row(device: torch.device) -> None:
    tick = Tick(device)
    gather_tick_triton(*tick.arguments, out=(*tick.out, tick.scalars))
    sample, context = tick.out
    for row in (3, 7):
        assert (sample[row] == 0.0).all()
        assert torch.equal(context[row], tick.text[-1])
        assert [float(part[row]) for part in tick.scalars[:3]] == [0.0, NO_ADAPTER, 0.0]
        assert tick.scalars.scales[row].tolist() == [1.0, 1.0], "their logarithm is taken"


def test_a_row_does_not_see_an_overflow_beside_it(device: torch.device) -> None:
    tick = Tick(device)
    tick.latents[3] = torch.nan
    sample, _ = gather_rows_triton(*tick.gathered)
    assert sample[:3, :4].isnan().all()
    assert sample[3:].isfinite().all()


@pytest.mark.parametrize("is_static", [False, True], ids=["new tensors", "static buffers"])
def test_numbers_by_slot_and_step(is_static: bool, device: torch.device) -> None:
    tick = Tick(device)
    result = gather_scalars(tick.slots, tick.row_slots, tick.row_steps, out=tick.scalars if is_static else None)
    rows = tick.scalars if is_static else result
    for row, ((slot, _), step) in enumerate(zip(ROWS, STEPS, strict=True)):
        if slot == PADDING:
            wanted = [0.0, NO_ADAPTER, 0.0, 1.0, 1.0]
        else:
            slots = tick.slots
            wanted = [*(part[slot].item() for part in (slots.timesteps[:, step], slots.adapters, slots.gates))]
            wanted += slots.scales[slot].tolist()
        found = [rows.timesteps[row], rows.adapters[row], rows.gates[row], *rows.scales[row]]
        assert [float(value) for value in found] == wanted


def test_the_public_operations_fill_static_buffers(device: torch.device) -> None:
    tick = Tick(device)
    gather_tick(*tick.arguments, out=(*tick.out, tick.scalars))
    assert_rows(tick, *tick.out, device)
    assert tick.scalars.timesteps.isfinite().all()
    again = Tick(device)
    sample, context = gather_rows(*again.gathered, out=again.out)
    assert sample is again.out[0]
    assert_rows(again, sample, context, device)


def test_no_row_is_no_launch(device: torch.device) -> None:
    none = torch.empty(0, dtype=torch.int32, device=device)
    tick = Tick(device)
    sample, context = gather_rows_triton(tick.latents, tick.image_latents, tick.text, none, none)
    assert (len(sample), len(context)) == (0, 0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("latents", lambda t: t.half(), "latents is torch.float16, must be torch.float32"),
        ("latents", lambda t: t.permute(0, 1, 3, 2), "latents must be contiguous"),
        ("latents", lambda t: t[:, :3].contiguous(), "latents has 3 channels, must be a power of two"),
        ("image_latents", lambda t: t[:-1], r"image_latents is \[5, 4, 5, 5\], must be \[6, 4, 5, 5\]"),
        ("image_latents", lambda t: t.double(), "image_latents is torch.float64"),
        ("text", lambda t: t[1:], r"text is \[5, 7, 3\], must be \[6, any, any\]"),
        ("row_slots", lambda t: t.float(), "row_slots is torch.float32"),
        ("row_slots", lambda t: t[:, None], r"row_slots is \[8, 1\], must be \[any\]"),
        ("row_branches", lambda t: t[:3], r"row_branches is \[3\], must be \[8\]"),
        ("row_steps", lambda t: t[::2], r"row_steps is \[4\], must be \[8\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    name: str, change: Callable[[Tensor], Tensor], message: str, device: torch.device
) -> None:
    tick = Tick(device)
    setattr(tick, name, change(getattr(tick, name)))
    with pytest.raises(ValueError, match=message):
        gather_tick_triton(*tick.arguments, out=(*tick.out, tick.scalars))


def test_outputs_that_do_not_fit_are_refused(device: torch.device) -> None:
    tick = Tick(device)
    sample, context = tick.out
    with pytest.raises(ValueError, match="sample must be channels last"):
        gather_rows_triton(*tick.gathered, out=(sample.contiguous(), context))
    with pytest.raises(ValueError, match=r"sample is torch.float32, must be torch.float16"):
        gather_rows_triton(*tick.gathered, out=(sample.float(), context))
    with pytest.raises(ValueError, match=r"context is \[3, 7, 3\], must be \[8, 7, 3\]"):
        gather_rows_triton(*tick.gathered, out=(sample, context[:3]))
    scalars = tick.scalars._replace(scales=tick.scalars.scales[:, :1])
    with pytest.raises(ValueError, match=r"out's scales is \[8, 1\], must be \[8, 2\]"):
        gather_tick_triton(*tick.arguments, out=(sample, context, scalars))
    tick.slots = tick.slots._replace(adapters=tick.slots.adapters.long())
    with pytest.raises(ValueError, match=r"slots.adapters is torch.int64, must be torch.int32"):
        gather_tick_triton(*tick.arguments, out=(sample, context, tick.scalars))
