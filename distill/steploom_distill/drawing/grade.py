"""The styles that change the finished picture: illustration and western."""

from __future__ import annotations

import torch
from torch import Tensor

from ..palette import Style, rgb
from . import sdf
from .canvas import INK, Canvas, Frame

LUMA = (0.299, 0.587, 0.114)


def illustrate(canvas: Canvas, frame: Frame, style: Tensor) -> None:
    """A printed drawing: few flat tones, hatched shadows, a cream paper margin with an ink frame."""
    on = (style == Style.ILLUSTRATION)[:, None, None, None]
    image = canvas.image
    luma = _luma(image)
    vivid = (luma + (image - luma) * 1.15).clamp(0, 1)
    paper = image.new_tensor(rgb("fbf3df"))
    flat = (vivid + _posterise(luma, 5) - luma).clamp(0, 1) * 0.86 + paper[:, None, None] * 0.14
    canvas.image = torch.where(on, flat, image)
    inked = style == Style.ILLUSTRATION
    hatch = (torch.remainder(frame.x - frame.y, 0.11) - 0.055).abs() - 0.012
    shadow = sdf.both(hatch, 0.55 - frame.x * 0.75 - frame.y * 0.75)
    canvas.paint(frame, shadow, image.new_tensor(INK), inked.float() * 0.5)
    inside = sdf.box(frame.x, frame.y, 0, 0, 0.915, 0.915, 0.1)
    canvas.paint(frame, -(inside - 0.03), image.new_tensor(INK), inked)
    canvas.paint(frame, -(inside - 0.055), paper, inked)


def _posterise(image: Tensor, levels: int) -> Tensor:
    """Steps with short ramps between them, so that a small change of colour stays small."""
    scaled = image * levels
    base = torch.floor(scaled)
    ramp = ((scaled - base - 0.5) * 3 + 0.5).clamp(0, 1)
    return (base + ramp) / levels


def western(canvas: Canvas, frame: Frame, style: Tensor) -> None:
    """An old film: sepia, warm lights, a dark vignette."""
    on = (style == Style.WESTERN)[:, None, None, None]
    image = canvas.image
    luma = ((_luma(image) - 0.5) * 1.12 + 0.5).clamp(0, 1)
    dark, bright = image.new_tensor(rgb("2c170a")), image.new_tensor(rgb("ffe9bd"))
    sepia = torch.lerp(dark[None, :, None, None], bright[None, :, None, None], luma)
    toned = torch.lerp(image, sepia, 0.72)
    edge = torch.hypot(frame.x, frame.y)[:, None]
    vignette = 1 - 0.42 * ((edge - 0.62) / 0.75).clamp(0, 1) ** 1.5
    canvas.image = torch.where(on, toned * vignette, image)


def _luma(image: Tensor) -> Tensor:
    return (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
