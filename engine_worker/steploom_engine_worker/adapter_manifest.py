"""What an adapter on disk says of itself: `adapters/NAME/adapter.json` of a model directory, without its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from steploom_common.adapter import AdapterTraits
from steploom_common.settings import ConfigError, check, from_table, section, setting
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model_files import read_json

FOLDER = "adapters"
DESCRIPTION, WEIGHTS = "adapter.json", "adapter.safetensors"


@dataclass(frozen=True)
class AdapterManifest:
    """The whole of adapter.json."""

    format: int = setting(1, "version of this file", at_least=1, at_most=1)
    base_weights_sha256: str = setting("", "of the model that it was trained on")
    rank: int = setting(0, "of the weight changes; 0: none", at_least=0, at_most=4096)
    timestep_spacing: str = setting(
        "", "which training steps it visits; empty: as the model", choices=("", "trailing", "leading", "linspace")
    )
    traits: AdapterTraits = section(AdapterTraits, "the requests that it was trained for")

    def __post_init__(self) -> None:
        check(self)


def read_adapter_manifest(folder: Path, base_weights_sha256: str) -> AdapterManifest:
    """That of the adapter in a folder.

    Args:
        folder: of any place; that of a model's own adapter is `FOLDER`/NAME in the model directory.
        base_weights_sha256: of the model that it is to be used with.

    Raises:
        ModelError: it is missing or damaged, or was trained on other weights.
    """
    description = folder / DESCRIPTION
    try:
        manifest = from_table(AdapterManifest, read_json(description), "")
    except ConfigError as error:
        raise ModelError(description, str(error)) from None
    if manifest.base_weights_sha256 != base_weights_sha256:
        raise ModelError(
            description,
            f"was trained on other weights: base_weights_sha256 is {manifest.base_weights_sha256 or 'empty'}, "
            f"the model's is {base_weights_sha256}",
        )
    return manifest


def adapter_digest(folder: Path) -> str:
    """SHA-256, in hex, of both files.

    Raises:
        ModelError: one is missing.
    """
    digest = hashlib.sha256()
    for name in (DESCRIPTION, WEIGHTS):
        try:
            digest.update((folder / name).read_bytes())
        except FileNotFoundError:
            raise ModelError(folder / name, "is missing") from None
    return digest.hexdigest()
