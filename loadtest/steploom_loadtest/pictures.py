"""Pictures to send."""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageDraw


@lru_cache
def portrait(side: int = 128, format: str = "PNG") -> bytes:
    """A face in few strokes, encoded."""
    buffer = io.BytesIO()
    portrait_image(side).save(buffer, format)
    return buffer.getvalue()


def portrait_image(side: int = 128) -> Image.Image:
    """The same, as an image of `side` x `side` pixels."""
    image = Image.new("RGB", (side, side), (120, 170, 200))
    draw = ImageDraw.Draw(image)
    unit = side / 128
    draw.ellipse([unit * item for item in (24, 12, 104, 92)], fill=(70, 40, 20))
    draw.ellipse([unit * item for item in (32, 24, 96, 112)], fill=(235, 195, 165))
    for left in (44, 72):
        draw.ellipse([unit * item for item in (left, 52, left + 12, 62)], fill=(250, 250, 250))
        draw.ellipse([unit * item for item in (left + 4, 54, left + 9, 60)], fill=(30, 40, 60))
    draw.arc([unit * item for item in (48, 70, 80, 94)], 20, 160, fill=(150, 60, 60), width=max(1, int(3 * unit)))
    return image
