"""What a model directory must hold, checked before anything is loaded; and the digest of what it holds.

The layout is diffusers': model_index.json and one folder for each part. Weights are safetensors only: pickles are code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steploom_engine_worker.errors import ModelError

PIPELINE = "StableDiffusionInstructPix2PixPipeline"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_READ_BYTES = 1 << 20
_WEIGHTED_PARTS = ("text_encoder", "unet", "vae")  # what an adapter is bound to


@dataclass(frozen=True)
class Part:
    """A folder of the model."""

    name: str
    classes: tuple[str, ...]  # that may stand for it in model_index.json
    config: str  # file name
    weights: str = ""  # file name without ending; empty: none


PARTS = (
    Part("unet", ("UNet2DConditionModel",), "config.json", "diffusion_pytorch_model"),
    Part("vae", ("AutoencoderKL", "AutoencoderTiny"), "config.json", "diffusion_pytorch_model"),
    Part("text_encoder", ("CLIPTextModel",), "config.json", "model"),
    Part("tokenizer", ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast"), "tokenizer_config.json"),
    Part("scheduler", (), "scheduler_config.json"),
)


@dataclass(frozen=True)
class PartFiles:
    """A checked part."""

    folder: Path
    class_name: str
    config: dict[str, Any]
    weights: tuple[Path, ...]  # the shards, in order
    variant: str | None  # of the weights: fp16 where only that is there


@dataclass(frozen=True)
class ModelFiles:
    """A checked model directory."""

    root: Path
    parts: dict[str, PartFiles]

    def digest(self) -> str:
        """SHA-256, in hex, over all files that decide what is drawn."""
        total = hashlib.sha256()
        for file in sorted(self._files()):
            total.update(f"{file.relative_to(self.root).as_posix()} {file.stat().st_size}\n".encode())
            _hash_file(file, total)
        return total.hexdigest()

    def _files(self) -> Iterator[Path]:
        for part in self.parts.values():
            yield from part.weights
            yield from (file for pattern in ("*.json", "*.txt") for file in part.folder.glob(pattern))


def check_directory(root: Path) -> ModelFiles:
    """Looks at every file that loading needs.

    Raises:
        ModelError: names the file or the field, and what was expected.
    """
    if not root.is_dir():
        raise ModelError(root, "is not a directory")
    index_file = root / "model_index.json"
    index = read_json(index_file)
    if index.get("_class_name") != PIPELINE:
        raise ModelError(index_file, f"_class_name is {index.get('_class_name')!r}, expected {PIPELINE!r}")
    return ModelFiles(root, {part.name: _check_part(root, index, part) for part in PARTS})


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file is missing or holds something else.
    """
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelError(file, "is missing") from None
    except (OSError, ValueError) as error:
        raise ModelError(file, f"cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(file, f"holds a {type(value).__name__}, expected an object")
    return value


def _check_part(root: Path, index: dict[str, Any], part: Part) -> PartFiles:
    entry = index.get(part.name)
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
        raise ModelError(root / "model_index.json", f"{part.name} is {entry!r}, expected [library, class]")
    if part.classes and entry[1] not in part.classes:
        expected = " or ".join(part.classes)
        raise ModelError(root / "model_index.json", f"{part.name} is a {entry[1]}, expected {expected}")
    folder = root / part.name
    if not folder.is_dir():
        raise ModelError(folder, "is missing: the directory is not complete")
    config = read_json(folder / part.config)
    weights, variant = _find_weights(folder, part.weights) if part.weights else ((), None)
    for file in weights:
        _check_weights(file)
    return PartFiles(folder, entry[1], config, weights, variant)


def _find_weights(folder: Path, stem: str) -> tuple[tuple[Path, ...], str | None]:
    for variant in (None, "fp16"):
        infix = f".{variant}" if variant else ""
        single = folder / f"{stem}{infix}.safetensors"
        if single.exists():
            return (single,), variant
        index = folder / f"{stem}.safetensors.index{infix}.json"
        if index.exists():
            return _shards(index), variant
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(folder, f"has its weights only as {pickles[0]}: convert it, pickles are not read")
    raise ModelError(folder / f"{stem}.safetensors", "is missing")


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(index, "weight_map is missing or empty, expected tensor names and their files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(index, f"names {name!r}, expected a safetensors file beside it")
        if not (index.parent / name).exists():
            raise ModelError(index.parent / name, f"is missing, {index.name} names it")
    return tuple(index.parent / name for name in names)


def _check_weights(file: Path) -> None:
    from safetensors import SafetensorError, safe_open  # who reads no model needs it not

    try:
        with safe_open(file, framework="np") as tensors:
            if not list(tensors.keys()):
                raise ModelError(file, "holds no tensor")
    except (SafetensorError, OSError) as error:
        raise ModelError(file, f"is no complete safetensors file: {error}") from None


def weights_sha256(root: Path) -> str:
    """SHA-256, in hex, over the safetensors files of UNet, VAE and text encoder: what an adapter is bound to."""
    digest = hashlib.sha256()
    for file in sorted(path for part in _WEIGHTED_PARTS for path in (root / part).glob("*.safetensors")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        _hash_file(file, digest)
    return digest.hexdigest()


def _hash_file(file: Path, digest: Any) -> None:
    """Without holding it in memory: weights are gigabytes."""
    with file.open("rb") as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)


def model_root(setting: str) -> Path:
    """The directory that a setting names, or the embedded model's where it is empty.

    Raises:
        ModelError: the embedded model is not there.
    """
    return Path(setting) if setting else embedded_model()


def embedded_model() -> Path:
    """The directory of avatar-edit: inside the installed package, or in the repository.

    Raises:
        ModelError: it is in neither place.
    """
    package = find_spec("steploom")
    roots = [Path(place) for place in (package.submodule_search_locations or ())] if package else []
    roots.append(Path(__file__).resolve().parents[2])
    places = [root / "models" / "avatar-edit" for root in roots]
    for place in places:
        if (place / "model_index.json").exists():
            return place
    raise ModelError(places[-1], "the embedded model is not there; name a model directory (worker.model or --model)")
