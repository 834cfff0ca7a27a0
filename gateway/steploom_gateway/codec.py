"""Pictures from bytes and back. Everything here computes and blocks: see `pool.py` for the way off the loop."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from steploom_common.arena import Pixels
from steploom_common.errors import InvalidRequest, Violation
from steploom_gateway.headers import announced_size, detect, num_scans

FIELD = "image.encoded"
_EXIF_ORIENTATION = 0x0112
_JPEG_QUALITY = 92
# A scan of a few bytes takes as long as one of megabytes, if it is of a large picture. Progressive ones have about ten.
_MAX_SCANS = 100

# Named, so that no plugin is searched for at the first request, and no format beside these is ever tried.
_FORMATS = {
    "PNG": PngImagePlugin.PngImageFile.format,
    "JPEG": JpegImagePlugin.JpegImageFile.format,
    "WebP": WebPImagePlugin.WebPImageFile.format,
}

# What undoes each EXIF orientation (EXIF 2.32, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Format(IntEnum):
    """How a picture is written. The values are those of steploom.v1.ImageFormat."""

    PNG = 1
    JPEG = 2
    WEBP = 3
    RAW = 4  # uint8 RGB without a header


@dataclass(frozen=True)
class ImageBounds:
    """What a picture may be at most."""

    max_bytes: int  # as sent
    max_side: int  # pixels
    max_pixels: int  # height times width

    def problem(self, height: int, width: int) -> str | None:
        """The bound that a size breaks, in words, or None."""
        if height < 1 or width < 1:
            return f"is {height} pixels high and {width} wide, must be at least 1"
        if max(height, width) > self.max_side:
            return f"is {height} pixels high and {width} wide, must be at most {self.max_side}"
        if height * width > self.max_pixels:
            return f"has {height * width} pixels, must have at most {self.max_pixels}"
        return None


@dataclass(frozen=True)
class Decoded:
    """An upright RGB picture."""

    image: Image.Image  # may be smaller than the picture: see `decode`
    height: int  # of the picture that was sent; pixels
    width: int


def decode(data: bytes, bounds: ImageBounds, enough: int) -> Decoded:
    """A PNG, JPEG or WebP as RGB: upright by its EXIF orientation, transparency on white, colour profiles ignored.

    A JPEG with both sides above `enough` pixels is decoded at a half, a quarter or an eighth, never below `enough`.

    Raises:
        InvalidRequest: another format, an animation, more than the bounds, or damaged data.
    """
    name = _supported(data, bounds)
    try:
        size = announced_size(data, name)
        _refuse(size and bounds.problem(*size))
        _refuse(_too_many_scans(data) if name == "JPEG" else None)
        with Image.open(io.BytesIO(data), formats=[_FORMATS[name] or name]) as image:
            _refuse(bounds.problem(image.height, image.width))
            _refuse(_animation(image, name))
            return _loaded(image, enough)
    except InvalidRequest:
        raise
    except struct.error:
        raise _invalid(f"is a {name} that ends within its header") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _invalid(f"has too many pixels, must have at most {bounds.max_pixels}") from None
    except Exception as error:  # decoders meet damaged data with errors of every class
        raise _invalid(f"is a {name} that cannot be decoded: {error}") from None


def encode(pixels: Pixels, format: Format) -> bytes:
    """The picture in a container; for RAW its bytes, row by row."""
    if format is Format.RAW:
        return pixels.tobytes()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    out = io.BytesIO()
    match format:
        case Format.JPEG:
            image.save(out, "JPEG", quality=_JPEG_QUALITY)
        case Format.WEBP:
            image.save(out, "WEBP", lossless=True)
        case _:
            image.save(out, "PNG")
    return out.getvalue()


def _supported(data: bytes, bounds: ImageBounds) -> str:
    _refuse(None if data else "is empty")
    if len(data) > bounds.max_bytes:
        raise _invalid(f"has {len(data)} bytes, must have at most {bounds.max_bytes}")
    name = detect(data)
    if name not in _FORMATS:
        raise _invalid(f"is {name or 'no picture that is known here'}, must be PNG, JPEG or WebP")
    return name


def _too_many_scans(data: bytes) -> str | None:
    scans = num_scans(data)
    return f"is a JPEG of {scans} scans, must have at most {_MAX_SCANS}" if scans > _MAX_SCANS else None


def _animation(image: Image.Image, name: str) -> str | None:
    """A JPEG with further pictures (a depth map, a gain map) is taken for its first: cameras write these."""
    frames: int = getattr(image, "n_frames", 1)
    return f"is a {name} of {frames} frames, must have one" if frames > 1 and name != "JPEG" else None


def _loaded(image: Image.Image, enough: int) -> Decoded:
    width, height = image.size
    orientation = _orientation(image)
    if min(image.size) > enough:
        image.draft(None, (enough, enough))  # JPEG alone: fewer coefficients of each block
    upright = _rgb(image)
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    return Decoded(upright, width, height) if orientation >= 5 else Decoded(upright, height, width)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where the picture says nothing, or nonsense."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not spoil the picture
        return 1
    return value if value in _UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")


def _refuse(problem: str | None) -> None:
    if problem:
        raise _invalid(problem)


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(Violation(FIELD, problem))
