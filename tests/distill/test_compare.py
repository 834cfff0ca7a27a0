"""Comparing variants: distances, means, the batches that pictures go through, the bars and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from steploom_common.adapter import AdapterTraits
from steploom_distill import compare as comparison
from steploom_distill import evaluate
from steploom_distill.classifier import Classifier, load_classifier
from steploom_distill.compare import Part, PartScore, Result, avatar_parts, compare, total_rows
from steploom_distill.compare_report import Bar, Setting, as_json, bars, main_table, markdown
from steploom_distill.edits import EDITS
from steploom_distill.metrics import l2, psnr
from steploom_distill.perceptual import perceptual_distance
from steploom_distill.renderer import render
from steploom_distill.sampling import Editor, Guidance
from steploom_distill.scene import sample_scenes
from steploom_distill.student import Student, build_student, save_student
from steploom_distill.variants import PLANS, Source, Variant, VariantError, choose_variants
from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.adapter_files import AdapterManifest, read_adapter
from steploom_engine_worker.model_files import weights_sha256
from steploom_engine_worker.tiny_model import write_tiny_model

CPU = torch.device("cpu")
JUDGE = Path(__file__).parents[2] / "models" / "avatar-judge"
GUIDANCE = Guidance(1.5, 1.4)
SETTING = Setting("tiny", "few", "", "cpu", 16, 1, 1.5, 1.4, ("left out student-1: for a reason",))


@pytest.fixture(autouse=True, scope="module")
def two_edits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "EDITS", EDITS[:2])
        yield


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_classifier(JUDGE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    return Editor.load(model, CPU)


@pytest.fixture(scope="module")
def student(editor: Editor, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """An adapter for at most two steps, that changes little."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapters") / "few"
    unet = editor.model.unet
    adapter = Adapter(unet, [name for name, _ in linear_maps(unet) if name.endswith("to_q")], 2, has_guidance=True)
    for low_rank in adapter.changes.values():
        torch.nn.init.normal_(low_rank.up.weight, std=0.1)
    traits = AdapterTraits(max_steps=2, is_guidance_distilled=True, max_guidance_scale=5.0)
    base = weights_sha256(model)
    save_student(folder, adapter, AdapterManifest(base_weights_sha256=base, rank=2, traits=traits))
    files = read_adapter(folder, base)
    return Student(folder, files.manifest, build_student(files, unet, CPU))


@pytest.fixture
def row_clock(editor: Editor, student: Student, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that goes on by a second with every row of a UNet: on it, no machine stalls."""
    rows = 0

    def count(_: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(arguments[0])

    hooks = [unet.register_forward_pre_hook(count) for unet in (editor.model.unet, student.network.unet)]
    monkeypatch.setattr(comparison, "time", SimpleNamespace(perf_counter=lambda: float(rows)))
    yield
    for hook in hooks:
        hook.remove()


def variants_named(*names: str, student: Student | None = None) -> list[Variant]:
    return choose_variants(names, {Source.STUDENT: student} if student else {}, GUIDANCE)[0]


@pytest.mark.parametrize("distance", ["l2", "perceptual", "minus psnr"])
def test_distances_are_least_for_equal_pictures_and_grow_with_noise(distance: str, judge: Classifier) -> None:
    def measure(one: Tensor, other: Tensor) -> Tensor:
        if distance == "perceptual":
            return perceptual_distance(judge, one, other)
        return l2(one, other) if distance == "l2" else -psnr(one, other)

    pictures = render(sample_scenes(3, seed=5), 64)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        equal, little, much = (measure(pictures, (pictures + s * noise).clamp(0, 1)) for s in (0.0, 0.05, 0.3))
        swapped = measure((pictures + 0.3 * noise).clamp(0, 1), pictures)
    assert equal.tolist() == [-100.0 if distance == "minus psnr" else 0.0] * 3
    assert bool((little > equal).all())
    assert bool((much > little).all())
    torch.testing.assert_close(swapped, much)


def test_psnr_and_l2_are_what_they_are_defined_to_be() -> None:
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    assert float(psnr(black, grey)) == pytest.approx(20.0)
    assert float(l2(black, grey)) == pytest.approx(0.1)


def test_without_names_all_that_can_be_sampled_is_chosen(student: Student) -> None:
    variants, notes = choose_variants(None, {}, GUIDANCE)
    assert [variant.name for variant in variants] == ["teacher-35", "teacher-3", "teacher-3-dpmpp", "teacher-3-plain"]
    assert notes == ["left out student-3, student-2, student-1: the model has no adapter"]

    variants, notes = choose_variants(None, {Source.STUDENT: student, Source.FULL: student}, GUIDANCE)
    assert [variant.name for variant in variants][4:] == ["student-2", "student-1"]
    assert notes == ["left out student-3, full-3: steps is 3, must be 1 to 2 with adapter few"]
    assert [variant.rows_per_image for variant in variants] == [105, 9, 9, 3, 2, 1]


def test_rows_are_counted_without_branches_of_no_weight(student: Student) -> None:
    variants, _ = choose_variants(["student-1", "teacher-35"], {Source.STUDENT: student}, Guidance(1.5, 1.0))
    assert [variant.rows_per_image for variant in variants] == [70, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("teacher-4", 1.5, "no variant 'teacher-4'; there are: teacher-35, "),
        ("student-3", 1.5, "student-3: steps is 3, must be 1 to 2"),
        ("student-2", 7.5, "student-2: guidance_scale is 7.5, must be 1 to 5"),
        ("full-3", 1.5, "full-3: needs a full-weights student"),
    ],
)
def test_a_variant_that_cannot_be_sampled_is_refused_by_name(
    student: Student, name: str, text: float, message: str
) -> None:
    with pytest.raises(VariantError, match=message):
        choose_variants([name], {Source.STUDENT: student}, Guidance(text, 1.4))


def test_a_student_costs_its_own_weights(student: Student) -> None:
    teacher, one = variants_named("teacher-3", "student-1", student=student)
    assert (teacher.extra_parameters, teacher.extra_bytes) == (0, 0)
    assert one.extra_parameters == sum(tensor.numel() for tensor in student.network.adapters.parameters())
    assert one.extra_bytes == (student.folder / "adapter.safetensors").stat().st_size


def test_a_picture_s_score_depends_neither_on_its_batch_nor_on_the_other_variants(
    editor: Editor, judge: Classifier, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = avatar_parts(2, 64, CPU)
    variants = variants_named("teacher-3", "student-2", student=student)
    told: list[int] = []
    teacher, two = compare(editor, judge, parts, variants, 1, told.append)
    assert sum(told) == total_rows(parts, variants)
    assert [(s.edit, s.language, s.count) for s in teacher.scores[:3]] == [
        (EDITS[0].name, "en", 2), (EDITS[0].name, "ko", 2), (EDITS[1].name, "en", 2)
    ]  # fmt: skip
    for size in (3, 1):  # not a multiple of a part, and less than one
        monkeypatch.setattr(comparison, "batch_size", lambda editor, size=size: size)
        again = compare(editor, judge, parts, variants[1:], 1, told.append)[0]
        for score, expected in zip(again.scores, two.scores, strict=True):
            assert score.measures == pytest.approx(expected.measures, abs=1e-2)


@pytest.mark.usefixtures("row_clock")
def test_pictures_are_compared_with_the_truth_and_with_the_teacher(
    editor: Editor, judge: Classifier, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [dataclasses.replace(plan, steps=min(plan.steps, 4)) for plan in PLANS]
    monkeypatch.setattr("steploom_distill.variants.PLANS", short)
    parts = avatar_parts(1, 64, CPU)
    teacher, one = compare(
        editor, judge, parts, variants_named("teacher-35", "student-1", student=student), 7, lambda rows: None
    )
    own = {"psnr_truth", "l2_truth", "perceptual_truth", "success", "kept"}
    assert set(teacher.scores[0].measures) == own
    assert set(one.scores[0].measures) == own | {"psnr_teacher", "l2_teacher", "perceptual_teacher"}

    first, (before, truth) = parts[0], parts[0].load()
    assert truth is not None
    reference, edited = (r.variant.edit(editor, before, first.texts, 7) for r in (teacher, one))
    found = one.scores[0].measures
    assert found["psnr_teacher"] == pytest.approx(float(psnr(edited, reference)), abs=1e-2)
    assert found["psnr_truth"] == pytest.approx(float(psnr(edited, truth)), abs=1e-2)
    assert teacher.scores[0].measures["psnr_truth"] == pytest.approx(float(psnr(reference, truth)), abs=1e-2)
    # a picture is 12 rows, and one; what warms up does not count
    assert (teacher.seconds, one.seconds) == (12 * len(parts), len(parts))
    assert (teacher.alone_s, one.alone_s) == (12, 1)
    assert one.images_per_s == pytest.approx(len(parts) / one.seconds)


def test_pictures_without_a_judge_are_compared_pixel_by_pixel(editor: Editor) -> None:
    picture = render(sample_scenes(2, seed=5), 64)
    with_truth = Part("a", "", ["x"], lambda: (picture[:1], picture[1:]))
    without = Part("b", "", ["x"], lambda: (picture[:1], None))
    result = compare(editor, None, [with_truth, without], variants_named("teacher-3"), 1, lambda rows: None)[0]
    assert [set(score.measures) for score in result.scores] == [{"psnr_truth", "l2_truth"}, set()]


def result_of(name: str, *scores: dict[str, float], student: Student | None = None) -> Result:
    """One score an edit, English and Korean alike."""
    plan = next(plan for plan in PLANS if plan.name == name)
    found = [
        PartScore(edit.name, code, 4, score)
        for edit, score in zip(EDITS, scores, strict=False)
        for code in ("en", "ko")
    ]
    return Result(Variant(plan, GUIDANCE, student), found, 2.0, 0.5)


TEACHER = result_of("teacher-35", {"psnr_truth": 31.0, "success": 1.0}, {"psnr_truth": 29.0, "success": 0.98})


@pytest.mark.parametrize(
    ("decibels", "success", "met"),
    [(29.0, 0.971, [True, True]), (28.9, 0.971, [False, True]), (30.5, 0.96, [True, False])],
)
def test_the_bars_hold_the_student_against_the_teacher(decibels: float, success: float, met: list[bool]) -> None:
    student = result_of("student-3", {"psnr_truth": decibels, "success": success})
    found = bars([TEACHER, student])
    assert [bar.is_met for bar in found] == met
    assert found[0].lost == pytest.approx(30.0 - decibels)
    assert found[1].lost == pytest.approx(99 - 100 * success)


def test_there_are_no_bars_without_the_student_or_a_judge() -> None:
    assert bars([TEACHER]) == []
    assert bars([result_of("teacher-35", {"psnr_truth": 30.0}), result_of("student-3", {"psnr_truth": 30.0})]) == []


def test_a_bar_says_whether_it_is_met() -> None:
    assert str(Bar("edit success", 2.5, 2.0, "points")) == "edit success: loses 2.50 points, may lose 2: MISSED"
    assert str(Bar("PSNR to truth", -0.1, 1.0, "dB")).endswith(": met")


def test_the_report_holds_every_edit_language_and_figure(student: Student) -> None:
    two = result_of(
        "student-2",
        {"psnr_truth": 28.25, "psnr_teacher": 33.0, "success": 0.75, "kept": 1.0},
        {"psnr_truth": 27.75, "psnr_teacher": 31.0, "success": 0.25, "kept": 0.5},
        student=student,
    )
    headings, rows = main_table([TEACHER, two])
    cells = dict(zip(headings, rows[1], strict=True))
    assert cells["UNet rows"] == "2"
    assert cells["images/s"] == "8.00"  # 16 pictures in 2 s
    assert cells["one alone, ms"] == "500"
    assert cells["PSNR to truth, dB"] == "28.00"
    assert cells["PSNR to teacher, dB"] == "32.00"
    assert cells["success, %"] == "50.0"
    assert dict(zip(headings, rows[0], strict=True))["PSNR to teacher, dB"] == ""
    assert not any("perceptual" in heading or "L2" in heading for heading in headings)

    assert main_table([TEACHER, two], is_short=True)[1][1] == ["student-2", *rows[1][1:]]

    text = markdown(SETTING, [TEACHER, two])
    assert "Left out student-1: for a reason." in text
    assert f"| {EDITS[1].name} | 98.0 / 98.0 | 25.0 / 25.0 |" in text
    assert f"| {EDITS[0].name} | 31.0 / 31.0 | 28.2 / 28.2 |" in text

    report = as_json(SETTING, [TEACHER, two])
    assert report["variants"][1]["mean"] == pytest.approx(
        {"psnr_truth": 28.0, "psnr_teacher": 32.0, "success": 0.5, "kept": 0.75}
    )
    assert report["variants"][1]["by_language"]["ko"]["success"] == pytest.approx(0.5)
    assert report["variants"][1]["scores"][0]["edit"] == EDITS[0].name
    assert report["pictures"] == 16
