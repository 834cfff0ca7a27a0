"""What stands behind the figure: colours, patterns and landscapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..palette import FIRST_LANDSCAPE, Backdrop, rgb
from ..scene import Scene
from . import sdf
from .canvas import Canvas, Frame, light, shade


def draw(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    """Paint every picture's backdrop over the whole canvas."""
    base = scene.backdrop_colour_rgb
    canvas.image = base[:, :, None, None].expand_as(canvas.image).clone()
    _patterns(canvas, frame, scene.backdrop, base)
    for kind, landscape in _LANDSCAPES.items():
        rows = (scene.backdrop == kind).nonzero()[:, 0]
        if len(rows):
            part = Canvas(canvas.image[rows], canvas.inked[rows, 0, 0])
            landscape(part, frame.rows(rows))
            canvas.image[rows] = part.image


def _patterns(canvas: Canvas, frame: Frame, kind: Tensor, base: Tensor) -> None:
    x, y = frame.x, frame.y
    plain = kind < FIRST_LANDSCAPE
    canvas.soft(sdf.circle(x, y, -0.25, -0.35, 0.85), light(base, 0.35), 0.9, plain & (kind != Backdrop.GRADIENT))
    ramp = ((y + 1) / 2).clamp(0, 1)[:, None]
    gradient = torch.lerp(light(base, 0.6)[:, :, None, None], shade(base, 0.22)[:, :, None, None], ramp)
    everywhere = torch.full_like(x, -1.0)
    canvas.paint(frame, everywhere, gradient, kind == Backdrop.GRADIENT)
    pale = light(base, 0.55)
    canvas.paint(frame, _dots(x, y), pale, (kind == Backdrop.DOTS).float() * 0.85)
    slanted = (x + y) * math.sqrt(0.5)
    canvas.paint(frame, _wave(slanted, 0.36, 0.09), pale, (kind == Backdrop.STRIPES).float() * 0.7)
    angle = torch.atan2(y + 0.1, x)
    radius = torch.hypot(x, y + 0.1)
    rays = _wave(angle, math.pi / 7, math.pi / 28) * radius
    canvas.paint(frame, rays, pale, (kind == Backdrop.RAYS).float() * 0.75)


def _dots(x: Tensor, y: Tensor) -> Tensor:
    """A hexagonal grid of dots."""
    step = 0.32
    row = torch.round(y / step)
    across = x / step + 0.5 * torch.remainder(row, 2)
    return torch.hypot((across - torch.round(across)) * step, y - row * step) - 0.062


def _wave(t: Tensor, period: float, half_width: float) -> Tensor:
    """Bands of ``2 * half_width`` every ``period`` along t."""
    return (t - torch.round(t / period) * period).abs() - half_width


def _colour(frame: Frame, code: str) -> Tensor:
    return frame.x.new_tensor(rgb(code))


def _sky(canvas: Canvas, frame: Frame, top: str, bottom: str, horizon: float) -> None:
    ramp = ((frame.y + 1) / (horizon + 1)).clamp(0, 1)[:, None]
    high, low = _colour(frame, top), _colour(frame, bottom)
    canvas.image = torch.lerp(high[None, :, None, None], low[None, :, None, None], ramp)


def _desert(canvas: Canvas, frame: Frame) -> None:
    x, y = frame.x, frame.y
    _sky(canvas, frame, "f08a4b", "ffdf9e", 0.25)
    canvas.paint(frame, sdf.circle(x, y, 0.58, -0.42, 0.2), _colour(frame, "fff3c4"))
    mesa = sdf.union(
        sdf.box(x, y, -0.86, 0.06, 0.26, 0.3, 0.03),
        sdf.box(x, y, -0.52, 0.2, 0.2, 0.16, 0.03),
        sdf.box(x, y, 0.88, 0.14, 0.24, 0.22, 0.03),
    )
    canvas.part(frame, mesa, _colour(frame, "b9583a"))
    canvas.paint(frame, sdf.both(mesa, sdf.box(x, y, 0.0, -0.02, 2.0, 0.035)), _colour(frame, "d5764c"))
    canvas.part(frame, 0.25 + 0.05 * torch.sin(x * 3.0) - y, _colour(frame, "e2a862"))
    canvas.paint(frame, 0.52 - 0.06 * torch.sin(x * 2.3 + 1.0) - y, _colour(frame, "cf8d4a"))
    cactus = sdf.union(
        sdf.capsule(x, y, -0.76, 0.02, -0.76, 0.62, 0.06),
        sdf.capsule(x, y, -0.92, 0.12, -0.92, 0.27, 0.042),
        sdf.capsule(x, y, -0.92, 0.29, -0.76, 0.33, 0.042),
    )
    canvas.part(frame, cactus, _colour(frame, "4f7d4a"))


def _beach(canvas: Canvas, frame: Frame) -> None:
    x, y = frame.x, frame.y
    _sky(canvas, frame, "62c3f0", "d8f3fb", 0.1)
    canvas.paint(frame, sdf.circle(x, y, -0.66, -0.62, 0.17), _colour(frame, "fff2a8"))
    _cloud(canvas, frame, 0.62, -0.66)
    canvas.part(frame, 0.06 - y, _colour(frame, "2f9fcf"))
    canvas.paint(frame, sdf.both(0.2 - y, y - 0.235), _colour(frame, "7fd0e8"))
    canvas.paint(frame, 0.37 + 0.035 * torch.sin(x * 5) - y, _colour(frame, "eefaff"))
    canvas.part(frame, 0.43 + 0.035 * torch.sin(x * 5) - y, _colour(frame, "f3d9a0"))


def _night(canvas: Canvas, frame: Frame) -> None:
    x, y = frame.x, frame.y
    _sky(canvas, frame, "161a45", "4b3f87", 0.9)
    moon = sdf.cut(sdf.circle(x, y, 0.64, -0.58, 0.19), sdf.circle(x, y, 0.55, -0.64, 0.16))
    canvas.paint(frame, moon, _colour(frame, "ffeeb0"))
    stars = [
        sdf.circle(x, y, cx, cy, radius)
        for cx, cy, radius in (
            (-0.82, -0.78, 0.028),
            (-0.5, -0.9, 0.018),
            (-0.66, -0.42, 0.02),
            (-0.9, -0.1, 0.026),
            (0.2, -0.9, 0.024),
            (0.86, -0.18, 0.02),
            (0.74, 0.12, 0.026),
            (-0.72, 0.2, 0.018),
            (-0.28, -0.74, 0.016),
            (0.42, -0.82, 0.016),
        )
    ]
    canvas.paint(frame, sdf.union(*stars), _colour(frame, "fff6d8"))
    hill = sdf.union(sdf.circle(x, y, -0.8, 1.35, 0.85), sdf.circle(x, y, 0.75, 1.5, 0.95))
    canvas.part(frame, hill, _colour(frame, "2a2758"))


def _forest(canvas: Canvas, frame: Frame) -> None:
    x, y = frame.x, frame.y
    _sky(canvas, frame, "a9dcc6", "eaf6d2", 0.3)
    for cx, top, width, code in (
        (-0.45, -0.5, 0.3, "7fbf94"),
        (0.4, -0.55, 0.3, "7fbf94"),
        (0.02, -0.7, 0.3, "7fbf94"),
        (-0.82, -0.72, 0.36, "4d9a6b"),
        (0.84, -0.68, 0.36, "4d9a6b"),
    ):
        tree = sdf.union(
            *(_fir(x, y, cx, top + lift, width * grow) for lift, grow in ((0, 0.7), (0.25, 0.9), (0.55, 1)))
        )
        canvas.part(frame, sdf.union(tree, sdf.box(x, y, cx, 0.6, 0.05, 0.4)), _colour(frame, code))
    canvas.part(frame, 0.26 + 0.03 * torch.sin(x * 4 + 1) - y, _colour(frame, "6fae5a"))


def _fir(x: Tensor, y: Tensor, cx: float, top: float, width: float) -> Tensor:
    return sdf.triangle(x, y, ((cx, top), (cx + width, top + 0.6), (cx - width, top + 0.6)))


def _cloud(canvas: Canvas, frame: Frame, cx: float, cy: float) -> None:
    x, y = frame.x, frame.y
    puff = sdf.union(
        sdf.ellipse(x, y, cx, cy, 0.2, 0.075),
        sdf.circle(x, y, cx - 0.05, cy - 0.06, 0.09),
        sdf.circle(x, y, cx + 0.08, cy - 0.035, 0.07),
    )
    canvas.part(frame, puff, _colour(frame, "ffffff"))


_LANDSCAPES = {
    Backdrop.DESERT: _desert,
    Backdrop.BEACH: _beach,
    Backdrop.NIGHT: _night,
    Backdrop.FOREST: _forest,
}
