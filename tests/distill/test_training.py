"""Each stage takes steps, ends, and goes on from its checkpoint; the objective and the schedule are what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from steploom_distill import grammar
from steploom_distill.classifier import load_classifier, train_classifier
from steploom_distill.config import (
    ClassifierConfig,
    Config,
    ConfigError,
    ModelConfig,
    TeacherConfig,
    VaeConfig,
    load_config,
)
from steploom_distill.evaluate import evaluate
from steploom_distill.models import build_scheduler
from steploom_distill.pack import pack, read_manifest
from steploom_distill.sampling import Guidance
from steploom_distill.teacher import Objective, train_teacher
from steploom_distill.training import Budget, Ema
from steploom_distill.vae import train_vae
from steploom_engine_worker.model_files import weights_sha256

CPU = torch.device("cpu")
TINY = ModelConfig(
    resolution=32, unet_channels=(16, 16, 32), vae_channels=(16, 16, 32), text_width=32, text_layers=1, vocabulary=600
)


def tiny(steps: int) -> Config:
    return Config(
        model=TINY,
        vae=VaeConfig(batch=2, pool=8, chunk=4, refresh_every=2, max_steps=steps),
        teacher=TeacherConfig(batch=4, pool=8, chunk=4, refresh_every=2, max_steps=steps),
        classifier=ClassifierConfig(batch=4, width=8, pool=8, chunk=4, refresh_every=2, max_steps=steps),
    )


@pytest.fixture(autouse=True, scope="module")
def few_sentences() -> Iterator[None]:
    """Train on one sentence in thirty: tokenizing all of them would take most of the tests' time."""
    every = grammar.instructions

    def some(name: str, language: str) -> list[grammar.Instruction]:
        return [item for i, item in enumerate(every(name, language)) if item.is_held_out or i % 30 == 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar, "instructions", some)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which every stage has taken one step."""
    folder = tmp_path_factory.mktemp("run")
    train_vae(tiny(1), folder, CPU)
    train_teacher(tiny(1), folder, CPU)
    train_classifier(tiny(1), folder, CPU)
    return folder


def test_every_stage_leaves_its_parts_and_a_log(run: Path) -> None:
    for part in ("vae", "unet", "text_encoder", "tokenizer", "judge"):
        assert (run / part).is_dir()
    for stage in ("vae", "teacher", "classifier"):
        lines = [json.loads(line) for line in (run / f"{stage}.jsonl").read_text().splitlines()]
        assert lines[0]["stage"] == stage
        assert lines[0]["loss"] > 0


@pytest.mark.parametrize(
    ("stage", "train"), [("vae", train_vae), ("teacher", train_teacher), ("classifier", train_classifier)]
)
def test_a_stage_goes_on_from_its_checkpoint(run: Path, stage: str, train: object) -> None:
    before = torch.load(run / f"{stage}.pt", weights_only=True)
    name = next(iter(before["module"]))
    before["module"][name] += 1  # a mark that fresh weights of the same seed do not carry
    torch.save(before, run / f"{stage}.pt")
    train(tiny(2), run, CPU)  # type: ignore[operator]
    after = torch.load(run / f"{stage}.pt", weights_only=True)
    first, last = ({k: int(v["step"]) for k, v in s["optimizer"]["state"].items()} for s in (before, after))
    assert (before["step"], after["step"]) == (1, 2)
    assert set(first.values()) == {1}
    assert set(last.values()) == {2}
    assert after["spent"] > before["spent"]
    torch.testing.assert_close(after["module"][name], before["module"][name], atol=1e-2, rtol=0)
    log = (run / f"{stage}.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [0, 1]


def test_a_finished_stage_takes_no_step(run: Path) -> None:
    train_vae(tiny(1), run, CPU)
    assert torch.load(run / "vae.pt", weights_only=True)["step"] <= 2


def test_the_autoencoder_can_start_from_another(run: Path, tmp_path: Path) -> None:
    start = AutoencoderKL.from_pretrained(run / "vae")
    trained = train_vae(tiny(1), tmp_path, CPU, init=run / "vae")
    first = next(start.parameters())
    torch.testing.assert_close(next(trained.parameters()).contiguous(), first, atol=1e-2, rtol=0)


def test_packing_and_scoring_a_run(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    pack(run, model, "tiny", steps=2, guidance=Guidance(1.5, 1.0))
    manifest = read_manifest(model)
    assert manifest["weights_sha256"] == weights_sha256(model)
    assert manifest["resolution"] == TINY.resolution
    report = evaluate(model, run / "judge", tmp_path, count=1, steps=1, guidance=Guidance(1.5, 1.0), device=CPU)
    assert 0 < report["all"]["psnr"] < 30  # type: ignore[index]
    assert json.loads((tmp_path / "metrics.json").read_text())["all"] == report["all"]
    assert (tmp_path / "metrics.md").read_text().count("\n") > 30


def test_a_judge_for_other_attributes_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"width": 8, "attributes": {"hair": 2}}))
    with pytest.raises(ValueError, match="other attributes"):
        load_classifier(tmp_path)


class Oracle(nn.Module):
    """Knows the clean latents and gives the exact v: from x = a z + b n follows v = (a x - z) / b."""

    def __init__(self, clean: Tensor, objective: Objective) -> None:
        super().__init__()
        self.clean, self.objective = clean, objective

    def forward(self, stacked: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        a, b = (t[timesteps][:, None, None, None] for t in (self.objective.signal, self.objective.noise))
        exact: Tensor = (a * stacked[:, :4] - self.clean) / b
        return exact


def test_the_objective_is_zero_for_the_exact_v() -> None:
    torch.manual_seed(0)
    objective = Objective(0.5, TeacherConfig(), CPU)
    after, before = torch.randn(8, 4, 4, 4), torch.randn(8, 4, 4, 4)
    edits, ids = torch.zeros(8, dtype=torch.long), torch.zeros(8, 3, dtype=torch.long)
    loss, _ = objective(Oracle(after * 0.5, objective), before, after, edits, ids)
    assert float(loss) < 1e-4
    wrong, _ = objective(Oracle(after, objective), before, after, edits, ids)
    assert float(wrong) > 1e-2


def test_the_schedule_ends_without_any_signal() -> None:
    scheduler = build_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-12)
    scheduler.set_timesteps(35)
    assert scheduler.timesteps[0] == 999


def test_a_budget_s_rate_warms_up_and_decays_with_time() -> None:
    budget = Budget(100.0)
    assert budget.rate(1.0, warmup_steps=10) == pytest.approx(0.1)
    budget.step, budget.spent = 50, 50.0
    assert budget.rate(1.0, 10) == pytest.approx(0.505)
    budget.spent = 120.0
    assert budget.rate(1.0, 10) == pytest.approx(0.01)
    assert budget.is_over


def test_the_average_follows_the_parameters() -> None:
    weight = nn.Parameter(torch.zeros(3))
    ema = Ema([weight], decay=0.5)
    weight.data.fill_(1.0)
    for step in range(100, 104):
        ema.update(step)
    assert ema.average[0].tolist() == pytest.approx([1 - 0.5**4] * 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[vea]\n", "unknown section vea"),
        ("[vae]\nbatsch = 1\n", "no key batsch"),
        ("[vae]\nbatch = 'x'\n", "should be"),
    ],
)
def test_a_wrong_configuration_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_shipped_configurations_are_valid() -> None:
    for file in (Path(__file__).parents[2] / "distill" / "configs").glob("*.toml"):
        assert load_config(file) != Config()
