"""An adapter that is to be loaded while the model serves: found by its name, read, and bound to the very weights.

The model directory may have changed since the model was read. What an adapter was trained on is therefore compared with
the files of the model only after these have been found to be the ones that were read.
"""

from __future__ import annotations

from pathlib import Path

from steploom_engine_worker.adapter_manifest import DESCRIPTION, FOLDER, adapter_digest
from steploom_engine_worker.errors import AdapterMissing, ModelError
from steploom_engine_worker.manifest import adapter_name_problem
from steploom_engine_worker.model_files import check_directory, weights_sha256


def base_weights(root: Path, base_digest: str) -> str:
    """What adapters of a model in a directory are bound to.

    Args:
        root: the model directory.
        base_digest: of the model that was read from it.

    Raises:
        ModelError: the files are no longer those that were read.
    """
    if check_directory(root).digest() != base_digest:
        raise ModelError(
            root, "has changed since the worker read the model: adapters for it need a worker that reads it anew"
        )
    return weights_sha256(root)


def adapter_folder(root: Path, name: str) -> Path:
    """The folder of an adapter.

    Raises:
        AdapterMissing: there is none, or there can be none of that name.
    """
    folder = root / FOLDER / name
    problem = adapter_name_problem(name)
    if problem:
        raise AdapterMissing(f"adapter {name[:100]!r} cannot exist: a name {problem}")
    if not folder.is_dir():
        known = sorted(item.name for item in (root / FOLDER).glob("*") if (item / DESCRIPTION).is_file())
        raise AdapterMissing(
            f"adapter {name!r} does not exist in {root / FOLDER}; there {'is' if len(known) == 1 else 'are'}: "
            f"{', '.join(known) or 'none'}"
        )
    return folder


def check_unchanged(folder: Path, digest: str) -> None:
    """Whether the files that have been read are those of the digest that was taken before.

    Raises:
        ModelError: somebody wrote to them meanwhile.
    """
    if adapter_digest(folder) != digest:
        raise ModelError(folder, "was changed while it was read: load it again when it is whole")
