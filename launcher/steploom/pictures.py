"""Pictures on disk: formats by suffix, and writing that leaves no partial file."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Format = Literal["png", "jpeg", "webp", "raw"]
FORMATS: dict[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def format_of(path: Path) -> Format:
    """The picture format of a path's suffix.

    Raises:
        ValueError: an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: cannot write {suffix or 'a file without a suffix'}; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, or leaves what was there: the name changes hands only when all bytes are on disk."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
        Path(draft).chmod(0o666 & ~_umask())  # mkstemp gives owner-only rights
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def encode(image: Image, wanted: Format) -> bytes:
    """The bytes of a PNG, JPEG or WebP file; all but JPEG keep every pixel."""
    buffer = io.BytesIO()
    if wanted == "jpeg":
        image.save(buffer, "JPEG", quality=92)
    else:
        image.save(buffer, wanted.upper(), lossless=True)  # PNG is so anyway
    return buffer.getvalue()
