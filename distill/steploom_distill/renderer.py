"""From a batch of scenes to pictures: deterministic, batched, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .drawing import backdrop, cat, grade, person
from .drawing.canvas import Canvas, pixel_frame, posed_frame
from .palette import Style, Subject
from .scene import Scene

RESOLUTION = 128
HEAD_Y = -0.04  # of a head in the middle of its range, in units of half a picture


@torch.no_grad()
def render(scene: Scene, size: int = RESOLUTION) -> Tensor:
    """Draw scenes as ``[n, 3, size, size]`` float32 in 0..1.

    A picture depends on its own scene alone, never on the others of the batch.
    """
    frame = pixel_frame(len(scene), size, scene.device)
    inked = scene.style == Style.ILLUSTRATION
    canvas = Canvas(torch.zeros(len(scene), 3, size, size, device=scene.device), inked)
    backdrop.draw(canvas, frame, scene)
    centre = scene.pose.new_tensor([0.0, HEAD_Y, 0.0, 0.0])
    for subject, figure in ((Subject.PERSON, person), (Subject.CAT, cat)):
        rows = (scene.subject == subject).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        some = scene[rows]
        part = Canvas(canvas.image[rows], inked[rows])
        head = posed_frame(frame.rows(rows), some.pose + centre, tilted=True)
        body = posed_frame(frame.rows(rows), some.pose + centre, tilted=False)
        figure.draw(part, head, body, some)
        canvas.image[rows] = part.image
    grade.illustrate(canvas, frame, scene.style)
    grade.western(canvas, frame, scene.style)
    return canvas.image.clamp(0, 1)
