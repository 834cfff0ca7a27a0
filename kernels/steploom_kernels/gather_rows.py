"""Slots to UNet input rows: each job of a tick becomes one row for each branch of its guidance."""

from __future__ import annotations

import torch
from torch import Tensor

# What a row is conditioned on. The order is that of the weights in `guidance_step`.
FULL = 0  # instruction and picture
IMAGE = 1  # picture alone
NONE = 2  # neither


def gather_rows(
    latents: Tensor, image_latents: Tensor, text: Tensor, row_slots: Tensor, row_branches: Tensor
) -> tuple[Tensor, Tensor]:
    """The UNet's input and the text condition of each row (arXiv 2211.09800, section 3.2).

    Args:
        latents: [slots, channels, h, w].
        image_latents: [slots + 1, channels, h, w]; the last entry is the empty picture, zeros.
        text: [slots + 1, tokens, width]; the last entry is the empty instruction.
        row_slots: int64 [rows], the slot of each row.
        row_branches: int64 [rows], FULL, IMAGE or NONE.

    Returns:
        sample: [rows, 2 * channels, h, w], channels last in memory, of the type of `image_latents`.
        context: [rows, tokens, width].
    """
    empty = latents.shape[0]
    image_index = torch.where(row_branches == NONE, empty, row_slots)
    text_index = torch.where(row_branches == FULL, row_slots, empty)
    noisy = latents[row_slots].to(image_latents.dtype)
    sample = torch.cat([noisy, image_latents[image_index]], dim=1)
    return sample.contiguous(memory_format=torch.channels_last), text[text_index]
