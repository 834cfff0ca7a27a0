"""Gathers the trained parts into a model directory in diffusers' layout, in half precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from steploom_common.settings import ConfigError, from_table
from steploom_engine_worker.adapter_files import DESCRIPTION, FOLDER, WEIGHTS, read_adapter
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.manifest import FILE, Manifest
from steploom_engine_worker.model_files import weights_sha256

from .models import build_scheduler
from .sampling import Guidance
from .student import UNET

INDEX = {
    "_class_name": "StableDiffusionInstructPix2PixPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def pack(run: Path, out: Path, name: str, steps: int, guidance: Guidance) -> None:
    """Write ``run``'s unet, vae, text encoder and tokenizer to ``out`` as float16 safetensors, with a manifest."""
    out.mkdir(parents=True, exist_ok=True)
    unet = UNet2DConditionModel.from_pretrained(run / "unet", use_safetensors=True)
    vae = AutoencoderKL.from_pretrained(run / "vae", use_safetensors=True)
    resolution = int(vae.config["sample_size"])
    unet.half().save_pretrained(out / "unet", max_shard_size="16MB")
    vae.half().save_pretrained(out / "vae")
    text_encoder = CLIPTextModel.from_pretrained(run / "text_encoder", dtype=torch.float16, use_safetensors=True)
    text_encoder.save_pretrained(out / "text_encoder")
    build_scheduler().save_pretrained(out / "scheduler")
    _pack_tokenizer(CLIPTokenizer.from_pretrained(run / "tokenizer"), out / "tokenizer")
    (out / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    write_manifest(out, name, resolution, steps, guidance)


def _pack_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Both forms: ``tokenizer.json``, and the vocabulary and merges that older readers want."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def write_manifest(folder: Path, name: str, resolution: int, steps: int, guidance: Guidance) -> None:
    """The model's name, its defaults, and the hash of its weights that adapters are bound to."""
    manifest = {
        "format": 1,
        "name": name,
        "resolution": resolution,
        "defaults": {
            "sampler": "ddim",
            "steps": steps,
            "guidance_scale": guidance.text,
            "image_guidance_scale": guidance.image,
        },
        "weights_sha256": weights_sha256(folder),
        "adapters": [],
    }
    (folder / FILE).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> Mapping[str, object]:
    """The manifest of a model directory."""
    loaded: dict[str, object] = json.loads((folder / FILE).read_text())
    return loaded


def default_guidance(manifest: Mapping[str, object]) -> tuple[Guidance, int]:
    """The default guidance and step count of a manifest."""
    defaults = manifest["defaults"]
    assert isinstance(defaults, dict)
    guidance = Guidance(float(defaults["guidance_scale"]), float(defaults["image_guidance_scale"]))
    return guidance, int(defaults["steps"])


def install_adapter(model: Path, student: Path, name: str) -> None:
    """Copy a student of low rank to ``adapters/NAME`` of a model directory and list it in its manifest.

    Raises:
        ModelError: the student is of another model, has weights of its own, or the name cannot be one.
    """
    files = read_adapter(student, weights_sha256(model))
    if (student / UNET).exists():
        raise ModelError(student / UNET, "holds weights of its own: only a student of low rank can share a batch")
    manifest: dict[str, object] = {"format": 1}
    if (model / FILE).exists():
        manifest |= read_manifest(model)
    adapters = manifest.get("adapters", [])
    assert isinstance(adapters, list)
    manifest["adapters"] = [*(item for item in adapters if item != name), name]
    try:
        from_table(Manifest, manifest, "")
    except ConfigError as error:
        raise ModelError(model / FILE, str(error)) from None
    target = model / FOLDER / name
    target.mkdir(parents=True, exist_ok=True)
    for file in (DESCRIPTION, WEIGHTS):
        shutil.copyfile(files.folder / file, target / file)
    (model / FILE).write_text(json.dumps(manifest, indent=2) + "\n")
