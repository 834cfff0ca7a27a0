"""Loads an InstructPix2Pix-format directory: UNet, VAE, text encoder, tokenizer, noise schedule.

Local files only, safetensors only. Every fault is a `ModelError` that names the file or field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from steploom_engine_worker.adapter import load_adapter
from steploom_engine_worker.adapter_files import read_adapter
from steploom_engine_worker.adapter_manifest import FOLDER, AdapterManifest
from steploom_engine_worker.description import describe
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.manifest import ModelDefaults
from steploom_engine_worker.model_files import PartFiles, check_directory
from steploom_engine_worker.schedule import Sampler, ScheduleConfig

_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter of a loaded model."""

    name: str
    manifest: AdapterManifest
    digest: str  # of both files, hex
    network: Any  # adapter.Adapter


@dataclass(frozen=True)
class Model:
    """A loaded model; its networks are in evaluation mode on the CPU."""

    name: str
    root: Path  # of the directory
    digest: str  # hex
    base_digest: str  # the same without adapters
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
    about = describe(root)
    parts = about.files.parts
    transformers.utils.logging.disable_progress_bar()
    adapters = [read_adapter(root / FOLDER / item.name, about.base_weights_sha256) for item in about.adapters]
    unet = _load(UNet2DConditionModel, parts["unet"], dtype)
    return Model(
        name=about.name,
        root=root,
        digest=about.digest,
        base_digest=about.base_digest,
        unet=unet,
        vae=_load(_VAES[parts["vae"].class_name], parts["vae"], dtype),
        text_encoder=_load(transformers.CLIPTextModel, parts["text_encoder"], dtype),
        tokenizer=_load_tokenizer(parts["tokenizer"]),
        schedule=about.schedule,
        default_sampler=about.default_sampler,
        defaults=about.defaults,
        side=about.side,
        vae_factor=about.vae_factor,
        adapters=tuple(
            LoadedAdapter(item.name, item.manifest, known.digest, load_adapter(unet, item).to(dtype))
            for item, known in zip(adapters, about.adapters, strict=True)
        ),
    )


def load_unet(root: Path, dtype: torch.dtype) -> Any:
    """The UNet of a directory alone, on the CPU.

    Raises:
        ModelError: the directory is wrong, partial or corrupt.
    """
    return _load(UNet2DConditionModel, check_directory(root).parts["unet"], dtype)


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
