"""The stages of distillation: what they aim at, that they learn it, and that their commands run to a served adapter."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from steploom_distill import training
from steploom_distill.classifier import Classifier, save_classifier
from steploom_distill.cli import app
from steploom_distill.config import Config, StageConfig, StudentConfig
from steploom_distill.distillation import Base, Stage, build_learner, draw_scales
from steploom_distill.ladder import Ladder, LadderError, Levels
from steploom_distill.losses import guidance_loss, rollout_loss, steps_loss, target_of, teacher_walk
from steploom_distill.pairs import FolderPairs, PairsError, read_pairs
from steploom_distill.predictors import Conditions, GuidedTeacher, OneRow
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.sampler import build_table
from steploom_engine_worker.schedule import Sampler, ScheduleConfig
from steploom_engine_worker.tiny_model import write_tiny_model
from steploom_engine_worker.torch_engine import load_torch_engine

CPU = torch.device("cpu")
V = ScheduleConfig(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
    rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True, steps_offset=0,
)  # fmt: skip
EPSILON = dataclasses.replace(V, prediction_type="epsilon", rescale_betas_zero_snr=False)


@pytest.fixture(autouse=True, scope="module")
def log_of_first_steps() -> Iterator[None]:
    """A run logs its first step and none after it, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOG_EVERY_S", math.inf)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for number, colour in enumerate(((200, 30, 30), (30, 200, 30), (30, 30, 200))):
        for name, value in (("before", colour), ("after", colour[::-1])):
            Image.new("RGB", (80, 64), value).save(folder / f"{number}-{name}.png")
        lines.append({"before": f"{number}-before.png", "after": f"{number}-after.png", "instruction": "swap"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def base(model: Path) -> Base:
    return Base.load(model, CPU)


def make_stage(base: Base, pairs: Path, *, rank: int, teacher: Any = None, **settings: Any) -> Stage:
    torch.manual_seed(0)
    student = StudentConfig(rank=rank)
    learner = build_learner(base, student, None)
    model = base.model
    source = FolderPairs(pairs, model.vae, model.tokenizer, model.side, CPU)
    config = StageConfig(minutes=1, learning_rate=1e-2, batch=4, **settings)
    guided = teacher or GuidedTeacher(model.unet)
    return Stage(base, source, learner, guided, OneRow(learner.network), config, student)


# ---- the ladder


@pytest.mark.parametrize("schedule", [V, EPSILON])
@pytest.mark.parametrize(("from_steps", "to_steps"), [(36, 12), (12, 3), (36, 3), (18, 9), (4, 4), (2, 1)])
def test_a_teacher_that_knows_the_picture_leads_where_one_step_of_it_leads(
    schedule: ScheduleConfig, from_steps: int, to_steps: int
) -> None:
    """With the true prediction at every level, the walk and a single step agree, and so does the student's target."""
    ladder = Ladder.build(schedule, from_steps, to_steps, CPU)
    levels = Levels.of(schedule, CPU)
    picture, noise = torch.randn(2, to_steps, 4, 3, 3).unbind()

    def truth(times: Tensor) -> tuple[Tensor, Tensor]:
        signal, sigma = (
            levels.signal[times.long()][:, None, None, None],
            levels.noise[times.long()][:, None, None, None],
        )
        prediction = signal * noise - sigma * picture if schedule is V else noise
        return signal * picture + sigma * noise, prediction

    class Knowing:
        def __call__(self, noisy: Tensor, timesteps: Tensor, by: Conditions) -> Tensor:
            return truth(timesteps)[1]

    step = torch.arange(to_steps)
    noisy, prediction = truth(ladder.times)
    stage = type("Stage", (), {"teacher": Knowing()})
    end = teacher_walk(stage, ladder, noisy, step, None)  # type: ignore[arg-type]
    tolerance = 1e-4 if schedule is V else 2e-2  # the noise's share of the picture at the noisiest level is 1 in 200
    torch.testing.assert_close(target_of(ladder, noisy, end, step), prediction, rtol=0, atol=tolerance)


def test_the_student_s_steps_are_those_that_are_served() -> None:
    ladder = Ladder.build(V, 12, 3, CPU)
    table = build_table(V, Sampler.DDIM, 3)
    assert ladder.times.tolist() == table.timesteps.tolist() == [999.0, 666.0, 332.0]
    np.testing.assert_allclose(ladder.on_x, table.coefficients[:, 0], atol=1e-6)
    np.testing.assert_allclose(ladder.on_prediction, table.coefficients[:, 1], atol=1e-6)


def test_the_picture_s_error_weighs_as_much_as_its_signal_but_never_less_than_the_noise_s() -> None:
    ladder = Ladder.build(V, 12, 12, CPU)
    expected = torch.maximum(ladder.signal**2, ladder.noise**2)
    torch.testing.assert_close(ladder.weight, expected, rtol=1e-4, atol=0)
    assert Ladder.build(EPSILON, 12, 12, CPU).weight.max() == 10  # of a model of the noise it has no bound


@pytest.mark.parametrize(("from_steps", "to_steps"), [(10, 3), (3, 12), (3, 0), (2000, 1)])
def test_steps_that_do_not_divide_are_refused(from_steps: int, to_steps: int) -> None:
    with pytest.raises(LadderError, match=f"from {from_steps} to {to_steps} steps: the first must be a multiple"):
        Ladder.build(V, from_steps, to_steps, CPU)


# ---- who is imitated, and on which guidance


def test_the_teacher_combines_its_three_branches(base: Base) -> None:
    noisy, before, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)
    times, empty = torch.tensor([500.0, 20.0]), torch.randn(16, 32)
    by = Conditions(before, text, empty, torch.tensor([[3.0, 1.2], [1.5, 2.0]]))
    got = GuidedTeacher(base.model.unet)(noisy, times, by)
    for row, (towards_text, towards_picture) in enumerate(by.scales.tolist()):
        one = slice(row, row + 1)

        def branch(picture: Tensor, states: Tensor, one: slice = one) -> Tensor:
            sample = torch.cat([noisy[one], picture], 1)
            with torch.no_grad():
                result: Tensor = base.model.unet(sample, times[one], states, return_dict=False)[0]
            return result

        full, image = branch(before[one], text[one]), branch(before[one], empty[None])
        none = branch(torch.zeros_like(before[one]), empty[None])
        expected = none + towards_picture * (image - none) + towards_text * (full - image)
        torch.testing.assert_close(got[one], expected, rtol=1e-3, atol=1e-4)


def test_scales_are_the_usual_ones_or_drawn_within_bounds(base: Base) -> None:
    torch.manual_seed(0)
    config = StudentConfig(max_guidance_scale=9.0, max_image_guidance_scale=2.0, default_share=0.25)
    scales = draw_scales(4000, base, config)
    defaults = torch.tensor([base.model.defaults.guidance_scale, base.model.defaults.image_guidance_scale])
    usual = (scales == defaults).all(1)
    assert usual.float().mean().item() == pytest.approx(0.25, abs=0.03)
    drawn = scales[~usual]
    assert drawn.min() >= 1
    assert (drawn.amax(0) <= torch.tensor([9.0, 2.0])).all()
    assert (drawn.amax(0) > torch.tensor([8.7, 1.95])).all()


def test_targets_choose_what_is_adapted(base: Base) -> None:
    every = build_learner(base, StudentConfig(rank=2), None).adapter.names
    attention = build_learner(base, StudentConfig(rank=2, targets=r"attn\d"), None).adapter.names
    assert set(attention) == {name for name in every if "attn1" in name or "attn2" in name}
    assert 0 < len(attention) < len(every)


# ---- the stages learn


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(
    "loss", [guidance_loss, steps_loss(6, 2), rollout_loss(4, 2, None)], ids=["guidance", "steps", "rollout"]
)
def test_a_stage_learns_and_leaves_the_teacher_as_it_was(
    base: Base, pairs: Path, loss: Callable[[Stage], Callable[[], tuple[Tensor, dict[str, Tensor]]]], rank: int
) -> None:
    before = {name: tensor.clone() for name, tensor in base.model.unet.state_dict().items()}
    stage = make_stage(base, pairs, rank=rank)
    compute = loss(stage)
    trained = [p for p in stage.learner.trained.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-3)
    errors = []
    for number in range(15):
        torch.manual_seed(number % 3)  # few different batches: what is learnt must show after few steps
        value, extras = compute()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append(float(value.detach()))
        assert extras["snr_db"].isfinite()
    assert sum(errors[-3:]) < 0.9 * sum(errors[:3])
    for name, tensor in base.model.unet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_rollout_starts_from_noise_and_meets_the_student_s_own_steps(base: Base, pairs: Path) -> None:
    """The student's second input is where its first step led, not where the teacher was."""
    stage = make_stage(base, pairs, rank=2)
    inputs = []

    class Spy(OneRow):
        def __call__(self, noisy: Tensor, timesteps: Tensor, by: Conditions) -> Tensor:
            prediction = super().__call__(noisy, timesteps, by)
            inputs.append((noisy, timesteps, prediction.detach()))
            return prediction

    rollout_loss(4, 2, None)(dataclasses.replace(stage, student=Spy(stage.learner.network)))()
    (first, first_times, prediction), (second, second_times, _) = inputs
    ladder = Ladder.build(base.schedule, 4, 2, CPU)
    assert (set(first_times.tolist()), set(second_times.tolist())) == ({999.0}, {499.0})
    assert 0.8 < first.std() < 1.2
    torch.testing.assert_close(second, ladder.on_x[0] * first + ladder.on_prediction[0] * prediction)


# ---- the commands, from a checkpoint's directory to an adapter that is served


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.toml"
    stages = [f"[{name}]\nbatch = 2\nperceptual_rows = 1\n" for name in ("guidance", "steps", "rollout")]
    file.write_text("[student]\nrank = 2\n" + "".join(stages) + "perceptual_weight = 0.1\n")
    return file


@pytest.fixture(scope="module")
def run(model: Path, pairs: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage by its command: two with weights of their own, then two of low rank."""
    folder = tmp_path_factory.mktemp("run")
    save_classifier(Classifier(8), 8, folder / "judge")
    common = ["--model", model, "--pairs", pairs, "--config", small, "--max-steps", "2", "--device", "cpu"]
    own, low = folder / "guidance", folder / "steps-2"
    for arguments in (
        ["distill-guidance", "--out", own, "--rank", "0"],
        ["distill-steps", "--teacher", own, "--init", own, "--from", "4", "--to", "4", "--out", folder / "steps-4",
         "--rank", "0"],
        ["distill-steps", "--teacher", folder / "steps-4", "--from", "4", "--to", "2", "--out", low],
        ["distill-rollout", "--teacher", folder / "steps-4", "--init", low, "--from", "4", "--to", "2", "--judge",
         folder / "judge", "--out", folder / "few-step"],
    ):  # fmt: skip
        result = call(*arguments, *common)
        assert result.exit_code == 0, result.output
    return folder


def test_the_commands_lead_to_an_adapter_that_is_served(run: Path, model: Path) -> None:
    result = call("add-adapter", run / "few-step", "--name", "quick", "--model", model)
    assert result.exit_code == 0, result.output
    engine = load_torch_engine(WorkerConfig(model=str(model), slots=2, max_steps=8, threads=1))
    traits = engine.model.adapters["quick"]
    assert (traits.max_steps, traits.is_guidance_distilled) == (2, True)
    # the settings say 4, but a request without scales must not be out of its bounds
    assert traits.max_guidance_scale == engine.model.default_guidance_scale == 7.5
    pixels = np.zeros((engine.model.height, engine.model.width, 3), np.uint8)
    engine.admit(0, Job("swap", pixels, 2, 2.0, 1.5, seed=1, adapter="quick"))
    engine.encode([0])
    engine.denoise([0], [0])
    engine.denoise([0], [1])
    assert engine.decode([0]).wait().pictures[0].shape == pixels.shape


def test_every_stage_logs_and_goes_on_from_its_checkpoint(run: Path, model: Path, pairs: Path, small: Path) -> None:
    for folder, stage in (("guidance", "guidance"), ("steps-2", "steps"), ("few-step", "rollout")):
        line = json.loads((run / folder / f"{stage}.jsonl").read_text().splitlines()[0])
        assert line["stage"] == stage
        assert line["loss"] > 0
        assert "snr_db" in line
    paths = ["--teacher", run / "steps-4", "--out", run / "steps-2", "--model", model, "--pairs", pairs]
    settings = ["--from", "4", "--to", "2", "--config", small, "--max-steps", "3", "--device", "cpu"]
    result = call("distill-steps", *paths, *settings)
    assert result.exit_code == 0, result.output
    steps = [json.loads(line)["step"] for line in (run / "steps-2" / "steps.jsonl").read_text().splitlines()]
    assert steps == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill-steps", "--from", "10", "--to", "3"], "from 10 to 3 steps: the first must be a multiple"),
        (["distill-steps", "--from", "4", "--to", "2", "--teacher", "gone"], "adapter.json: is missing"),
        (["distill-steps", "--from", "4", "--to", "2", "--init", "RUN/guidance"], "is a student of rank 0, rank 2 is"),
        (["distill-steps", "--from", "4", "--to", "2", "--rank", "3", "--init", "RUN/steps-2"], "of rank 2, rank 3"),
        (["distill-rollout", "--from", "4", "--to", "2"], "perceptual distance needs --judge"),
        (["distill-guidance", "--model", "gone"], "gone: is not a directory"),
        (["distill-guidance", "--pairs", "gone"], "metadata.jsonl: cannot be read"),
        (["distill-guidance", "--teacher", "gone"], "No such option"),
    ],
)
def test_wrong_arguments_are_named(
    run: Path, model: Path, pairs: Path, small: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [item.replace("RUN", str(run)) for item in arguments]
    defaults = {"--model": model, "--pairs": pairs, "--config": small, "--out": tmp_path, "--device": "cpu"}
    rest = [item for key, value in defaults.items() if key not in given for item in (key, value)]
    result = call(*given, *rest, "--max-steps", "1")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_student_of_another_teacher_is_refused(run: Path, pairs: Path, small: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=1)
    for command in (
        ["distill-steps", "--from", "4", "--to", "2", "--teacher", run / "guidance", "--out", tmp_path / "out",
         "--pairs", pairs, "--config", small, "--device", "cpu"],
        ["add-adapter", run / "few-step"],
    ):  # fmt: skip
        result = call(*command, "--model", other)
        assert result.exit_code == 2
        assert "was trained on other weights" in result.output
    assert not (other / "adapters").exists()


@pytest.mark.parametrize(
    ("student", "name", "message"),
    [("guidance", "own", "only a student of low rank"), ("few-step", "none", "names 'none'"),
     ("few-step", "../out", "names '../out'")],
)  # fmt: skip
def test_what_cannot_be_an_adapter_is_refused(run: Path, model: Path, student: str, name: str, message: str) -> None:
    before = sorted((model / "adapters").glob("*"))
    result = call("add-adapter", run / student, "--name", name, "--model", model)
    assert result.exit_code == 2
    assert message in result.output
    assert sorted((model / "adapters").glob("*")) == before


# ---- folders of pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metadata.jsonl: is empty"),
        ('{"before": "a.png"', "metadata.jsonl:1: is no JSON"),
        ("[1]", "metadata.jsonl:1: must be an object with the text instruction"),
        ('{"before": "a.png", "instruction": 3}', "must be an object with the text instruction"),
        ('{"instruction": "x"}', "metadata.jsonl:1: names no picture before"),
        ('\n{"before": "gone.png", "instruction": "x"}', "metadata.jsonl:2: before is 'gone.png', which is no file"),
    ],
)
def test_a_wrong_folder_of_pairs_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(PairsError, match=message):
        read_pairs(tmp_path)


def test_training_needs_both_pictures_and_can_read_them(base: Base, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    model = base.model
    for line, message in (
        ({"before": "a.png", "instruction": "x"}, "a.png has no picture after"),
        ({"before": "a.png", "after": "a.png", "instruction": "x"}, "a.png: cannot be read as a picture"),
    ):
        (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
        with pytest.raises(PairsError, match=message):
            FolderPairs(tmp_path, model.vae, model.tokenizer, model.side, CPU)


def test_defaults_of_the_stages_differ_where_they_must() -> None:
    config = Config()
    assert len({config.guidance.seed, config.steps.seed, config.rollout.seed, config.teacher.seed}) == 4
