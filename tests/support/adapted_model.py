"""For tests of adapters: random ones, added to a model directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.adapter_files import FOLDER, AdapterManifest, write_adapter
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import weights_sha256

STUDENT = AdapterTraits(max_steps=4, is_guidance_distilled=True, max_guidance_scale=8.0, max_image_guidance_scale=2.0)


def add_adapter(root: Path, name: str, *, seed: int, rank: int = 3, **changes: Any) -> None:
    """An adapter with random weights that change the prediction visibly."""
    torch.manual_seed(seed)
    traits = changes.pop("traits", STUDENT)
    unet = load_model(root).unet
    names = changes.pop("names", [name for name, _ in linear_maps(unet)])
    adapter = Adapter(unet, names, rank, traits.is_guidance_distilled)
    for tensor in adapter.tensors().values():
        torch.nn.init.normal_(tensor, std=0.1)
    manifest = AdapterManifest(base_weights_sha256=weights_sha256(root), rank=rank, traits=traits)
    write_adapter(root / FOLDER / name, replace(manifest, **changes), adapter.tensors())
    list_adapters(root, *sorted(folder.name for folder in (root / FOLDER).iterdir()))


def list_adapters(root: Path, *names: str) -> None:
    (root / "steploom.json").write_text(json.dumps({"adapters": names}))
