"""A cat's bust in the same head coordinates as a person's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..palette import Mouth, rgb
from ..scene import Scene
from . import features, sdf
from .canvas import Canvas, Frame, light, mix, shade

PINK = rgb("f4a0a8")


def draw(canvas: Canvas, head: Frame, body: Frame, scene: Scene) -> None:
    """Paint cats over the backdrop, from back to front."""
    _body(canvas, body, scene)
    _head(canvas, head, scene)
    features.eyes(canvas, head, scene, None)
    _muzzle(canvas, head, scene)
    features.sunglasses(canvas, head, scene)
    features.hats(canvas, head, scene)
    features.flower(canvas, head, scene)


def _body(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    fur = scene.hair_rgb
    bust = sdf.smooth_union(sdf.ellipse(x, y, 0, 1.15, 0.56, 0.52), sdf.box(x, y, 0, 0.7, 0.24, 0.35, 0.1), 0.25)
    canvas.part(frame, bust, fur)
    canvas.paint(frame, sdf.both(bust, 0.3 - x + 0.2 * (y - 0.8)), shade(fur, 0.3), 0.4)
    bib = sdf.both(bust, sdf.ellipse(x, y, 0, 0.9, 0.24, 0.3))
    canvas.paint(frame, bib, light(fur, 0.55))
    canvas.paint(frame, sdf.both(bust, sdf.ellipse(x, y, 0, 0.4, 0.36, 0.14)), shade(fur, 0.3))
    bandana = sdf.union(
        sdf.both(bust - 0.03, (y - 0.56 - 0.1 * (1 - (x / 0.4) ** 2)).abs() - 0.06),
        sdf.triangle(x, y, ((0.25, 0.64), (0.0, 0.93), (-0.25, 0.64))),
    )
    canvas.part(frame, bandana, scene.shirt_rgb)
    dots = sdf.union(*(sdf.circle(x, y, cx, cy, 0.025) for cx, cy in ((-0.1, 0.71), (0.1, 0.71), (0, 0.8))))
    canvas.paint(frame, dots, light(scene.shirt_rgb, 0.65))


def _head(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    side, fur = x.abs(), scene.hair_rgb
    ear = sdf.triangle(side, y, ((0.4, -0.62), (0.47, -0.1), (0.12, -0.36)), 0.025)
    canvas.part(frame, ear, fur)
    inner = sdf.triangle(side, y, ((0.375, -0.53), (0.4, -0.22), (0.23, -0.35)))
    canvas.paint(frame, inner, mix(fur, PINK, 0.75))
    skull = sdf.smooth_union(sdf.ellipse(x, y, 0, 0.03, 0.46, 0.39), sdf.ellipse(side, y, 0.3, 0.2, 0.2, 0.17), 0.08)
    canvas.part(frame, skull, fur)
    canvas.paint(frame, sdf.cut(skull, sdf.ellipse(x, y, -0.06, -0.06, 0.5, 0.45)), shade(fur, 0.2))
    _stripes(canvas, frame, skull, fur)
    canvas.soft(sdf.ellipse(side, y, 0.32, 0.2, 0.06, 0.035), mix(fur, PINK, 0.7), 0.07, 0.7)


def _stripes(canvas: Canvas, frame: Frame, skull: Tensor, fur: Tensor) -> None:
    x, y = frame.x, frame.y
    side = x.abs()
    marks = sdf.union(
        sdf.capsule(x, y, 0, -0.37, 0, -0.2, 0.026),
        sdf.capsule(side, y, 0.1, -0.35, 0.085, -0.23, 0.023),
        sdf.capsule(side, y, 0.47, 0.06, 0.37, 0.08, 0.02),
        sdf.capsule(side, y, 0.47, 0.15, 0.4, 0.16, 0.018),
    )
    dark = fur @ fur.new_tensor([0.3, 0.59, 0.11]) < 0.25
    tone = torch.where(dark[:, None], light(fur, 0.22), shade(fur, 0.34))
    canvas.paint(frame, sdf.both(marks, skull + 0.005), tone)


def _muzzle(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    side, fur = x.abs(), scene.hair_rgb
    ink = frame.x.new_tensor(rgb("3a2a33"))
    laughing = scene.mouth == Mouth.LAUGH
    jaw = sdf.ellipse(x, y, 0, 0.29, 0.075, 0.085)
    canvas.part(frame, jaw, frame.x.new_tensor(rgb("8c2434")), laughing)
    canvas.paint(frame, sdf.both(jaw + 0.01, sdf.ellipse(x, y, 0, 0.35, 0.05, 0.045)), mix(fur, PINK, 1.0), laughing)
    canvas.paint(frame, sdf.ellipse(side, y, 0.075, 0.205, 0.105, 0.082), light(fur, 0.65))
    nose = sdf.triangle(x, y, ((-0.048, 0.125), (0.048, 0.125), (0.0, 0.17)), 0.012)
    canvas.part(frame, nose, frame.x.new_tensor(rgb("e8788a")))
    lips = {
        Mouth.NEUTRAL: sdf.arc(side, y, 0.045, 0.225, 0.045, 0.022, 0.012),
        Mouth.SMILE: sdf.arc(side, y, 0.075, 0.215, 0.075, 0.052, 0.014),
        Mouth.LAUGH: sdf.arc(side, y, 0.075, 0.215, 0.075, 0.052, 0.014),
    }
    canvas.paint(frame, sdf.capsule(x, y, 0, 0.17, 0, 0.225, 0.01), ink)
    for mouth, shape in lips.items():
        canvas.paint(frame, shape, ink, scene.mouth == mouth)
    whiskers = sdf.union(
        sdf.capsule(side, y, 0.24, 0.19, 0.54, 0.14, 0.008), sdf.capsule(side, y, 0.24, 0.225, 0.54, 0.25, 0.008)
    )
    canvas.paint(frame, whiskers, frame.x.new_tensor(rgb("fbf7f2")), 0.9)
