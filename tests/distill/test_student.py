"""Students come back from their folders as they were saved."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from steploom_common.adapter import AdapterTraits
from steploom_distill.config import ModelConfig
from steploom_distill.models import build_unet
from steploom_distill.student import UNET, load_student, save_student
from steploom_engine_worker.adapter import ALL_ROWS, AdaptedUNet, Adapter, linear_maps
from steploom_engine_worker.adapter_files import AdapterManifest, read_adapter
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model_files import weights_sha256

CPU = torch.device("cpu")
TINY = ModelConfig(resolution=32, unet_channels=(16, 16, 32), text_width=32)
TRAITS = AdapterTraits(max_steps=4, is_guidance_distilled=True, max_guidance_scale=7.5, max_image_guidance_scale=3.0)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(TINY).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def root(unet: UNet2DConditionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a student is bound to: a folder with the teacher's UNet."""
    folder = tmp_path_factory.mktemp("teacher")
    unet.save_pretrained(folder / "unet")
    return folder


def random_adapter(unet: UNet2DConditionModel, rank: int) -> Adapter:
    """One that changes what the UNet predicts, at its low ranks and in its embedding of the guidance."""
    names = [name for name, _ in linear_maps(unet) if "attentions" in name] if rank else []
    adapter = Adapter(unet, names, rank, has_guidance=True).eval().requires_grad_(False)
    for name, tensor in adapter.tensors().items():
        generator = torch.Generator().manual_seed(len(name))
        tensor.copy_((0.2 * torch.randn(tensor.shape, generator=generator)).half())  # exact in the file
    return adapter


def predict(student: AdaptedUNet) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text = torch.randn(3, 8, 8, 8, generator=generator), torch.randn(3, 5, 32, generator=generator)
    student.gates.scales = torch.tensor([[1.0, 1.0], [2.0, 1.5], [7.5, 3.0]])
    with torch.no_grad():
        return student.forward(sample, torch.tensor([999, 666, 333]), text)


def manifest_of(root: Path, rank: int) -> AdapterManifest:
    return AdapterManifest(
        base_weights_sha256=weights_sha256(root), rank=rank, timestep_spacing="trailing", traits=TRAITS
    )


def test_an_adapter_comes_back(unet: UNet2DConditionModel, root: Path, tmp_path: Path) -> None:
    adapter, manifest = random_adapter(unet, 4), manifest_of(root, 4)
    plain = AdaptedUNet(unet, [adapter])
    plain.gates.segments = [(0, ALL_ROWS)]
    save_student(tmp_path / "s", adapter, manifest)
    assert read_adapter(tmp_path / "s", weights_sha256(root)).manifest == manifest
    back = load_student(root, tmp_path / "s", unet, CPU)
    torch.testing.assert_close(predict(back), predict(plain))
    untouched = AdaptedUNet(unet, [])
    assert not torch.allclose(predict(back), predict(untouched), atol=1e-3)
    assert not any(parameter.requires_grad for parameter in back.parameters())


def test_a_student_with_all_weights_brings_its_own_unet(unet: UNet2DConditionModel, root: Path, tmp_path: Path) -> None:
    trained = copy.deepcopy(unet)
    for parameter in trained.parameters():
        parameter.mul_(1.25)
    trained.half().float()  # exact in the file
    before = copy.deepcopy(trained.state_dict())
    save_student(tmp_path, random_adapter(unet, 0), manifest_of(root, 0), trained)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert json.loads((tmp_path / UNET / "config.json").read_text())["_name_or_path"] == ""

    expected = AdaptedUNet(trained, [random_adapter(unet, 0)])
    expected.gates.segments = [(0, ALL_ROWS)]
    torch.testing.assert_close(predict(load_student(root, tmp_path, unet, CPU)), predict(expected))


def test_an_adapter_is_not_written_beside_a_unet(unet: UNet2DConditionModel, root: Path) -> None:
    with pytest.raises(FileExistsError, match="unet is there"):
        save_student(root, random_adapter(unet, 4), manifest_of(root, 4))
    assert not (root / "adapter.json").exists()


def test_a_student_of_another_teacher_is_refused(unet: UNet2DConditionModel, root: Path, tmp_path: Path) -> None:
    save_student(tmp_path, random_adapter(unet, 4), replace(manifest_of(root, 4), base_weights_sha256="0" * 64))
    with pytest.raises(ModelError, match="other weights"):
        load_student(root, tmp_path, unet, CPU)


def test_a_unet_that_lacks_a_tensor_is_refused(unet: UNet2DConditionModel, root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_student(tmp_path, random_adapter(unet, 0), manifest_of(root, 0), unet)
    weights = tmp_path / UNET / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["conv_in.weight"]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"conv_in\.weight"):
        load_student(root, tmp_path, unet, CPU)
