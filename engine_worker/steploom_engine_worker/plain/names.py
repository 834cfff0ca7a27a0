"""Names that lead from the repository to a model's files, and never out of its folder."""

from __future__ import annotations

import re

# A folder of the repository. Ours go into logs, metrics and file names, so that they are plain words.
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_FILE = re.compile(r"[^/\0]{1,255}")

MODEL_NAMES = "1 to 200 of A-Z, a-z, 0-9 and . _ + -, the first no dot, plus or hyphen"


def is_model_name(name: str) -> bool:
    """Whether a folder of this name is a model."""
    return _MODEL.fullmatch(name) is not None


def version_of(name: str) -> int | None:
    """The version that a folder of this name holds; None: it is something else."""
    return int(name) if _VERSION.fullmatch(name) else None


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the folder where it is looked for."""
    return _FILE.fullmatch(name) is not None and name not in (".", "..")
