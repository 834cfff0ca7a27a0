"""What a model directory says of a model, all but its networks: no library that runs them is loaded for it.

Every fault is a `ModelError` that names the file or field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from steploom_engine_worker.adapter_manifest import FOLDER, AdapterManifest, adapter_digest, read_adapter_manifest
from steploom_engine_worker.engine import AdapterVersion, ModelInfo
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.manifest import SAMPLERS, Manifest, ModelDefaults, read_manifest
from steploom_engine_worker.model_files import ModelFiles, PartFiles, check_directory, weights_sha256
from steploom_engine_worker.schedule import Sampler, ScheduleConfig, ScheduleError

# What stands nearest to the scheduler that a checkpoint was published with; any other: DDIM.
_SAMPLER_OF_SCHEDULER = {
    "EulerDiscreteScheduler": Sampler.EULER,
    "EulerAncestralDiscreteScheduler": Sampler.EULER,
    "DPMSolverMultistepScheduler": Sampler.DPMPP_2M,
}

# Conditions of a UNet beyond text and picture; an InstructPix2Pix has none of them.
_FOREIGN_CONDITIONS = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type")


class DescribedAdapter(Protocol):
    """An adapter by its name and what it was trained for."""

    @property
    def name(self) -> str:
        """That of its folder."""

    @property
    def manifest(self) -> AdapterManifest:
        """See there."""

    @property
    def digest(self) -> str:
        """Of both files, hex."""


class Described(Protocol):
    """A model as far as requests are concerned."""

    @property
    def name(self) -> str:
        """The model's."""

    @property
    def root(self) -> Path:
        """Of the directory."""

    @property
    def digest(self) -> str:
        """Equal digests draw equal pictures."""

    @property
    def base_digest(self) -> str:
        """The same of the model without its adapters."""

    @property
    def schedule(self) -> ScheduleConfig:
        """Of its noise."""

    @property
    def default_sampler(self) -> Sampler:
        """Where a request names none."""

    @property
    def defaults(self) -> ModelDefaults:
        """Of a request."""

    @property
    def side(self) -> int:
        """Pixels of a picture."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    def adapters(self) -> Sequence[DescribedAdapter]:
        """By number."""


@dataclass(frozen=True)
class AdapterDescription:
    """An adapter without its weights."""

    name: str
    manifest: AdapterManifest
    digest: str  # of both files, hex


@dataclass(frozen=True)
class Description:
    """A checked model directory; see `Described`."""

    files: ModelFiles
    name: str
    digest: str  # hex
    base_digest: str  # the same without adapters
    schedule: ScheduleConfig
    default_sampler: Sampler
    defaults: ModelDefaults
    side: int  # pixels
    vae_factor: int  # pixels a latent, along a side
    base_weights_sha256: str  # what adapters were trained on; empty where there are none
    adapters: tuple[AdapterDescription, ...] = ()

    @property
    def root(self) -> Path:
        """Of the directory."""
        return self.files.root

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        side = self.side // self.vae_factor
        return int(self.files.parts["unet"].config["out_channels"]), side, side


def describe(root: Path) -> Description:
    """Reads all of a directory but its networks' weights, which are hashed.

    Raises:
        ModelError: it is wrong, partial or corrupt, or no InstructPix2Pix.
    """
    files = check_directory(root)
    _check_fit(files)
    manifest = read_manifest(root)
    factor = _vae_factor(files.parts["vae"])
    base = (manifest.weights_sha256 or weights_sha256(root)) if manifest.adapters else ""
    adapters = tuple(_adapter(root / FOLDER / name, base) for name in manifest.adapters)
    digest = files.digest()
    return Description(
        files=files,
        name=manifest.name or root.resolve().name,
        digest=_digest(digest, adapters),
        base_digest=digest,
        schedule=_read_schedule(files.parts["scheduler"]),
        default_sampler=_default_sampler(manifest.defaults, files.parts["scheduler"]),
        defaults=manifest.defaults,
        side=_side(files, manifest, factor),
        vae_factor=factor,
        base_weights_sha256=base,
        adapters=adapters,
    )


def model_info(model: Described, max_steps: int) -> ModelInfo:
    """What a batcher and a gateway must know of a model that takes so many steps."""
    return ModelInfo(
        name=model.name,
        height=model.side,
        width=model.side,
        max_steps=max_steps,
        default_guidance_scale=model.defaults.guidance_scale,
        default_image_guidance_scale=model.defaults.image_guidance_scale,
        default_sampler=model.default_sampler,
        latent_shape=model.latent_shape,
        digest=model.base_digest,
        versions=tuple(AdapterVersion(item.name, item.digest, item.manifest.traits) for item in model.adapters),
    )


def _adapter(folder: Path, base: str) -> AdapterDescription:
    return AdapterDescription(folder.name, read_adapter_manifest(folder, base), adapter_digest(folder))


def _digest(base: str, adapters: Sequence[AdapterDescription]) -> str:
    """Of all that decides what is drawn."""
    if not adapters:
        return base
    parts = [base, *(f"{item.name} {item.digest}" for item in adapters)]
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
