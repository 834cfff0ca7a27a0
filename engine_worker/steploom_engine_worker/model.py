"""Loads an InstructPix2Pix-format directory: UNet, VAE, text encoder, tokenizer, noise schedule.

Local files only, safetensors only. Every fault is a `ModelError` that names the file or field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from steploom_engine_worker.adapter import load_adapter
from steploom_engine_worker.adapter_files import FOLDER, AdapterFiles, AdapterManifest, read_adapter
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.manifest import SAMPLERS, Manifest, ModelDefaults, read_manifest
from steploom_engine_worker.model_files import ModelFiles, PartFiles, check_directory, weights_sha256
from steploom_engine_worker.schedule import Sampler, ScheduleConfig, ScheduleError

_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}

# What stands nearest to the scheduler that a checkpoint was published with; any other: DDIM.
_SAMPLER_OF_SCHEDULER = {
    "EulerDiscreteScheduler": Sampler.EULER,
    "EulerAncestralDiscreteScheduler": Sampler.EULER,
    "DPMSolverMultistepScheduler": Sampler.DPMPP_2M,
}

# Conditions of a UNet beyond text and picture; an InstructPix2Pix has none of them.
_FOREIGN_CONDITIONS = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type")


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter of a loaded model."""

    name: str
    manifest: AdapterManifest
    network: Any  # adapter.Adapter


@dataclass(frozen=True)
class Model:
    """A loaded model; its networks are in evaluation mode on the CPU."""

    name: str
    digest: str  # hex
    unet: Any  # diffusers.UNet2DConditionModel
    vae: Any  # diffusers.AutoencoderKL or AutoencoderTiny
    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: Any
    schedule: ScheduleConfig
    default_sampler: Sampler
    defaults: ModelDefaults
    side: int  # pixels
    vae_factor: int  # pixels a latent, along a side
    adapters: tuple[LoadedAdapter, ...] = ()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        side = self.side // self.vae_factor
        return int(self.unet.config.out_channels), side, side

    @property
    def num_tokens(self) -> int:
        """Tokens that an instruction is padded or cut to."""
        return min(int(self.tokenizer.model_max_length), int(self.text_encoder.config.max_position_embeddings))


def load_model(root: Path, dtype: torch.dtype = torch.float32) -> Model:
    """Loads a directory.

    Raises:
        ModelError: it is wrong, partial or corrupt, or no InstructPix2Pix.
    """
    files = check_directory(root)
    _check_fit(files)
    manifest = read_manifest(root)
    transformers.utils.logging.disable_progress_bar()
    factor = _vae_factor(files.parts["vae"])
    adapters = _read_adapters(root, manifest)
    unet = _load(UNet2DConditionModel, files.parts["unet"], dtype)
    return Model(
        name=manifest.name or root.resolve().name,
        digest=_digest(files, adapters),
        unet=unet,
        vae=_load(_VAES[files.parts["vae"].class_name], files.parts["vae"], dtype),
        text_encoder=_load(transformers.CLIPTextModel, files.parts["text_encoder"], dtype),
        tokenizer=_load_tokenizer(files.parts["tokenizer"]),
        schedule=_read_schedule(files.parts["scheduler"]),
        default_sampler=_default_sampler(manifest.defaults, files.parts["scheduler"]),
        defaults=manifest.defaults,
        side=_side(files, manifest, factor),
        vae_factor=factor,
        adapters=tuple(
            LoadedAdapter(item.name, item.manifest, load_adapter(unet, item).to(dtype)) for item in adapters
        ),
    )


def _read_adapters(root: Path, manifest: Manifest) -> list[AdapterFiles]:
    if not manifest.adapters:
        return []
    base = manifest.weights_sha256 or weights_sha256(root)
    return [read_adapter(root / FOLDER / name, base) for name in manifest.adapters]


def _digest(files: ModelFiles, adapters: Sequence[AdapterFiles]) -> str:
    """Of all that decides what is drawn."""
    if not adapters:
        return files.digest()
    parts = [files.digest(), *(f"{item.name} {item.digest}" for item in adapters)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_fit(files: ModelFiles) -> None:
    """Whether the parts fit each other, by their configs."""
    unet, vae, text = (files.parts[name] for name in ("unet", "vae", "text_encoder"))
    channels = vae.config.get("latent_channels", 4)
    _expect(unet, "in_channels", 2 * channels, "the noisy latents beside those of the input picture")
    _expect(unet, "out_channels", channels, "the latents of the VAE")
    _expect(unet, "cross_attention_dim", text.config.get("hidden_size"), "the width of the text encoder")
    for key in _FOREIGN_CONDITIONS:
        _expect(unet, key, None, "an InstructPix2Pix has no such condition")


def _expect(part: PartFiles, key: str, expected: object, reason: str) -> None:
    value = part.config.get(key)
    if value != expected:
        raise ModelError(part.folder / "config.json", f"{key} is {value!r}, expected {expected!r}: {reason}")


def _vae_factor(vae: PartFiles) -> int:
    key = "block_out_channels" if vae.class_name == "AutoencoderKL" else "encoder_block_out_channels"
    levels = vae.config.get(key)
    if not isinstance(levels, list) or not levels:
        raise ModelError(vae.folder / "config.json", f"{key} is {levels!r}, expected a list of channels")
    return int(2 ** (len(levels) - 1))


def _side(files: ModelFiles, manifest: Manifest, factor: int) -> int:
    unet = files.parts["unet"]
    size = unet.config.get("sample_size")
    side = manifest.resolution or (size * factor if isinstance(size, int) else 0)
    if side <= 0:
        raise ModelError(unet.folder / "config.json", f"sample_size is {size!r}, expected the latents' side")
    multiple = int(factor * 2 ** (len(unet.config.get("block_out_channels", ())) - 1))
    if side % multiple:
        raise ModelError(files.root, f"resolution is {side}, expected a multiple of {multiple}")
    return side


def _read_schedule(scheduler: PartFiles) -> ScheduleConfig:
    try:
        return ScheduleConfig.from_dict(scheduler.config)
    except ScheduleError as error:
        raise ModelError(scheduler.folder / "scheduler_config.json", str(error)) from None


def _default_sampler(defaults: ModelDefaults, scheduler: PartFiles) -> Sampler:
    if defaults.sampler:
        return SAMPLERS[defaults.sampler]
    return _SAMPLER_OF_SCHEDULER.get(str(scheduler.config.get("_class_name")), Sampler.DDIM)


def _load(cls: Any, part: PartFiles, dtype: torch.dtype) -> Any:
    """The network of a part with every weight in its place."""
    load: Callable[[], tuple[Any, Mapping[str, Any]]] = lambda: cls.from_pretrained(  # noqa: E731
        part.folder,
        torch_dtype=dtype,
        variant=part.variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    network, info = _guarded(part, load)
    _check_loaded(part, info)
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ModelError(part.folder, f"tensor {name} holds values that are not finite")
    return network.eval().requires_grad_(False)


def _check_loaded(part: PartFiles, info: Mapping[str, Any]) -> None:
    extra = [name for name in info["unexpected_keys"] if not name.endswith("position_ids")]
    for names, problem in (
        (info["missing_keys"], "lack tensors that config.json asks for"),
        (info["mismatched_keys"], "have tensors of another shape than config.json asks for"),
        (extra, "have tensors that config.json has no place for"),
    ):
        if names:
            some = ", ".join(str(name) for name in sorted(names, key=str)[:3])
            raise ModelError(part.folder, f"the weights {problem}: {some}{' …' if len(names) > 3 else ''}")


def _load_tokenizer(part: PartFiles) -> Any:
    cls = getattr(transformers, part.class_name)
    return _guarded(part, lambda: cls.from_pretrained(part.folder, local_files_only=True))


def _guarded(part: PartFiles, load: Callable[[], Any]) -> Any:
    """Runs a library's loader; what it raises about the directory becomes a `ModelError`."""
    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(part.folder, f"cannot be loaded as {part.class_name}: {error}") from error
