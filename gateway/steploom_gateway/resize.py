"""How a picture of any size becomes the one that the model takes, and how the model's becomes the answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from PIL import Image

from steploom_common.arena import Pixels


class SizeRule(IntEnum):
    """The values are those of steploom.v1.SizeRule."""

    CROP = 1  # scale to cover, cut the centre out; answers at the model's size
    PAD = 2  # scale to fit, repeat the edge; answers without the padding
    STRETCH = 3  # scale both sides; answers at the input's size


@dataclass(frozen=True)
class Frame:
    """Where the answer lies in the model's picture, and how large it is sent. Pixels."""

    top: int
    left: int
    height: int  # of the part that is not padding
    width: int
    out_height: int  # of the answer
    out_width: int


def fit(image: Image.Image, size: tuple[int, int], model: tuple[int, int], rule: SizeRule) -> tuple[Pixels, Frame]:
    """The picture at the model's size, and the way back.

    Args:
        image: RGB; may be a reduced form of the picture.
        size: height and width of the picture that was sent.
        model: height and width that the model takes.
        rule: how the shape is changed.
    """
    height, width = model
    if rule is SizeRule.CROP:
        return _scaled(image, model, _centre(image, height / width)), Frame(0, 0, height, width, height, width)
    if rule is SizeRule.STRETCH:
        return _scaled(image, model), Frame(0, 0, height, width, *size)
    inner = _inside(size, model)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    rows = (top, height - inner[0] - top)
    columns = (left, width - inner[1] - left)
    return np.pad(_scaled(image, inner), (rows, columns, (0, 0)), "edge"), Frame(top, left, *inner, *inner)


def restore(pixels: Pixels, frame: Frame) -> Pixels:
    """The answer: the model's picture without padding, at the size that the rule asks for."""
    return _resized(_content(pixels, frame, 1.0, 1.0), frame.out_height, frame.out_width)


def preview(pixels: Pixels, model: tuple[int, int], frame: Frame, max_side: int) -> Pixels:
    """A small form of the answer from a preview of any size of the model's picture."""
    content = _content(pixels, frame, pixels.shape[0] / model[0], pixels.shape[1] / model[1])
    scale = min(1.0, max(pixels.shape[:2]) / max(model), max_side / max(frame.out_height, frame.out_width))
    return _resized(content, max(1, round(frame.out_height * scale)), max(1, round(frame.out_width * scale)))


def _content(pixels: Pixels, frame: Frame, down: float, across: float) -> Pixels:
    top, left = int(frame.top * down), int(frame.left * across)
    height, width = max(1, round(frame.height * down)), max(1, round(frame.width * across))
    return pixels[top : top + height, left : left + width]


def _inside(size: tuple[int, int], model: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width of the same shape within the model's; each at least one."""
    scale = min(model[0] / size[0], model[1] / size[1])
    return max(1, min(model[0], round(size[0] * scale))), max(1, min(model[1], round(size[1] * scale)))


def _centre(image: Image.Image, ratio: float) -> tuple[float, float, float, float]:
    """The largest box of the shape `ratio` (height / width) in the middle: left, top, right, bottom."""
    width, height = min(image.width, image.height / ratio), min(image.height, image.width * ratio)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return left, top, left + width, top + height


def _scaled(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Pixels:
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS, box, reducing_gap=3.0)
    return np.asarray(image)


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    return _scaled(Image.fromarray(np.ascontiguousarray(pixels)), (height, width))
