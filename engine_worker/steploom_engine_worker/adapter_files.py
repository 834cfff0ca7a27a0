"""Adapters on disk: `adapters/NAME` of a model directory, bound by hash to the weights that they were trained on.

adapter.json          what it was trained for: see `AdapterManifest`
adapter.safetensors   `unet.MODULE.lora_A.weight` and `…lora_B.weight`, as other tools name them;
                      `guidance_embedding.…` where it takes the guidance scales as inputs
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from steploom_engine_worker.adapter_manifest import (
    DESCRIPTION,
    FOLDER,
    WEIGHTS,
    AdapterManifest,
    read_adapter_manifest,
)
from steploom_engine_worker.errors import ModelError

__all__ = ["DESCRIPTION", "FOLDER", "WEIGHTS", "AdapterFiles", "AdapterManifest", "read_adapter", "write_adapter"]


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that was read and fits the model's weights; its tensors are on the CPU, as they were stored."""

    folder: Path
    manifest: AdapterManifest
    tensors: dict[str, Tensor]

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
    manifest = read_adapter_manifest(folder, base_weights_sha256)
    weights = folder / WEIGHTS
    try:
        tensors = load_file(weights)
    except FileNotFoundError:
        raise ModelError(weights, "is missing") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(weights, f"is no complete safetensors file: {error}") from None
    return AdapterFiles(folder, manifest, tensors)


def write_adapter(folder: Path, manifest: AdapterManifest, tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, the weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().half().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(half, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
