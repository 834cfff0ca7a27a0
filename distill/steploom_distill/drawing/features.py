"""What people and cats share: eyes, sunglasses, hats, the flower."""

from __future__ import annotations

import torch
from torch import Tensor

from ..palette import Hat, Subject, rgb
from ..scene import Scene
from . import sdf
from .canvas import Canvas, Frame, light, shade

EYE_X, EYE_Y = 0.175, 0.04


def eyes(canvas: Canvas, frame: Frame, scene: Scene, brow: Tensor | None) -> None:
    """Open or closed eyes; ``brow`` is the eyebrows' colour (``[n, 3]``), None for a cat."""
    y = frame.y
    x = frame.x.abs()
    ink = frame.x.new_tensor(rgb("2b2029"))
    is_open = scene.eyes_open == 1
    white = frame.x.new_tensor(rgb("fdfdfb"))
    rx, ry = (0.092, 0.102) if brow is not None else (0.105, 0.108)
    socket = sdf.ellipse(x, y, EYE_X, EYE_Y, rx, ry)
    canvas.part(frame, socket, white, is_open)
    iris = sdf.both(sdf.ellipse(x, y, EYE_X - 0.006, EYE_Y + 0.008, 0.066, 0.082), socket)
    canvas.paint(frame, iris, scene.iris_rgb, is_open)
    canvas.paint(frame, sdf.both(iris, EYE_Y - 0.005 - y), light(scene.iris_rgb, 0.3), is_open.float() * 0.7)
    pupil_w = 0.036 if brow is not None else 0.024
    canvas.paint(frame, sdf.ellipse(x, y, EYE_X - 0.006, EYE_Y + 0.006, pupil_w, 0.05), ink, is_open)
    lid = sdf.both(socket.abs() - 0.017, y - EYE_Y + 0.025)
    canvas.paint(frame, lid, ink, is_open)
    canvas.paint(
        frame, sdf.capsule(x, y, EYE_X + 0.075, EYE_Y - 0.05, EYE_X + 0.115, EYE_Y - 0.085, 0.014), ink, is_open
    )
    glint = sdf.union(*(sdf.circle(frame.x, y, side * EYE_X - 0.03, EYE_Y - 0.03, 0.024) for side in (-1, 1)))
    canvas.paint(frame, glint, white, is_open)
    _closed_lids(canvas, frame, ink, ~is_open)
    if brow is not None:
        canvas.paint(frame, sdf.arc(x, y, EYE_X + 0.005, -0.115, 0.085, -0.028, 0.019), brow)


def _closed_lids(canvas: Canvas, frame: Frame, ink: Tensor, on: Tensor) -> None:
    x, y = frame.x.abs(), frame.y
    lashes = (
        sdf.arc(x, y, EYE_X, EYE_Y, 0.09, 0.055, 0.016),
        sdf.capsule(x, y, EYE_X + 0.075, EYE_Y + 0.02, EYE_X + 0.11, EYE_Y + 0.05, 0.011),
        sdf.capsule(x, y, EYE_X + 0.035, EYE_Y + 0.045, EYE_X + 0.05, EYE_Y + 0.085, 0.011),
        sdf.capsule(x, y, EYE_X - 0.025, EYE_Y + 0.05, EYE_X - 0.03, EYE_Y + 0.09, 0.011),
    )
    canvas.paint(frame, sdf.union(*lashes), ink, on)


def sunglasses(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    """Dark lenses with a bridge, temples and two reflections."""
    x, y = frame.x.abs(), frame.y
    on = scene.sunglasses == 1
    frame_colour = frame.x.new_tensor(rgb("17161c"))
    lens = sdf.box(x, y, 0.19, 0.05, 0.148, 0.112, 0.085)
    rim = sdf.union(
        lens - 0.018,
        sdf.both(sdf.arc(frame.x, y, 0.0, 0.01, 0.08, -0.02, 0.02)),
        sdf.capsule(x, y, 0.32, 0.0, 0.42, -0.02, 0.018),
    )
    canvas.part(frame, rim, frame_colour, on)
    tint = ((y + 0.06) / 0.22).clamp(0, 1)[:, None]
    dark, pale = frame.x.new_tensor(rgb("24232e")), frame.x.new_tensor(rgb("5a5670"))
    canvas.paint(frame, lens, torch.lerp(dark[None, :, None, None], pale[None, :, None, None], tint), on)
    slant = torch.remainder(frame.x, 0.38) * 0 + (frame.x - torch.sign(frame.x) * 0.19) + (y - 0.05) * 0.7
    shine = sdf.both(lens + 0.022, sdf.union((slant + 0.045).abs() - 0.02, (slant - 0.005).abs() - 0.009))
    canvas.paint(frame, shine, frame.x.new_tensor(rgb("c9c6dd")), on.float() * 0.75)


def hats(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    """A beanie or a cowboy hat, sitting lower and narrower on a cat."""
    cat = (scene.subject == Subject.CAT).float()[:, None, None]
    placed = Frame(frame.x * (1 + 0.18 * cat), frame.y - 0.07 * cat, frame.pixel)
    _beanie(canvas, placed, scene)
    _cowboy(canvas, placed, scene)


def _beanie(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    on = scene.hat == Hat.BEANIE
    wool = scene.hat_rgb
    canvas.part(frame, sdf.circle(x, y, 0, -0.68, 0.088), light(wool, 0.75), on)
    canvas.soft(sdf.circle(x, y, 0.03, -0.65, 0.05), light(wool, 0.4), 0.06, on.float() * 0.6)
    dome = sdf.both(sdf.ellipse(x, y, 0, -0.24, 0.475, 0.4), y + 0.2)
    canvas.part(frame, dome, wool, on)
    ribs = sdf.both((torch.remainder(x * (1.1 + 0.4 * (y + 0.24)) + 0.06, 0.12) - 0.06).abs() - 0.011, dome)
    canvas.paint(frame, ribs, shade(wool, 0.25), on.float() * 0.55)
    canvas.soft(sdf.both(sdf.ellipse(x, y, -0.17, -0.44, 0.13, 0.1), dome), light(wool, 0.4), 0.1, on.float() * 0.7)
    band = sdf.box(x, y, 0, -0.235, 0.495, 0.082, 0.07)
    canvas.part(frame, band, light(wool, 0.3), on)
    stitches = sdf.both((torch.remainder(x + 0.045, 0.09) - 0.045).abs() - 0.009, band + 0.012)
    canvas.paint(frame, stitches, wool, on.float() * 0.8)


def _cowboy(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    x, y = frame.x, frame.y
    on = scene.hat == Hat.COWBOY
    felt = scene.hat_rgb
    lifted = y + 0.3 * x * x
    crown = sdf.both(sdf.box(x * (1 - 0.25 * (y + 0.5)), y, 0, -0.46, 0.31, 0.28, 0.14), lifted + 0.2)
    crown = sdf.cut(crown, sdf.ellipse(x, y, 0, -0.77, 0.14, 0.075))
    canvas.part(frame, crown, felt, on)
    canvas.soft(sdf.both(sdf.ellipse(x, y, 0.2, -0.5, 0.1, 0.2), crown), shade(felt, 0.35), 0.12, on.float() * 0.6)
    canvas.paint(frame, sdf.capsule(x, y, 0, -0.68, 0, -0.55, 0.012), shade(felt, 0.35), on)
    band = sdf.both(crown, (lifted + 0.33).abs() - 0.05)
    canvas.paint(frame, band, frame.x.new_tensor(rgb("4a2a18")), on)
    buckle = sdf.box(x, lifted, 0, -0.33, 0.05, 0.04, 0.012)
    canvas.paint(frame, buckle, frame.x.new_tensor(rgb("f0c65a")), on)
    brim = sdf.ellipse(x, lifted, 0, -0.225, 0.74, 0.092)
    canvas.part(frame, brim, light(felt, 0.08), on)
    canvas.paint(frame, sdf.both(brim, -0.21 - lifted), shade(felt, 0.3), on.float() * 0.8)


def flower(canvas: Canvas, frame: Frame, scene: Scene) -> None:
    """A pink flower with two leaves at the right of the head."""
    x, y = frame.x, frame.y
    on = scene.flower == 1
    cx, cy = 0.38, -0.2
    leaves = sdf.union(
        _turned_ellipse(x, y, cx + 0.12, cy + 0.13, 0.6, 0.1, 0.05),
        _turned_ellipse(x, y, cx - 0.1, cy + 0.15, 2.3, 0.09, 0.045),
    )
    canvas.part(frame, leaves, frame.x.new_tensor(rgb("4fa35c")), on)
    ring = [torch.tensor(i * 2 * torch.pi / 5 - torch.pi / 2) for i in range(5)]
    petals = sdf.union(
        *(sdf.circle(x, y, cx + 0.098 * float(a.cos()), cy + 0.098 * float(a.sin()), 0.08) for a in ring)
    )
    canvas.part(frame, petals, frame.x.new_tensor(rgb("f5679f")), on)
    inner = sdf.union(
        *(sdf.circle(x, y, cx + 0.085 * float(a.cos()), cy + 0.085 * float(a.sin()), 0.042) for a in ring)
    )
    canvas.paint(frame, inner, frame.x.new_tensor(rgb("fb9cc2")), on)
    canvas.part(frame, sdf.circle(x, y, cx, cy, 0.05), frame.x.new_tensor(rgb("ffd65c")), on)


def _turned_ellipse(x: Tensor, y: Tensor, cx: float, cy: float, angle: float, rx: float, ry: float) -> Tensor:
    turn = torch.tensor(angle)
    cos, sin = float(turn.cos()), float(turn.sin())
    px, py = x - cx, y - cy
    return sdf.ellipse(cos * px + sin * py, cos * py - sin * px, 0, 0, rx, ry)
