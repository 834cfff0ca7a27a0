"""Signed distance functions: negative inside, positive outside, in the units of the coordinates.

All take coordinates ``x, y`` of shape ``[n, h, w]`` and numbers or ``[n, 1, 1]`` tensors, and return ``[n, h, w]``.
The shapes follow Inigo Quilez's collection of 2D distance functions (iquilezles.org/articles/distfunctions2d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Number = float | Tensor


def circle(x: Tensor, y: Tensor, cx: Number, cy: Number, radius: Number) -> Tensor:
    """A disc around (cx, cy)."""
    return torch.hypot(x - cx, y - cy) - radius


def ellipse(x: Tensor, y: Tensor, cx: Number, cy: Number, rx: Number, ry: Number) -> Tensor:
    """An ellipse with half axes rx and ry; first-order distance, good near the edge."""
    px, py = (x - cx) / rx, (y - cy) / ry
    norm = torch.hypot(px, py)
    slope = torch.hypot(px / rx, py / ry)
    return norm * (norm - 1) / slope.clamp_min(1e-4)


def box(x: Tensor, y: Tensor, cx: Number, cy: Number, half_w: Number, half_h: Number, radius: Number = 0.0) -> Tensor:
    """A box with rounded corners."""
    qx = (x - cx).abs() - half_w + radius
    qy = (y - cy).abs() - half_h + radius
    outside = torch.hypot(qx.clamp_min(0), qy.clamp_min(0))
    return outside + torch.maximum(qx, qy).clamp_max(0) - radius


def capsule(x: Tensor, y: Tensor, ax: float, ay: float, bx: float, by: float, radius: float) -> Tensor:
    """A thick line from a to b with round ends."""
    dx, dy = bx - ax, by - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - ax - along * dx, y - ay - along * dy) - radius


def triangle(x: Tensor, y: Tensor, points: tuple[tuple[float, float], ...], radius: float = 0.0) -> Tensor:
    """A convex polygon, corners clockwise on the screen (y down), grown by ``radius`` (approximate at corners)."""
    edges = []
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        edges.append(((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length)
    return smooth_max(edges, 0.02) - radius


def arc(x: Tensor, y: Tensor, cx: float, cy: float, width: float, bend: float, thickness: float) -> Tensor:
    """A bent stroke: a parabola through (cx ± width, cy) whose middle lies ``bend`` lower, with round ends."""
    along = ((x - cx) / width).clamp(-1, 1)
    curve = cy + bend * (1 - along * along)
    steep = torch.sqrt(1 + (2 * bend / width * along) ** 2)
    beyond = ((x - cx).abs() - width).clamp_min(0)
    return torch.hypot((y - curve) / steep, beyond) - thickness


def union(*shapes: Tensor) -> Tensor:
    """Inside any."""
    result = shapes[0]
    for shape in shapes[1:]:
        result = torch.minimum(result, shape)
    return result


def cut(shape: Tensor, *holes: Tensor) -> Tensor:
    """Inside the shape and outside every hole."""
    for hole in holes:
        shape = torch.maximum(shape, -hole)
    return shape


def both(*shapes: Tensor) -> Tensor:
    """Inside all."""
    result = shapes[0]
    for shape in shapes[1:]:
        result = torch.maximum(result, shape)
    return result


def smooth_max(shapes: list[Tensor], width: float) -> Tensor:
    """A rounded intersection (polynomial smooth maximum)."""
    result = shapes[0]
    for shape in shapes[1:]:
        blend = (width - (result - shape).abs()).clamp_min(0) / width
        result = torch.maximum(result, shape) + blend * blend * width * 0.25
    return result


def smooth_union(a: Tensor, b: Tensor, width: float) -> Tensor:
    """A union whose joint is rounded over ``width``."""
    blend = (width - (a - b).abs()).clamp_min(0) / width
    return torch.minimum(a, b) - blend * blend * width * 0.25
