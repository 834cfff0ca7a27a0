"""The committed model: its files, and that it still edits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from torch import Tensor

from steploom_distill import samples
from steploom_distill.classifier import Classifier, load_classifier
from steploom_distill.edits import EDIT_INDEX, EDITS, apply_edit
from steploom_distill.grammar import parse
from steploom_distill.metrics import psnr
from steploom_distill.pack import default_guidance, read_manifest
from steploom_distill.renderer import render
from steploom_distill.sampling import Editor
from steploom_distill.scene import Scene, sample_scenes, visible
from steploom_engine_worker.model_files import weights_sha256

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "avatar-edit"
CPU = torch.device("cpu")
STEPS = 8  # enough for the thresholds below, on a CPU
CASES = (
    # the picture, the instruction, and a floor some 3 dB below what the model gave when it was committed
    ("portrait", "금발로 만들어 줘", 26.0),
    ("portrait", "put on sunglasses", 28.0),
    ("cat", "인간화", 22.0),
)


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.load(MODEL, CPU)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_classifier(ROOT / "models" / "avatar-judge")


def scene_of(name: str) -> Scene:
    return samples.portrait() if name == "portrait" else samples.cat()


@pytest.fixture(scope="module")
def edited(editor: Editor) -> Tensor:
    guidance, _ = default_guidance(read_manifest(MODEL))
    before = torch.cat([render(scene_of(name)) for name, _, _ in CASES])
    return editor.edit(before, [text for _, text, _ in CASES], STEPS, guidance, seed=3)


def test_the_model_is_small_and_holds_nothing_that_runs() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert max(path.stat().st_size for path in files) <= 16 * 2**20


def test_the_manifest_fits_the_weights() -> None:
    manifest = read_manifest(MODEL)
    assert manifest["weights_sha256"] == weights_sha256(MODEL)
    assert manifest["resolution"] == 128


def test_edits_come_close_to_the_truth(edited: Tensor, judge: Classifier) -> None:
    for (name, text, floor), picture in zip(CASES, edited, strict=True):
        truth = samples.truth(scene_of(name), text)
        assert float(psnr(picture[None], truth)) >= floor, text
        edit = EDITS[EDIT_INDEX[parse(text) or ""]]
        after = apply_edit(edit, scene_of(name))
        read = judge.read(picture[None])
        assert all(int(read[key]) == int(getattr(after, key)) for key in edit.judged), text


def test_an_edit_beats_leaving_the_picture_alone(edited: Tensor) -> None:
    for (name, text, _), picture in zip(CASES, edited, strict=True):
        truth = samples.truth(scene_of(name), text)
        assert float(psnr(picture[None], truth)) > float(psnr(render(scene_of(name)), truth)) + 3


def test_diffusers_own_pipeline_gives_the_same_picture(editor: Editor) -> None:
    guidance, _ = default_guidance(read_manifest(MODEL))
    picture = render(samples.portrait())
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "close the eyes",
        image=picture,
        num_inference_steps=2,
        guidance_scale=guidance.text,
        image_guidance_scale=guidance.image,
        latents=editor._noise(torch.zeros(1, 4, 32, 32), 5),
        output_type="np",
    ).images
    ours = editor.edit(picture, ["close the eyes"], 2, guidance, seed=5)
    np.testing.assert_allclose(theirs[0], ours[0].permute(1, 2, 0).numpy(), atol=2e-3)


def test_a_row_s_noise_depends_on_its_seed_alone(editor: Editor) -> None:
    like = torch.zeros(3, 4, 2, 2)
    assert torch.equal(editor._noise(like, 10)[1], editor._noise(like, 11)[0])


def test_the_judge_reads_renders(judge: Classifier) -> None:
    scene = sample_scenes(48, seed=2**60 + 99)
    read, shown = judge.read(render(scene)), visible(scene)
    right = sum(int(((read[k] == getattr(scene, k)) & shown[k]).sum()) for k in read)
    assert right / sum(int(shown[k].sum()) for k in read) > 0.985


def test_the_demo_s_pictures_are_what_the_renderer_draws() -> None:
    from PIL import Image

    for name in ("portrait", "cat"):
        with Image.open(ROOT / "docs" / "images" / f"{name}.png") as image:
            stored = samples.to_tensor(image)
        torch.testing.assert_close(stored, render(scene_of(name))[0], atol=1.5 / 255, rtol=0)


def test_model_index_names_diffusers_pipeline() -> None:
    index = json.loads((MODEL / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
