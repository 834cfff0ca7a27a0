"""`steploom eval` as a person meets it: its files, messages and exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from steploom.cli import main
from steploom.exit_codes import ExitCode
from steploom_common.adapter import AdapterTraits
from steploom_distill import compare, compare_report, evaluate, samples, variants
from steploom_distill.edits import EDITS
from steploom_distill.student import save_student
from steploom_engine_worker.adapter import Adapter, linear_maps
from steploom_engine_worker.adapter_files import AdapterManifest
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import weights_sha256
from steploom_engine_worker.tiny_model import write_tiny_model

JUDGE = Path(__file__).parents[2] / "models" / "avatar-judge"
TEACHERS = ["teacher-35", "teacher-3", "teacher-3-dpmpp", "teacher-3-plain"]
NAMES = [*TEACHERS, "student-3", "student-2", "student-1", "full-3"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "evaluation.json").read_text())
        return found


Run = Callable[..., Done]


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """One edit, two pictures to show, each timed once, and a teacher of four steps."""
    plans = [replace(plan, steps=min(plan.steps, 4)) for plan in variants.PLANS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "EDITS", EDITS[:1])
        patch.setattr(variants, "PLANS", plans)
        patch.setattr(compare, "ALONE_REPEATS", 1)
        patch.setattr(samples, "CAPTIONS", samples.CAPTIONS[:2])
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object) -> Done:
        common = ("eval", "--device", "cpu", "--count", "1", "--out", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["steploom", *map(str, (*common, *arguments))])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err, tmp_path / "out")

    return invoke


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without adapters."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def model(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two adapters, of which the second knows two steps at most."""
    root = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(plain, root)
    (root / "steploom.json").write_text(json.dumps({"adapters": ["few", "fewer"]}))
    torch.manual_seed(0)
    unet = load_model(plain).unet
    for name, most in (("few", 4), ("fewer", 2)):
        adapter = Adapter(unet, [name for name, _ in linear_maps(unet) if name.endswith("to_q")], 2, True)
        for low_rank in adapter.changes.values():
            torch.nn.init.normal_(low_rank.up.weight, std=0.3)
        save_student(root / "adapters" / name, adapter, manifest(root, 2, most))
    return root


@pytest.fixture(scope="module")
def full_student(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "student"
    unet = load_model(model).unet
    save_student(folder, Adapter(unet, [], 0, True), manifest(model, 0, 4), unet)
    return folder


def manifest(root: Path, rank: int, max_steps: int) -> AdapterManifest:
    traits = AdapterTraits(max_steps=max_steps, is_guidance_distilled=True)
    return AdapterManifest(base_weights_sha256=weights_sha256(root), rank=rank, traits=traits)


def test_every_variant_is_scored_timed_and_drawn(
    run: Run, model: Path, full_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_report, "MOST_DECIBELS_LOST", -100.0)  # a bar that is missed, which nobody requires
    monkeypatch.setattr(compare_report, "MOST_POINTS_LOST", 100.0)
    done = run("--model", model, "--full-student", full_student)
    assert done.code == ExitCode.OK, done.stderr
    assert max(map(len, done.stdout.split("PSNR to truth")[0].splitlines())) <= 80  # the table fits a terminal

    found = {variant["name"]: variant for variant in done.report["variants"]}
    assert list(found) == NAMES
    assert [v["rows_per_image"] for v in found.values()] == [12, 9, 9, 3, 3, 2, 1, 3]
    assert all(v["images_per_s"] > 0 and v["alone_s"] > 0 for v in found.values())
    assert found["student-3"]["extra_bytes"] == (model / "adapters" / "few" / "adapter.safetensors").stat().st_size
    assert found["full-3"]["extra_parameters"] > found["student-3"]["extra_parameters"] > 0
    edits = [(score["edit"], score["language"]) for score in found["student-1"]["scores"]]
    assert edits == [(EDITS[0].name, "en"), (EDITS[0].name, "ko")]
    assert len({v["mean"]["psnr_truth"] for v in found.values()}) == len(NAMES)  # each drew pictures of its own
    assert [(bar["name"], bar["is_met"]) for bar in done.report["bars"]] == [
        ("PSNR to truth", False),
        ("edit success", True),
    ]
    assert (done.report["adapter"], done.report["full_student"]) == ("few", "student")

    assert f"| {EDITS[0].name} |" in (done.out / "evaluation.md").read_text()
    with Image.open(done.out / "evaluation.png") as picture:
        columns = (picture.width - 180) / 132
        assert columns == 5  # input, teacher with many and few steps, both students
        assert picture.height == 48 + 2 * 132


def test_a_model_without_an_adapter_is_the_teacher_alone(run: Run, plain: Path) -> None:
    done = run("--model", plain)
    assert done.code == ExitCode.OK, done.stderr
    assert "left out student-3, student-2, student-1: the model has no adapter" in done.stdout
    assert [variant["name"] for variant in done.report["variants"]] == TEACHERS
    assert done.report["bars"] == []
    assert "the model has no adapter" in (done.out / "evaluation.md").read_text()


def test_an_adapter_is_not_asked_for_more_steps_than_it_knows(run: Run, model: Path) -> None:
    done = run("--model", model, "--adapter", "fewer", "--variants", "student-1")
    assert (done.code, done.report["adapter"]) == (ExitCode.OK, "fewer")
    refused = run("--model", model, "--adapter", "fewer", "--variants", "student-3")
    assert refused.code == ExitCode.USAGE
    assert "student-3: steps is 3, must be 1 to 2 with adapter fewer" in refused.stderr


def test_guidance_may_be_another_than_the_model_s(run: Run, model: Path) -> None:
    scales = ("--guidance-scale", "3", "--image-guidance-scale", "1")
    report = run("--model", model, "--variants", "teacher-3", *scales).report
    assert (report["guidance_scale"], report["image_guidance_scale"]) == (3.0, 1.0)
    assert report["variants"][0]["rows_per_image"] == 3 * 2  # no row without the picture


@pytest.mark.parametrize(("most", "code"), [(100.0, ExitCode.OK), (-100.0, ExitCode.FAILED)])
def test_required_bars_decide_the_exit_code(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, most: float, code: ExitCode
) -> None:
    monkeypatch.setattr(compare_report, "MOST_DECIBELS_LOST", most)
    monkeypatch.setattr(compare_report, "MOST_POINTS_LOST", 100.0)
    done = run("--model", model, "--variants", "teacher-35,student-3", "--require-bars")
    assert done.code == code, done.stderr
    assert ("MISSED" in done.stdout) == (code == ExitCode.FAILED)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number, name in enumerate(("a", "b", "after")):
        Image.new("RGB", (80, 64), (60 * number, 90, 120)).save(folder / f"{name}.png")
    lines = [
        {"before": "a.png", "after": "after.png", "instruction": "make it blue"},
        {"before": "b.png", "instruction": "close the eyes"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_pictures_of_a_folder_are_compared_without_a_judge(run: Run, model: Path, pictures: Path) -> None:
    done = run("--model", model, "--pairs", pictures, "--variants", "teacher-35,student-3")
    assert done.code == ExitCode.OK, done.stderr
    teacher, student = done.report["variants"]
    assert [set(score["measures"]) for score in teacher["scores"]] == [{"psnr_truth", "l2_truth"}, set()]
    first, second = student["scores"]
    assert (first["edit"], second["edit"]) == ("a", "b")
    assert set(first["measures"]) == {"psnr_truth", "l2_truth", "psnr_teacher", "l2_teacher"}
    assert set(second["measures"]) == {"psnr_teacher", "l2_teacher"}
    assert "L2" in done.stdout
    assert "success" not in done.stdout
    assert "| b |" in (done.out / "evaluation.md").read_text()


def test_a_wrong_line_of_a_folder_is_named(run: Run, model: Path, pictures: Path) -> None:
    with (pictures / "metadata.jsonl").open("a") as file:
        file.write('{"before": "c.png", "instruction": "x"}\n')
    done = run("--model", model, "--pairs", pictures)
    assert done.code == ExitCode.USAGE
    assert "metadata.jsonl:3" in done.stderr
    assert "c.png" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nonexistent"], "/nonexistent: is not a directory"),
        (["--model", "MODEL", "--judge", "/nonexistent"], "no judge in /nonexistent"),
        (["--model", "MODEL", "--adapter", "many"], "no adapter 'many'; it has: few, fewer"),
        (["--model", "PLAIN", "--adapter", "many"], "no adapter 'many'; it has none"),
        (["--model", "PLAIN", "--require-bars"], "--require-bars needs the variants"),
        (["--model", "MODEL", "--full-student", "/nonexistent"], "adapter.json: is missing"),
        (["--model", "MODEL", "--full-student", "ADAPTER"], "is no full-weights student"),
        (["--model", "MODEL", "--variants", "teacher-7"], "no variant 'teacher-7'; there are: teacher-35"),
        (["--model", "MODEL", "--count", "0"], "--count"),
        (["--model", "MODEL", "--guidance-scale", "0.5"], "--guidance-scale"),
        (["--model", "MODEL", "--device", "abacus"], "--device is 'abacus'"),
        (["--model", "MODEL", "--out", "FILE"], "--out"),
        (["--model", "MODEL", "--font", "/nonexistent"], "there is no font /nonexistent"),
        (["--model", "MODEL", "--pairs", "/nonexistent"], "metadata.jsonl: cannot be read"),
        (["--model", "MODEL", "--pairs", "/nonexistent", "--judge", "/x"], "--judge does not go with --pairs"),
        (["--model", "MODEL", "--pairs", "/nonexistent", "--require-bars"], "--require-bars does not go with --pairs"),
    ],
)
def test_a_wrong_argument_ends_with_a_message(
    run: Run, model: Path, plain: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    adapter = model / "adapters" / "few"
    names = {"MODEL": model, "PLAIN": plain, "ADAPTER": adapter, "FILE": tmp_path / "file"}
    done = run(*(names.get(argument, argument) for argument in arguments))
    assert done.code == ExitCode.USAGE
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_student_of_another_model_is_refused(run: Run, model: Path, full_student: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1)
    done = run("--model", other, "--full-student", full_student)
    assert done.code == ExitCode.USAGE
    assert "was trained on other weights" in done.stderr
