"""Writes InstructPix2Pix directories with random weights: a tiny one for tests, one of full size for measurements.

Both have every config key and the very tensor names of the published Stable Diffusion 1.5 checkpoint; the tiny one runs
in milliseconds. `python -m steploom_engine_worker.tiny_model ROOT` writes the one of full size, `--tiny` the other, and
`--adapter NAME` adds a student: an adapter, with random weights too, which draws in few steps of one row each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.adapter_files import FOLDER, AdapterManifest, write_adapter
from steploom_engine_worker.model_files import read_json, weights_sha256

_TOKENS = 16
_WIDTH = 32  # of the text condition

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionInstructPix2PixPipeline",
    "_diffusers_version": "0.12.0.dev0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": True,
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.12.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [32, 64, 64, 64],
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": _WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 8,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "sample_size": 8,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "upcast_attention": False,
    "use_linear_projection": False,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.12.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 64,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": _WIDTH,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": _TOKENS,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "projection_dim": _WIDTH,
    "torch_dtype": "float32",
    "vocab_size": 514,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "_diffusers_version": "0.12.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_TOKENIZER: dict[str, Any] = {
    "add_prefix_space": False,
    "bos_token": "<|startoftext|>",
    "do_lower_case": True,
    "eos_token": "<|endoftext|>",
    "errors": "replace",
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": "<|endoftext|>",
}

# The published VAE's attention has the names of an older diffusers.
_OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


FULL_SIZE: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "sample_size": 64},
    "vae": {"block_out_channels": [128, 256, 512, 512], "sample_size": 512},
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
}


def write_tiny_model(
    root: Path, *, seed: int = 0, scheduler: Mapping[str, Any] | None = None, unet: Mapping[str, Any] | None = None
) -> Path:
    """Fills `root`; the arguments change keys of scheduler_config.json and of the UNet's config.json."""
    return _write(root, seed, {**SCHEDULER, **(scheduler or {})}, {**UNET, **(unet or {})}, VAE, TEXT, torch.float32)


def write_full_size_model(root: Path, *, seed: int = 0) -> Path:
    """Fills `root` with the published widths, 512 x 512 pixels, in half precision: 2 GB, for measurements."""
    unet, vae, text = ({**base, **FULL_SIZE[key]} for base, key in ((UNET, "unet"), (VAE, "vae"), (TEXT, "text")))
    return _write(root, seed, SCHEDULER, unet, vae, text, torch.float16)


def add_student(root: Path, name: str, *, rank: int = 16, seed: int = 0) -> None:
    """Adds an adapter with random weights to a model directory: guidance-distilled, for at most four steps.

    Its changes are about a tenth of the weights: large enough to be seen, too small to make values overflow.
    """
    torch.manual_seed(seed)
    with torch.device("meta"):  # its shapes are all that is needed
        unet = UNet2DConditionModel.from_config(read_json(root / "unet" / "config.json"))
    traits = AdapterTraits(max_steps=4, is_guidance_distilled=True)
    adapter = Adapter(unet, [name for name, _ in linear_maps(unet)], rank, traits.is_guidance_distilled)
    for low_rank in adapter.changes.values():
        torch.nn.init.normal_(low_rank.up.weight, std=0.1 / rank**0.5)
    if adapter.guidance is not None:
        torch.nn.init.normal_(adapter.guidance.out.weight, std=0.01)
    manifest = AdapterManifest(
        base_weights_sha256=weights_sha256(root), rank=rank, timestep_spacing="trailing", traits=traits
    )
    write_adapter(root / FOLDER / name, manifest, adapter.tensors())
    file = root / "steploom.json"
    listed = read_json(file) if file.exists() else {}
    _write_json(file, {**listed, "adapters": [*(item for item in listed.get("adapters", ()) if item != name), name]})


def _write(
    root: Path, seed: int, scheduler: Mapping[str, Any], unet: Mapping[str, Any], vae: Mapping[str, Any],
    text: Mapping[str, Any], dtype: torch.dtype,
) -> Path:  # fmt: skip
    torch.manual_seed(seed)
    _write_json(root / "model_index.json", MODEL_INDEX)
    _write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    for part, config in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        _write_json(root / part / "config.json", config)
    weights = "diffusion_pytorch_model.safetensors"
    _save(root / "unet" / weights, _lively(UNet2DConditionModel.from_config(unet)), dtype)
    _save(root / "vae" / weights, _old_names(AutoencoderKL.from_config(vae).state_dict()), dtype)
    _save(root / "text_encoder" / "model.safetensors", _published_text(CLIPTextModel(CLIPTextConfig(**text))), dtype)
    _write_tokenizer(root / "tokenizer", int(text["max_position_embeddings"]))
    return root


def _lively(unet: Any) -> dict[str, Tensor]:
    """Weights under which text and picture matter: freshly made ones all but ignore both."""
    state: dict[str, Tensor] = unet.state_dict()
    for name, tensor in state.items():
        if "attn2.to_" in name or name == "conv_in.weight":
            tensor.mul_(3.0)
    return state


def _old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for new, old in _OLD_VAE_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    return renamed


def _published_text(encoder: Any) -> dict[str, Tensor]:
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}
    positions = torch.arange(encoder.config.max_position_embeddings)[None]
    return {**state, "text_model.embeddings.position_ids": positions}


def _write_tokenizer(folder: Path, tokens: int) -> None:
    """CLIP's byte vocabulary without merges: every letter is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "tokenizer_config.json", {**_TOKENIZER, "model_max_length": tokens})
    _write_json(folder / "vocab.json", {piece: index for index, piece in enumerate(pieces)})
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _save(file: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    stored = {name: (tensor.to(dtype) if tensor.is_floating_point() else tensor) for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, file, metadata={"format": "pt"})


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="tiny_model", description="Writes a model directory of random weights.")
    parser.add_argument("root", type=Path, help="folder to fill")
    parser.add_argument("--tiny", action="store_true", help="64 x 64 pixels, some MB; without it full size, 2 GB")
    parser.add_argument("--adapter", metavar="NAME", help="adds a student: few steps of one row each")
    parser.add_argument("--rank", type=int, default=16, help="of the student's changes; default: 16")
    given = parser.parse_args(arguments)
    (write_tiny_model if given.tiny else write_full_size_model)(given.root)
    if given.adapter:
        add_student(given.root, given.adapter, rank=given.rank)


if __name__ == "__main__":
    main()
