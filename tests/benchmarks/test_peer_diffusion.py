"""Pictures of another server are looked at before they count."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from steploom_benchmarks.diffusion import WrongPicture, check_picture
from steploom_loadtest.pictures import portrait, portrait_image


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_an_edit_passes() -> None:
    pixels = np.asarray(portrait_image()).copy()
    pixels[50:64, 36:92] = 10  # sunglasses
    check_picture(png(pixels))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "no picture"),
        (png(np.zeros((128, 128, 3))), "one colour, near 0"),
        (portrait(64), "where \\(128, 128, 3\\) was sent"),
        (portrait(), "no edit of what was sent: 0.0 away"),
        (png(np.random.default_rng(0).integers(0, 256, (128, 128, 3))), "no edit of what was sent"),
    ],
    ids=["nothing", "zeroed", "small", "unchanged", "noise"],
)
def test_another_picture_does_not(answer: bytes, words: str) -> None:
    with pytest.raises(WrongPicture, match=words):
        check_picture(answer)
