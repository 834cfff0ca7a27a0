"""Adapters on disk: `adapters/NAME` of a model directory, bound by hash to the weights that they were trained on.

adapter.json          what it was trained for: see `AdapterManifest`
adapter.safetensors   `unet.MODULE.lora_A.weight` and `…lora_B.weight`, as other tools name them;
                      `guidance_embedding.…` where it takes the guidance scales as inputs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

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


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that was read and fits the model's weights; its tensors are on the CPU, as they were stored."""

    folder: Path
    manifest: AdapterManifest
    tensors: dict[str, Tensor]
    digest: str  # of both files, hex

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name


def read_adapter(folder: Path, base_weights_sha256: str) -> AdapterFiles:
    """The adapter in a folder.

    Args:
        folder: of any place; that of a model's own adapter is `FOLDER`/NAME in the model directory.
        base_weights_sha256: of the model that it is to be used with.

    Raises:
        ModelError: it is missing or damaged, or was trained on other weights.
    """
    description, weights = folder / DESCRIPTION, folder / WEIGHTS
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
    try:
        tensors = load_file(weights)
    except FileNotFoundError:
        raise ModelError(weights, "is missing") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(weights, f"is no complete safetensors file: {error}") from None
    digest = hashlib.sha256(description.read_bytes() + weights.read_bytes()).hexdigest()
    return AdapterFiles(folder, manifest, tensors, digest)


def write_adapter(folder: Path, manifest: AdapterManifest, tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().half().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(half, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
