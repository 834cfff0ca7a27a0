"""Pictures on disk: formats by suffix, and writing that leaves no partial file."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steploom.types import EditResult, Format

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


def save_picture(result: EditResult, path: Path) -> Path:
    """Writes `result` in the format of `path`'s suffix; the bytes as they came where that is their format."""
    wanted = format_of(path)
    write_whole(path, result.data if wanted == result.format else _encode(result, wanted))
    return path


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


def _encode(result: EditResult, wanted: Format) -> bytes:
    buffer = io.BytesIO()
    if wanted == "jpeg":
        result.image.save(buffer, "JPEG", quality=92)
    else:
        result.image.save(buffer, wanted.upper(), lossless=True)  # PNG is so anyway
    return buffer.getvalue()
