"""A batch of pictures that shapes are painted onto, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

INK = (0.13, 0.10, 0.14)
OUTLINE = 0.021  # ink around a part in the illustration style, in units of half a picture


@dataclass(frozen=True)
class Frame:
    """Coordinates of every pixel in a moved, scaled and tilted system; ``pixel`` is a pixel's size in it."""

    x: Tensor  # [n, h, w]
    y: Tensor  # [n, h, w]
    pixel: Tensor  # [n, 1, 1]

    def rows(self, chosen: Tensor) -> Frame:
        return Frame(self.x[chosen], self.y[chosen], self.pixel[chosen])


def pixel_frame(count: int, size: int, device: torch.device) -> Frame:
    """The whole picture as -1..1 in both axes, y downwards."""
    line = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    pixel = torch.full((count, 1, 1), 2 / size, device=device)
    return Frame(x.expand(count, size, size), y.expand(count, size, size), pixel)


def posed_frame(frame: Frame, pose: Tensor, tilted: bool) -> Frame:
    """``frame`` seen from a figure with this pose (``[n, 4]``, see `Scene.pose`)."""
    dx, dy, scale, tilt = (column[:, None, None] for column in pose.unbind(1))
    x, y = (frame.x - dx) / scale, (frame.y - dy) / scale
    if tilted:
        cos, sin = torch.cos(tilt), torch.sin(tilt)
        x, y = cos * x + sin * y, cos * y - sin * x
    return replace(frame, x=x, y=y, pixel=frame.pixel / scale)


class Canvas:
    """``image`` is ``[n, 3, h, w]`` in 0..1; ``inked`` (``[n]`` bool) tells which pictures get ink outlines."""

    def __init__(self, image: Tensor, inked: Tensor) -> None:
        self.image = image
        self.inked = inked.to(image.dtype)[:, None, None]

    def paint(self, frame: Frame, shape: Tensor, colour: Tensor, on: Tensor | float = 1.0) -> None:
        """Fill ``shape`` (a signed distance ``[n, h, w]``), antialiased over one pixel.

        ``colour`` is ``[n, 3]``, ``[3]`` or ``[n, 3, h, w]``; ``on`` an opacity for all or ``[n]``.
        """
        self._blend((0.5 - shape / frame.pixel).clamp(0, 1) * _opacity(on), colour)

    def soft(self, shape: Tensor, colour: Tensor, softness: float, on: Tensor | float = 1.0) -> None:
        """Fill ``shape`` with an edge that fades over ``softness``; for shadows and blush."""
        self._blend(torch.sigmoid(-shape / softness * 4) * _opacity(on), colour)

    def part(self, frame: Frame, shape: Tensor, colour: Tensor, on: Tensor | float = 1.0) -> None:
        """`paint`, with an ink outline around it where the style asks for one."""
        ink = self.image.new_tensor(INK)
        self._blend((0.5 - (shape - OUTLINE) / frame.pixel).clamp(0, 1) * _opacity(on) * self.inked, ink)
        self.paint(frame, shape, colour, on)

    def _blend(self, coverage: Tensor, colour: Tensor) -> None:
        if colour.ndim < 4:
            colour = colour.reshape(-1, 3, 1, 1)
        self.image = torch.lerp(self.image, colour.expand_as(self.image), coverage[:, None])


def _opacity(on: Tensor | float) -> Tensor | float:
    return on.float()[:, None, None] if isinstance(on, Tensor) else on


def mix(colour: Tensor, other: tuple[float, float, float], share: float) -> Tensor:
    """``colour`` (``[n, 3]``) with ``share`` of another colour in it."""
    return torch.lerp(colour, colour.new_tensor(other).expand_as(colour), share)


def shade(colour: Tensor, share: float = 0.18) -> Tensor:
    """A darker, slightly cooler tone of a colour, for shadows."""
    return mix(colour, (0.16, 0.08, 0.24), share)


def light(colour: Tensor, share: float = 0.25) -> Tensor:
    """A lighter tone of a colour, for highlights."""
    return mix(colour, (1.0, 1.0, 0.97), share)
