"""A person's bust: hair, neck, clothes and face, in head coordinates (face centre at 0, 0, chin near y = 0.45)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..palette import Face, HairStyle, Mouth, Outfit, rgb
from ..scene import Scene
from . import features, sdf
from .canvas import Canvas, Frame, light, mix, shade


def draw(canvas: Canvas, head: Frame, body: Frame, scene: Scene) -> None:
    """Paint people over the backdrop, from back to front."""
    _hair_back(canvas, head, scene)
    _body(canvas, body, scene)
    _head(canvas, head, scene)
    brow = mix(shade(scene.hair_rgb, 0.3), rgb("5a4038"), 0.35)
    features.eyes(canvas, head, scene, brow)
    _mouth(canvas, head, scene)
    _hair_front(canvas, head, scene)
    features.sunglasses(canvas, head, scene)
    features.hats(canvas, head, scene)
    features.flower(canvas, head, scene)


def _body(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    skin, shirt = scene.skin_rgb, scene.shirt_rgb
    neck = sdf.box(x, y, 0, 0.5, 0.135, 0.3, 0.05)
    shoulders = sdf.smooth_union(sdf.ellipse(x, y, 0, 1.12, 0.7, 0.5), sdf.box(x, y, 0, 0.8, 0.22, 0.2, 0.1), 0.2)
    hood = sdf.ellipse(x, y, 0, 0.66, 0.36, 0.17)
    canvas.part(frame, hood, shade(shirt, 0.22), scene.outfit == Outfit.HOODIE)
    canvas.part(frame, shoulders, shirt)
    bands = sdf.both((torch.remainder(y + 0.02 * torch.cos(x * 3) - 0.69, 0.17) - 0.085).abs() - 0.04, shoulders)
    canvas.paint(frame, bands, _contrast(shirt), scene.outfit == Outfit.STRIPES)
    side = sdf.both(shoulders, 0.36 - x + 0.15 * (y - 0.8))
    canvas.paint(frame, side, shade(shirt, 0.35), 0.35)
    arms = sdf.both((x.abs() - 0.4 - 0.05 * (y - 0.8)).abs() - 0.008, 0.86 - y, shoulders)
    canvas.paint(frame, arms, shade(shirt, 0.4), 0.7)
    neckline = sdf.ellipse(x, y, 0, 0.635, 0.185, 0.125)
    canvas.part(frame, neckline - 0.028, shade(shirt, 0.18))
    canvas.part(frame, sdf.union(sdf.both(neck, y - 0.66), neckline), skin)
    chin_shadow = sdf.both(sdf.union(neck, neckline), sdf.ellipse(x, y, 0, 0.4, 0.3, 0.13))
    canvas.paint(frame, sdf.both(chin_shadow, 0.3 - y), shade(skin, 0.26))
    strings = sdf.union(*(sdf.capsule(x, y, s * 0.11, 0.78, s * 0.125, 0.98, 0.018) for s in (-1, 1)))
    canvas.paint(frame, strings, _contrast(shirt), scene.outfit == Outfit.HOODIE)


def _contrast(colour: Tensor) -> Tensor:
    """Off-white for dark cloth, slate for light cloth (``[n, 3]``)."""
    luma = colour @ colour.new_tensor([0.3, 0.59, 0.11])
    pale, dark = colour.new_tensor(rgb("f7f5ef")), colour.new_tensor(rgb("5b6475"))
    return torch.where((luma > 0.72)[:, None], dark, pale)


def _face(frame: Frame, scene: Scene) -> Tensor:
    x, y = frame.x, frame.y
    round_face = sdf.ellipse(x, y, 0, 0.02, 0.425, 0.43)
    oval = sdf.ellipse(x * (1 + 0.12 * y), y, 0, 0.02, 0.395, 0.46)
    square = sdf.box(x, y, 0, 0.0, 0.4, 0.44, 0.27)
    kind = scene.face[:, None, None]
    return torch.where(kind == Face.ROUND, round_face, torch.where(kind == Face.OVAL, oval, square))


def _head(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    skin = scene.skin_rgb
    ears = sdf.circle(x.abs(), y, 0.42, 0.07, 0.085)
    canvas.part(frame, ears, skin)
    canvas.paint(frame, sdf.circle(x.abs(), y, 0.425, 0.075, 0.045), shade(skin, 0.22))
    face = _face(frame, scene)
    canvas.part(frame, face, skin)
    lit = sdf.ellipse(x, y, -0.07, -0.05, 0.42, 0.47)
    canvas.paint(frame, sdf.cut(face, lit), shade(skin, 0.14))
    blush = mix(skin, (0.96, 0.35, 0.4), 0.42)
    canvas.soft(sdf.both(sdf.ellipse(x.abs(), y, 0.265, 0.185, 0.075, 0.045), face), blush, 0.07, 0.85)
    canvas.paint(frame, sdf.arc(x, y, 0.0, 0.135, 0.038, 0.022, 0.014), shade(skin, 0.34))


def _mouth(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    ink = mix(shade(scene.skin_rgb, 0.55), (0.55, 0.1, 0.15), 0.35)
    flat = sdf.arc(x, y, 0, 0.255, 0.06, 0.004, 0.016)
    smile = sdf.arc(x, y, 0, 0.235, 0.105, 0.05, 0.017)
    canvas.paint(frame, flat, ink, scene.mouth == Mouth.NEUTRAL)
    canvas.paint(frame, smile, ink, scene.mouth == Mouth.SMILE)
    laughing = scene.mouth == Mouth.LAUGH
    mouth = sdf.both(sdf.ellipse(x, y, 0, 0.222, 0.125, 0.125), 0.222 - y) - 0.008
    canvas.part(frame, mouth, frame.x.new_tensor(rgb("8c2434")), laughing)
    canvas.paint(frame, sdf.both(mouth + 0.008, y - 0.252), frame.x.new_tensor(rgb("fffdf8")), laughing)
    tongue = sdf.both(mouth + 0.008, sdf.ellipse(x, y, 0, 0.352, 0.075, 0.05))
    canvas.paint(frame, tongue, frame.x.new_tensor(rgb("f0788a")), laughing)


def _hair_back(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    """Hair behind the head and neck."""
    colour = shade(scene.hair_rgb, 0.16)
    for style, shape in _BACKS.items():
        canvas.part(frame, shape(frame), colour, scene.hair_style == style)
    pigtails = scene.hair_style == HairStyle.PIGTAILS
    shine = sdf.ellipse(frame.x.abs(), frame.y, 0.53, 0.22, 0.035, 0.1)
    canvas.soft(shine, light(scene.hair_rgb, 0.3), 0.06, pigtails.float() * 0.7)
    ties = sdf.circle(frame.x.abs(), frame.y, 0.455, 0.05, 0.05)
    canvas.part(frame, ties, frame.x.new_tensor(rgb("ef5b6c")), pigtails)


def _back_short(frame: Frame) -> Tensor:
    return sdf.both(sdf.ellipse(frame.x, frame.y, 0, -0.06, 0.45, 0.47), frame.y - 0.08)


def _back_bob(frame: Frame) -> Tensor:
    flare = frame.x * (1 - 0.1 * frame.y)
    return sdf.box(flare, frame.y, 0, -0.03, 0.52, 0.49, 0.36)


def _back_long(frame: Frame) -> Tensor:
    wave = frame.x + 0.012 * torch.sin(frame.y * 14) * torch.sign(frame.x)
    return sdf.box(wave * (1 - 0.1 * frame.y), frame.y, 0, 0.17, 0.5, 0.69, 0.4)


def _back_curly(frame: Frame) -> Tensor:
    angles = [math.pi * (0.86 + 1.28 * i / 8) for i in range(9)]
    puffs = [sdf.circle(frame.x, frame.y, 0.44 * math.cos(a), 0.46 * math.sin(a) - 0.04, 0.185) for a in angles]
    low = sdf.circle(frame.x.abs(), frame.y, 0.47, 0.24, 0.15)
    return sdf.union(*puffs, low, sdf.circle(frame.x, frame.y, 0, -0.08, 0.44))


def _back_pigtails(frame: Frame) -> Tensor:
    x, y = frame.x.abs(), frame.y
    tail = sdf.ellipse(x + 0.1 * (y - 0.2), y, 0.56, 0.26, 0.125, 0.235)
    return sdf.union(tail, _back_short(frame))


def _back_spiky(frame: Frame) -> Tensor:
    x, y = frame.x, frame.y + 0.04
    angle = torch.atan2(x, -y)
    teeth = (torch.remainder(angle / (math.pi / 5.5) + 0.5, 1) - 0.5).abs() * 2
    spikes = (torch.hypot(x, y) - (0.62 - 0.17 * teeth)) * 0.72
    return sdf.both(spikes, y - 0.2)


_BACKS = {
    HairStyle.SHORT: _back_short,
    HairStyle.BOB: _back_bob,
    HairStyle.LONG: _back_long,
    HairStyle.CURLY: _back_curly,
    HairStyle.PIGTAILS: _back_pigtails,
    HairStyle.SPIKY: _back_spiky,
}


def _hair_front(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    """The fringe and the locks beside the face, with a band of shine."""
    x, y = frame.x, frame.y
    hair = scene.hair_rgb
    for style, shape in _FRONTS.items():
        on = scene.hair_style == style
        front = shape(frame)
        canvas.part(frame, front, hair, on)
        shine = sdf.both(sdf.arc(x, y, -0.05, -0.3, 0.27, -0.1, 0.024), front + 0.012)
        canvas.paint(frame, shine, light(hair, 0.42), on.float() * 0.6)


def _cap(frame: Frame) -> Tensor:
    """The top of the head, a little larger than the skull."""
    return sdf.both(sdf.ellipse(frame.x, frame.y, 0, -0.05, 0.465, 0.48), frame.y - 0.06)


def _front_short(frame: Frame) -> Tensor:
    x, y = frame.x, frame.y
    sweep = sdf.ellipse(x, y, 0.13, 0.2, 0.37, 0.43)
    return sdf.cut(_cap(frame), sweep, sdf.ellipse(x, y, -0.16, 0.2, 0.25, 0.34))


def _front_bob(frame: Frame) -> Tensor:
    x, y = frame.x, frame.y
    window = sdf.box(x, y + 0.05 * torch.cos(x * 4), 0, 0.28, 0.345, 0.43, 0.1)
    sides = sdf.both(_back_bob(frame), y - 0.4)
    return sdf.cut(sides, window, sdf.ellipse(x, y, 0, 0.35, 0.34, 0.3))


def _front_long(frame: Frame) -> Tensor:
    x, y = frame.x, frame.y
    opening = sdf.ellipse(x.abs(), y, 0.16, 0.2, 0.215, 0.44)
    locks = sdf.both(_back_long(frame), sdf.union(y - 0.3, 0.31 + 0.1 * (y - 0.3) - x.abs()), y - 0.66)
    return sdf.cut(locks, opening, sdf.ellipse(x, y, 0, 0.42, 0.35, 0.42))


def _front_curly(frame: Frame) -> Tensor:
    puffs = [sdf.circle(frame.x, frame.y, cx, cy, 0.125) for cx, cy in _CURLS]
    return sdf.union(*puffs)


_CURLS = ((-0.38, -0.1), (-0.31, -0.24), (-0.17, -0.32), (0.0, -0.34), (0.17, -0.32), (0.31, -0.24), (0.38, -0.1))


def _front_pigtails(frame: Frame) -> Tensor:
    x, y = frame.x, frame.y
    opening = sdf.ellipse(x.abs(), y, 0.2, 0.16, 0.24, 0.36)
    return sdf.cut(_cap(frame), opening, sdf.ellipse(x, y, 0, 0.3, 0.4, 0.44))


def _front_spiky(frame: Frame) -> Tensor:
    x, y = frame.x, frame.y
    teeth = (torch.remainder(x / 0.17 + 0.5, 1) - 0.5).abs() * 2
    hairline = (y + 0.1 + 0.15 * teeth - 0.5 * x * x) * 0.55
    return sdf.both(sdf.ellipse(x, y, 0, -0.05, 0.455, 0.48), hairline, y - 0.02)


_FRONTS = {
    HairStyle.SHORT: _front_short,
    HairStyle.BOB: _front_bob,
    HairStyle.LONG: _front_long,
    HairStyle.CURLY: _front_curly,
    HairStyle.PIGTAILS: _front_pigtails,
    HairStyle.SPIKY: _front_spiky,
}
