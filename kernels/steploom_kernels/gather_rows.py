"""Slots to UNet input rows: each job of a tick becomes one row for each branch of its guidance.

On a GPU everything that differs between ticks is data: which slot, branch and step a row is of are small tensors on the
device, so that one captured graph serves any set of jobs. A row whose slot is negative is padding: it gets zero latents
and the empty conditions, which every network answers with finite numbers, and it reads no job's memory.

Two launches. One makes the UNet's input and the numbers of each row: a program takes a run of pixels, reads the planes
of the slot's channels (float32, contiguous along pixels) and writes whole pixels, noisy channels beside the picture's:
16 bytes a thread for four channels in half precision. The other copies text states, and nothing but the memory's
speed limits it; the empty instruction, which most rows of a guided tick read, comes from the cache.
"""

from __future__ import annotations

from typing import NamedTuple

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

# What a row is conditioned on. The order is that of the weights in `guidance_step`.
FULL = 0  # instruction and picture
IMAGE = 1  # picture alone
NONE = 2  # neither

NO_ADAPTER = -1


class SlotScalars(NamedTuple):
    """Numbers that the UNet takes beside pictures and text, by slot."""

    timesteps: Tensor  # float32 [slots, max_steps]
    adapters: Tensor  # int32 [slots], an adapter's number or NO_ADAPTER
    gates: Tensor  # float32 [slots], how far the adapter counts
    scales: Tensor  # float32 [slots, 2], text and picture guidance


class RowScalars(NamedTuple):
    """The same by row. A padding row has timestep 0, NO_ADAPTER, gate 0 and both scales 1."""

    timesteps: Tensor  # float32 [rows]
    adapters: Tensor  # int32 [rows]
    gates: Tensor  # float32 [rows]
    scales: Tensor  # float32 [rows, 2]


def gather_rows(
    latents: Tensor,
    image_latents: Tensor,
    text: Tensor,
    row_slots: Tensor,
    row_branches: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The UNet's input and the text condition of each row (arXiv 2211.09800, section 3.2).

    Args:
        latents: [slots, channels, h, w].
        image_latents: [slots + 1, channels, h, w]; the last entry is the empty picture, zeros.
        text: [slots + 1, tokens, width]; the last entry is the empty instruction.
        row_slots: int32 or int64 [rows], the slot of each row, or -1 for padding.
        row_branches: int32 or int64 [rows], FULL, IMAGE or NONE.
        out: where to put sample and context, or None for new tensors.

    Returns:
        sample: [rows, 2 * channels, h, w], channels last in memory, of the type of `image_latents`.
        context: [rows, tokens, width].

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(latents):
        return gather_rows_triton(latents, image_latents, text, row_slots, row_branches, out=out)
    rows = gather_rows_reference(latents, image_latents, text, row_slots, row_branches)
    return rows if out is None else (out[0].copy_(rows[0]), out[1].copy_(rows[1]))


def gather_scalars(
    slots: SlotScalars, row_slots: Tensor, row_steps: Tensor, *, out: RowScalars | None = None
) -> RowScalars:
    """The numbers of each row. On a GPU `gather_tick` does it in the launch that makes the UNet's input.

    Args:
        slots: of all slots.
        row_slots: int32 or int64 [rows], or -1 for padding.
        row_steps: int32 or int64 [rows], the index of the step that the row's job takes.
        out: where to put them, or None for new tensors.
    """
    is_job = row_slots >= 0
    index, step = row_slots.clamp(min=0).long(), row_steps.clamp(min=0).long()
    rows = RowScalars(
        torch.where(is_job, slots.timesteps[index, step], 0.0),
        torch.where(is_job, slots.adapters[index], NO_ADAPTER),
        torch.where(is_job, slots.gates[index], 0.0),
        torch.where(is_job[:, None], slots.scales[index], 1.0),
    )
    return rows if out is None else RowScalars(*(into.copy_(item) for into, item in zip(out, rows, strict=True)))


def gather_tick(
    latents: Tensor,
    image_latents: Tensor,
    text: Tensor,
    slots: SlotScalars,
    row_slots: Tensor,
    row_branches: Tensor,
    row_steps: Tensor,
    *,
    out: tuple[Tensor, Tensor, RowScalars],
) -> None:
    """`gather_rows` and `gather_scalars` at once, into buffers that a graph was captured with.

    Raises:
        ValueError: on a GPU, an argument is of another shape, type or layout.
    """
    if runs_on_triton(latents):
        gather_tick_triton(latents, image_latents, text, slots, row_slots, row_branches, row_steps, out=out)
    else:
        gather_rows(latents, image_latents, text, row_slots, row_branches, out=out[:2])
        gather_scalars(slots, row_slots, row_steps, out=out[2])


def gather_rows_reference(
    latents: Tensor, image_latents: Tensor, text: Tensor, row_slots: Tensor, row_branches: Tensor
) -> tuple[Tensor, Tensor]:
    """`gather_rows` in plain torch."""
    empty = latents.shape[0]
    is_job = row_slots >= 0
    image_index = torch.where(is_job & (row_branches != NONE), row_slots, empty)
    text_index = torch.where(is_job & (row_branches == FULL), row_slots, empty)
    noisy = latents[row_slots.clamp(min=0)].to(image_latents.dtype)
    noisy.masked_fill_(~is_job[:, None, None, None], 0.0)
    sample = torch.cat([noisy, image_latents[image_index]], dim=1)
    return sample.contiguous(memory_format=torch.channels_last), text[text_index]


_PIXELS = 128  # a program of the first launch: one pixel a thread


def gather_rows_triton(
    latents: Tensor,
    image_latents: Tensor,
    text: Tensor,
    row_slots: Tensor,
    row_branches: Tensor,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`gather_rows` as two launches."""
    rows = len(row_slots)
    if out is None:
        shape = rows, 2 * latents.shape[1], *latents.shape[2:]
        sample = torch.empty(shape, dtype=image_latents.dtype, device=latents.device, memory_format=torch.channels_last)
        out = sample, text.new_empty(rows, *text.shape[1:])
    _check_rows(latents, image_latents, text, row_slots, row_branches, out)
    _launch_samples(latents, image_latents, row_slots, row_branches, out[0])
    _launch_text(text, row_slots, row_branches, out[1], len(latents))
    return out


def gather_tick_triton(
    latents: Tensor,
    image_latents: Tensor,
    text: Tensor,
    slots: SlotScalars,
    row_slots: Tensor,
    row_branches: Tensor,
    row_steps: Tensor,
    *,
    out: tuple[Tensor, Tensor, RowScalars],
) -> None:
    """`gather_tick` as two launches."""
    _check_rows(latents, image_latents, text, row_slots, row_branches, out[:2])
    _check_scalars(slots, row_steps, out[2], len(latents), len(row_slots))
    _launch_samples(latents, image_latents, row_slots, row_branches, out[0], slots, row_steps, out[2])
    _launch_text(text, row_slots, row_branches, out[1], len(latents))


def _launch_samples(
    latents: Tensor,
    image_latents: Tensor,
    row_slots: Tensor,
    row_branches: Tensor,
    sample: Tensor,
    slots: SlotScalars | None = None,
    row_steps: Tensor | None = None,
    scalars: RowScalars | None = None,
) -> None:
    num_slots, channels, height, width = latents.shape
    rows, pixels = len(row_slots), height * width
    if not rows:
        return
    max_steps = slots.timesteps.shape[1] if slots else 0
    _gather_samples_kernel[(cdiv(pixels, _PIXELS), rows)](
        sample, *(scalars or [None] * 4), latents, image_latents, *(slots or [None] * 4),
        row_slots, row_branches, row_steps, num_slots, pixels, max_steps,
        channels=channels, block=_PIXELS, has_scalars=slots is not None, num_warps=4,
    )  # fmt: skip


def _launch_text(text: Tensor, row_slots: Tensor, row_branches: Tensor, context: Tensor, num_slots: int) -> None:
    rows, count = len(row_slots), text[0].numel()
    if rows:
        block = _text_plan(rows)
        _gather_text_kernel[(cdiv(count, block), rows)](
            context, text, row_slots, row_branches, num_slots, count, block=block, num_warps=4
        )


def _text_plan(rows: int) -> int:
    """Values a program of 128 threads copies: few rows are spread over all of the chip, many take more a thread."""
    return 1024 if rows <= 8 else 4096


def _check_rows(
    latents: Tensor,
    image_latents: Tensor,
    text: Tensor,
    row_slots: Tensor,
    row_branches: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    require_array("latents", latents, [torch.float32], None, None, None, None)
    num_slots, channels, height, width = latents.shape
    if channels & (channels - 1):
        raise ValueError(f"latents has {channels} channels, must be a power of two")
    require_array("image_latents", image_latents, NETWORK_TYPES, num_slots + 1, channels, height, width)
    require_indices("row_slots", row_slots, None)
    require_indices("row_branches", row_branches, len(row_slots))
    sample, context = out
    require_shape("sample", sample, len(row_slots), 2 * channels, height, width)
    require_dtype("sample", sample, image_latents.dtype)
    require_channels_last("sample", sample)
    require_array("text", text, NETWORK_TYPES, num_slots + 1, None, None)
    require_array("context", context, [text.dtype], len(row_slots), *text.shape[1:])


def _check_scalars(slots: SlotScalars, row_steps: Tensor, out: RowScalars, num_slots: int, rows: int) -> None:
    require_indices("row_steps", row_steps, rows)
    for name, dtype, by_slot, by_row in (
        ("timesteps", torch.float32, (num_slots, None), (rows,)),
        ("adapters", torch.int32, (num_slots,), (rows,)),
        ("gates", torch.float32, (num_slots,), (rows,)),
        ("scales", torch.float32, (num_slots, 2), (rows, 2)),
    ):
        require_array(f"slots.{name}", getattr(slots, name), [dtype], *by_slot)
        require_array(f"out's {name}", getattr(out, name), [dtype], *by_row)


@jit
def _gather_samples_kernel(
    sample: tl.tensor,
    out_timesteps: tl.tensor,
    out_adapters: tl.tensor,
    out_gates: tl.tensor,
    out_scales: tl.tensor,
    latents: tl.tensor,
    image_latents: tl.tensor,
    timesteps: tl.tensor,
    adapters: tl.tensor,
    gates: tl.tensor,
    scales: tl.tensor,
    row_slots: tl.tensor,
    row_branches: tl.tensor,
    row_steps: tl.tensor,
    num_slots: tl.tensor,
    pixels: tl.tensor,
    max_steps: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
    has_scalars: tl.constexpr,
) -> None:
    row = tl.program_id(1)
    slot = tl.load(row_slots + row).to(tl.int64)
    branch = tl.load(row_branches + row)
    is_job = slot >= 0
    picture = tl.where(is_job & (branch != 2), slot, num_slots)  # NONE

    pixel = tl.program_id(0) * block + tl.arange(0, block)
    inside = pixel < pixels
    is_drawn = pixel < tl.where(is_job, pixels, 0)  # nowhere in padding
    plane = tl.arange(0, channels)[None, :] * pixels + pixel[:, None]
    size = channels * pixels
    noisy = tl.load(latents + slot * size + plane, mask=is_drawn[:, None], other=0.0)
    known = tl.load(image_latents + picture * size + plane, mask=inside[:, None], other=0.0)
    both = tl.join(noisy.to(known.dtype), known)  # [block, channels, 2]
    both = tl.reshape(tl.permute(both, (0, 2, 1)), (block, 2 * channels))
    place = pixel[:, None] * (2 * channels) + tl.arange(0, 2 * channels)[None, :]
    tl.store(sample + row.to(tl.int64) * (2 * size) + place, both, mask=inside[:, None])

    if has_scalars:  # noqa: SIM102 - known when compiled, the inner one is not
        if tl.program_id(0) == 0:
            step = tl.load(row_steps + row)
            pair = tl.arange(0, 2)
            time = tl.load(timesteps + slot * max_steps + step, mask=is_job, other=0.0)
            tl.store(out_timesteps + row, time)
            tl.store(out_adapters + row, tl.load(adapters + slot, mask=is_job, other=-1))  # NO_ADAPTER
            tl.store(out_gates + row, tl.load(gates + slot, mask=is_job, other=0.0))
            is_scale = pair < tl.where(is_job, 2, 0)
            tl.store(out_scales + row * 2 + pair, tl.load(scales + slot * 2 + pair, mask=is_scale, other=1.0))


@jit
def _gather_text_kernel(
    context: tl.tensor,
    text: tl.tensor,
    row_slots: tl.tensor,
    row_branches: tl.tensor,
    num_slots: tl.tensor,
    count: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(1)
    slot = tl.load(row_slots + row).to(tl.int64)
    branch = tl.load(row_branches + row)
    entry = tl.where((slot >= 0) & (branch == 0), slot, num_slots)  # FULL
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < count
    values = tl.load(text + entry * count + index, mask=inside)
    tl.store(context + row.to(tl.int64) * count + index, values, mask=inside)


def variants() -> list[Variant]:
    """The compiled forms: with the scalars, for four latent channels, and int32 indices."""
    return [
        item
        for name in ("fp16", "bf16", "fp32")
        for item in (_samples_variant(name), *(_text_variant(name, rows) for rows in (1, 48)))
    ]


def _samples_variant(name: str) -> Variant:
    return Variant(
        name=f"gather_samples_{name}",
        kernel=_gather_samples_kernel,
        signature={
            "sample": f"*{name}",
            "out_timesteps": "*fp32",
            "out_adapters": "*i32",
            "out_gates": "*fp32",
            "out_scales": "*fp32",
            "latents": "*fp32",
            "image_latents": f"*{name}",
            "timesteps": "*fp32",
            "adapters": "*i32",
            "gates": "*fp32",
            "scales": "*fp32",
            "row_slots": "*i32",
            "row_branches": "*i32",
            "row_steps": "*i32",
            "num_slots": "i32",
            "pixels": "i32",
            "max_steps": "i32",
            "channels": "constexpr",
            "block": "constexpr",
            "has_scalars": "constexpr",
        },
        constants={"channels": 4, "block": _PIXELS, "has_scalars": True},
        grid=("cdiv(pixels, block)", "rows", "1"),
        aligned=("sample", "latents", "image_latents", "pixels"),
    )


def _text_variant(name: str, rows: int) -> Variant:
    block = _text_plan(rows)
    return Variant(
        name=f"gather_text_{name}_{block}",
        kernel=_gather_text_kernel,
        signature={
            "context": f"*{name}",
            "text": f"*{name}",
            "row_slots": "*i32",
            "row_branches": "*i32",
            "num_slots": "i32",
            "count": "i32",
            "block": "constexpr",
        },
        constants={"block": block},
        grid=("cdiv(count, block)", "rows", "1"),
        aligned=("context", "text", "count"),
    )
