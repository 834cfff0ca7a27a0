"""What the first bytes of a picture say, read without a decoder: its format, and its size where that has a fixed place.

Sizes are known before any library allocates for them.
"""

from __future__ import annotations

import struct

# (offset, bytes at it, format)
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<!DOCTYPE", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)


def detect(data: bytes) -> str | None:
    """The format that the first bytes announce, or None."""
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return name
    return None


def announced_size(data: bytes, name: str) -> tuple[int, int] | None:
    """Height and width in the header of a PNG or a WebP; None for a JPEG, whose header a decoder must walk.

    Raises:
        struct.error: the header is cut short.
    """
    if name == "PNG":
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    return _webp_size(data) if name == "WebP" else None


def num_scans(data: bytes) -> int:
    """Scans of a JPEG, at most: markers of such, wherever they stand. None can stand within a scan's own bytes."""
    return data.count(b"\xff\xda")


def _webp_size(data: bytes) -> tuple[int, int]:
    """RFC 9649, sections 2.5 to 2.7."""
    if data.startswith(b"VP8X", 12):
        wide, wider, high, higher = struct.unpack_from("<HBHB", data, 24)
        return (high | higher << 16) + 1, (wide | wider << 16) + 1
    if data.startswith(b"VP8L", 12):
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF
