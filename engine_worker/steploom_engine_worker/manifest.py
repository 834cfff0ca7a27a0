"""`steploom.json` of a model directory: its name, its defaults, and which weights it is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from steploom_common.adapter import RESERVED_NAMES
from steploom_common.settings import ConfigError, check, from_table, section, setting
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model_files import read_json, weights_sha256
from steploom_engine_worker.schedule import Sampler

FILE = "steploom.json"
SAMPLERS = {"ddim": Sampler.DDIM, "euler": Sampler.EULER, "dpmpp_2m": Sampler.DPMPP_2M}

# The name is that of a folder, which must not lead out of the model's.
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def adapter_name_problem(name: str) -> str:
    """Why no adapter can have a name, in words; empty where one can."""
    if _ADAPTER_NAME.fullmatch(name) and name not in RESERVED_NAMES:
        return ""
    return f"must be 1 to 64 of [A-Za-z0-9._-], a letter or digit first, and not {' or '.join(RESERVED_NAMES)}"


@dataclass(frozen=True)
class ModelDefaults:
    """What a request gets that does not say."""

    steps: int = setting(35, "denoising steps", at_least=1, at_most=1000)
    guidance_scale: float = setting(7.5, "pull towards the instruction", at_least=1, at_most=30)
    image_guidance_scale: float = setting(1.5, "pull towards the input picture", at_least=1, at_most=10)
    sampler: str = setting("", "empty: by the scheduler of the directory", choices=("", *SAMPLERS))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Manifest:
    """The whole file. Each key may be absent, and so may the file: a published checkpoint has none."""

    format: int = setting(1, "version of this file", at_least=1, at_most=1)
    name: str = setting("", "the model's name; empty: the directory's")
    resolution: int = setting(0, "pixels a side; 0: the UNet's own", at_least=0, at_most=4096)
    weights_sha256: str = setting("", "of the weights that this file was written for; empty: not checked")
    adapters: tuple[str, ...] = setting((), "low-rank adapters by name, in the folder adapters")
    defaults: ModelDefaults = section(ModelDefaults, "what a request gets that does not say")

    def __post_init__(self) -> None:
        check(self)
        for name in self.adapters:
            problem = adapter_name_problem(name)
            if problem:
                raise ConfigError("adapters", f"names {name!r}, {problem}")
        if len(set(self.adapters)) < len(self.adapters):
            raise ConfigError("adapters", f"names one twice: {', '.join(self.adapters)}")


def read_manifest(root: Path) -> Manifest:
    """The manifest of a model directory; an empty one where there is no file.

    Raises:
        ModelError: a key is unknown, of the wrong type or out of its bound, or the weights are others.
    """
    file = root / FILE
    if not file.exists():
        return Manifest()
    try:
        manifest = from_table(Manifest, read_json(file), "")
    except ConfigError as error:
        raise ModelError(file, str(error)) from None
    if manifest.weights_sha256 and manifest.weights_sha256 != weights_sha256(root):
        raise ModelError(file, "weights_sha256 is not that of the weights: the directory is mixed or damaged")
    return manifest
