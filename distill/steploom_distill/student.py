"""Students in a folder: an adapter on the teacher's UNet, or on a UNet of its own, which then lies in `unet` beside it.

The second kind has all weights trained. It is there to be compared with; only the first can share a batch with the
teacher, so only it is served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from steploom_engine_worker.adapter import ALL_ROWS, AdaptedUNet, Adapter, load_adapter
from steploom_engine_worker.adapter_files import AdapterFiles, AdapterManifest, read_adapter, write_adapter
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model_files import weights_sha256

UNET = "unet"


@dataclass(frozen=True)
class Student:
    """A student that can sample."""

    folder: Path
    manifest: AdapterManifest
    network: AdaptedUNet  # every row is the student's

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @property
    def has_own_unet(self) -> bool:
        """Whether all weights were trained, so that it is no adapter."""
        return (self.folder / UNET).is_dir()


def load_student(model_root: Path, folder: Path, unet: UNet2DConditionModel, device: torch.device) -> AdaptedUNet:
    """The student of a folder, in evaluation mode and float32; every row is one of its own.

    Args:
        model_root: of the teacher, whose hash the student must name.
        folder: that `save_student` wrote.
        unet: the teacher's; it stays as it is. A student with a UNet of its own takes only its kind from it.

    Raises:
        ModelError: the folder is incomplete, damaged, or of another teacher.
    """
    return build_student(read_adapter(folder, weights_sha256(model_root)), unet, device)


def build_student(files: AdapterFiles, unet: UNet2DConditionModel, device: torch.device) -> AdaptedUNet:
    """`load_student` of files that were read."""
    own = files.folder / UNET
    base = load_unet(own) if own.is_dir() else unet
    student = AdaptedUNet(base, [load_adapter(base, files)])
    student.gates.segments = [(0, ALL_ROWS)]
    module: nn.Module = student.eval().to(device)
    cast(Any, module).to(memory_format=torch.channels_last)  # torch's annotations do not know this form
    return student


def load_unet(folder: Path) -> UNet2DConditionModel:
    """A student's own UNet in float32, its weights frozen.

    Raises:
        ModelError: the folder is incomplete or damaged.
    """
    load = cast(Callable[..., tuple[Any, dict[str, Any]]], UNet2DConditionModel.from_pretrained)
    try:
        unet, info = load(
            folder, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(folder, f"cannot be loaded as UNet2DConditionModel: {error}") from error
    odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if odd:
        raise ModelError(folder, f"the weights do not fit config.json: {odd[0]}")
    return cast(UNet2DConditionModel, unet.requires_grad_(False))


def save_student(
    folder: Path, adapter: Adapter, manifest: AdapterManifest, unet: UNet2DConditionModel | None = None
) -> None:
    """Write a student in half precision.

    Args:
        folder: is made; files of an earlier student of the same kind are replaced.
        adapter: its changes and the embedding of the guidance scales.
        manifest: its bounds, and the hash of the teacher's weights.
        unet: where all weights were trained; the plain network, not the one inside an `AdaptedUNet`.

    Raises:
        FileExistsError: a UNet lies in the folder and none is given: it would be taken for this student's.
    """
    if unet is None and (folder / UNET).exists():
        raise FileExistsError(f"{folder / UNET} is there: a student with a UNet of its own, or a model directory")
    write_adapter(folder, manifest, adapter.tensors())
    if unet is not None:
        half: Any = copy.deepcopy(unet).half()
        half.register_to_config(_name_or_path="")  # where the teacher lay is nobody's business
        half.save_pretrained(folder / UNET)
