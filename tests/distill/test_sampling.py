"""Sampling: the numerics of the serving engine and of diffusers, with and without a student."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from steploom_common.adapter import AdapterTraits
from steploom_common.guidance import Branch
from steploom_distill import sampling
from steploom_distill.metrics import psnr
from steploom_distill.sampling import Editor, Guidance, row_weights
from steploom_distill.student import Student, build_student, save_student
from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.adapter_files import AdapterManifest, read_adapter
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.model_files import weights_sha256
from steploom_engine_worker.sampler import build_table
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.tiny_model import SCHEDULER, write_tiny_model
from steploom_engine_worker.torch_engine import load_torch_engine
from steploom_kernels.gather_rows import gather_rows

CPU = torch.device("cpu")
SIDE = 64  # pixels of the tiny model
TEXTS = ["make the hair blond", "close the eyes"]
ALL_BRANCHES = Guidance(2.5, 1.5)
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", scheduler={**ZERO_SNR, "steps_offset": 0})


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    return Editor.load(model, CPU)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def images(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def make_student(
    editor: Editor, model: Path, folder: Path, strength: float = 0.3, spacing: str = "", is_distilled: bool = True
) -> Student:
    """An adapter of random weights, of no effect with a strength of zero."""
    unet = editor.model.unet
    names = [name for name, _ in linear_maps(unet) if name.endswith(("to_q", "to_v"))]
    adapter = Adapter(unet, names, 4, has_guidance=is_distilled)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in adapter.tensors().items():
        if "lora_B" in name or "out" in name.split("."):
            tensor.data.copy_((strength * torch.randn(tensor.shape, generator=generator)).half())
    manifest = AdapterManifest(
        base_weights_sha256=weights_sha256(model),
        rank=4,
        timestep_spacing=spacing,
        traits=AdapterTraits(is_guidance_distilled=is_distilled),
    )
    save_student(folder, adapter, manifest)
    files = read_adapter(folder, manifest.base_weights_sha256)
    return Student(folder, files.manifest, build_student(files, unet, CPU))


def by_diffusers(editor: Editor, images: Tensor, seed: int, scheduler: Any, steps: int, guidance: Guidance) -> Tensor:
    """The loop of diffusers' own pipeline, on the same noise."""
    before = editor.encode(images)
    text = editor._encode_text([*TEXTS, "", ""])
    states = torch.cat([text[:2], text[2:], text[2:]])
    pictures = torch.cat([before, before, torch.zeros_like(before)])
    latents = editor._noise(before, seed)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        rows = torch.cat([torch.cat([latents] * 3), pictures], dim=1)
        full, image, none = editor.model.unet(rows, time, states, return_dict=False)[0].chunk(3)
        guided = none + guidance.text * (full - image) + guidance.image * (image - none)
        latents = scheduler.step(guided, time, latents, return_dict=False)[0]
    return editor.decode(latents / editor.model.vae.config.scaling_factor).clamp(0, 1)


@torch.no_grad()
def test_pictures_are_those_of_diffusers(editor: Editor, images: Tensor) -> None:
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    config = {name: SCHEDULER[name] for name in names} | ZERO_SNR | {"set_alpha_to_one": False, "clip_sample": False}
    theirs = by_diffusers(editor, images, 3, DDIMScheduler(**config), 4, ALL_BRANCHES)
    ours = editor.edit(images, TEXTS, 4, ALL_BRANCHES, seed=3)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert float((ours - images).abs().max()) > 0.05


@pytest.mark.parametrize("sampler", list(Sampler))
def test_pictures_are_those_of_the_serving_engine(
    model: Path, editor: Editor, images: Tensor, pixels: np.ndarray[Any, np.dtype[np.uint8]], sampler: Sampler
) -> None:
    engine = load_torch_engine(WorkerConfig(model=str(model), slots=2, max_steps=4, threads=1))
    for slot, text in enumerate(TEXTS):
        engine.admit(slot, Job(text, pixels[slot], 4, ALL_BRANCHES.text, ALL_BRANCHES.image, 0, sampler))
    engine.encode([0, 1])
    scale = engine.slots.initial_scale[:, None, None, None]
    engine.slots.latents[:2] = editor._noise(engine.slots.latents[:2], 3) * scale[:2]
    for step in range(4):
        engine.denoise([0, 1], [step, step])
    theirs = torch.from_numpy(np.stack(engine.decode([0, 1]).wait().pictures)).permute(0, 3, 1, 2).float() / 255
    ours = editor.edit(images, TEXTS, 4, ALL_BRANCHES, seed=3, sampler=sampler)
    torch.testing.assert_close(ours, theirs, atol=1.5 / 255, rtol=0)


def test_a_student_without_effect_is_the_teacher_s_branch_of_text_and_picture(
    editor: Editor, model: Path, images: Tensor, tmp_path: Path
) -> None:
    student = make_student(editor, model, tmp_path / "zero", strength=0.0)
    both_at_one = Guidance(1.0, 1.0)
    teacher = editor.edit(images, TEXTS, 3, both_at_one, seed=3)
    for guidance in (both_at_one, Guidance(7.5, 2.0)):
        ours = editor.edit(images, TEXTS, 3, guidance, seed=3, student=student)
        torch.testing.assert_close(ours, teacher, atol=1e-4, rtol=0)


def test_a_student_sees_the_scales(editor: Editor, model: Path, images: Tensor, tmp_path: Path) -> None:
    student = make_student(editor, model, tmp_path / "s")
    one, other = (editor.edit(images, TEXTS, 2, Guidance(text, 1.5), seed=3, student=student) for text in (1.5, 4.0))
    assert float(psnr(one, other).max()) < 60


def test_a_student_may_visit_other_timesteps(
    editor: Editor, model: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    for spacing, expected in (("", [999, 499]), ("leading", [500, 0])):
        student = make_student(editor, model, tmp_path / f"s{spacing}", spacing=spacing)
        forward = student.network.forward

        def spy(sample: Tensor, times: Tensor, text: Tensor, forward: Any = forward) -> Tensor:
            seen.append(float(times[0]))
            assert len(times) == len(TEXTS)  # one row a step
            result: Tensor = forward(sample, times, text)
            return result

        monkeypatch.setattr(student.network, "forward", spy)
        seen.clear()
        editor.edit(images, TEXTS, 2, ALL_BRANCHES, seed=3, student=student)
        assert seen == expected


def test_a_student_of_steps_alone_keeps_the_branches(
    editor: Editor, model: Path, images: Tensor, tmp_path: Path
) -> None:
    student = make_student(editor, model, tmp_path / "s", strength=0.0, is_distilled=False)
    assert row_weights(ALL_BRANCHES, student) == row_weights(ALL_BRANCHES)
    ours = editor.edit(images, TEXTS, 2, ALL_BRANCHES, seed=3, student=student)
    torch.testing.assert_close(ours, editor.edit(images, TEXTS, 2, ALL_BRANCHES, seed=3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        (ALL_BRANCHES, set(Branch)),
        (Guidance(1.5, 1.0), {Branch.FULL, Branch.IMAGE}),
        (Guidance(1.5, 1.5), {Branch.FULL, Branch.NONE}),
        (Guidance(1.0, 1.0), {Branch.FULL}),
    ],
)
def test_branches_without_weight_are_not_computed(
    editor: Editor, images: Tensor, guidance: Guidance, branches: set[Branch], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(row_weights(guidance)) == branches
    rows = []
    hook = editor.model.unet.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    ours = editor.edit(images, TEXTS, 1, guidance, seed=3)
    hook.remove()
    assert rows == [len(TEXTS) * len(branches)]
    # what the others would have added is nothing
    monkeypatch.setattr(
        sampling,
        "row_weights",
        lambda guidance, student: dict.fromkeys(Branch, 0.0) | row_weights(guidance, student),
    )
    torch.testing.assert_close(ours, editor.edit(images, TEXTS, 1, guidance, seed=3), atol=1e-4, rtol=0)


def test_the_noise_is_that_of_the_seed_for_every_number_of_steps(editor: Editor, images: Tensor) -> None:
    both = editor.edit(images, TEXTS, 1, ALL_BRANCHES, seed=8)
    second = editor.edit(images[1:], TEXTS[1:], 1, ALL_BRANCHES, seed=9)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)
    other = editor.edit(images[1:], TEXTS[1:], 1, ALL_BRANCHES, seed=10)
    assert not torch.allclose(other, second, atol=1e-2)


def test_the_noise_is_as_strong_as_the_table_says(
    editor: Editor, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sampling, "build_table", lambda *args: dataclasses.replace(build_table(*args), initial_scale=0.0)
    )
    one, other = (editor.edit(images, TEXTS, 1, ALL_BRANCHES, seed=seed) for seed in (8, 20))
    assert torch.equal(one, other)


def test_the_kernels_get_arrays_in_the_order_of_their_axes(
    editor: Editor, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU they refuse others; the VAE gives its latents channels last."""

    def checked(*arrays: Tensor) -> tuple[Tensor, Tensor]:
        assert [array.is_contiguous() for array in arrays] == [True] * 5
        return gather_rows(*arrays)

    monkeypatch.setattr(sampling, "gather_rows", checked)
    editor.edit(images, TEXTS, 2, ALL_BRANCHES, seed=3)
