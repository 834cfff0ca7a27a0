"""Adapters: rows with and without one share a forward pass, and what does not fit is refused at load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted_model import STUDENT, list_adapters
from hypothesis import given, settings
from hypothesis import strategies as st

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.adapter import ALL_ROWS, AdaptedUNet, Adapter, LowRank, linear_maps
from steploom_engine_worker.adapter_files import DESCRIPTION, FOLDER, WEIGHTS
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job, Stage
from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model import load_model
from steploom_engine_worker.rows import NO_ADAPTER
from steploom_engine_worker.schedule import Sampler
from steploom_engine_worker.slots import adapter_segments
from steploom_engine_worker.torch_engine import TorchEngine, load_torch_engine
from steploom_engine_worker.warmup import warm_up

# Batches of other sizes are computed in another order of sums.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def root(adapted_dir: Path) -> Path:
    return adapted_dir


@pytest.fixture(scope="module")
def engine(root: Path) -> TorchEngine:
    return load_torch_engine(WorkerConfig(model=str(root), slots=6, max_steps=12, threads=1))


def run(engine: TorchEngine, jobs: list[Job]) -> list[torch.Tensor]:
    """Final latents of jobs of one step count that share every tick."""
    slots = list(range(len(jobs)))
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    engine.encode(slots)
    for step in range(jobs[0].steps):
        engine.denoise(slots, [step] * len(jobs))
    latents = [engine.slots.latents[slot].clone() for slot in slots]
    for slot in slots:
        engine.release(slot)
    return latents


def test_the_model_says_what_its_adapters_were_trained_for(engine: TorchEngine) -> None:
    assert engine.model.adapters == {"few-step": STUDENT, "style": AdapterTraits()}


ADAPTERS = st.lists(st.sampled_from(["", "few-step", "style"]), min_size=2, max_size=6)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(names=ADAPTERS)
def test_a_mixed_tick_gives_each_row_what_a_tick_of_its_own_kind_gives(
    engine: TorchEngine, make_job: Callable[..., Job], names: list[str]
) -> None:
    jobs = [
        make_job(picture=number, seed=number, adapter=name, steps=2, guidance_scale=1.5 + number)
        for number, name in enumerate(names)
    ]
    mixed = run(engine, jobs)
    for kind in set(names):
        apart = run(engine, [job for job in jobs if job.adapter == kind])
        together = [latents for job, latents in zip(jobs, mixed, strict=True) if job.adapter == kind]
        for expected, got in zip(apart, together, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_the_rows_of_an_adapter_stand_together_whatever_the_order_of_the_jobs(
    engine: TorchEngine, make_job: Callable[..., Job]
) -> None:
    names = ["style", "few-step", "", "style", "few-step"]
    run(engine, [make_job(adapter=name, steps=1) for name in names])
    assert engine._unet.gates.segments == [(0, slice(3, 5)), (1, slice(5, 11))]


def test_rows_without_an_adapter_are_the_teacher_s_bit_for_bit(root: Path) -> None:
    """In a batch of the same size: what other rows of it do with an adapter does not matter."""
    model = load_model(root)
    network = AdaptedUNet(model.unet, [item.network for item in model.adapters])
    sample, times, text = torch.randn(5, 8, 8, 8), torch.tensor([999.0, 3, 500, 500, 40]), torch.randn(5, 16, 32)
    with torch.inference_mode():
        teacher = model.unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
        network.gates.segments = [(0, slice(1, 3)), (1, slice(4, 5))]
        network.gates.scales = torch.full((5, 2), 1.5)
        mixed = network(sample, times, text)
    assert torch.equal(mixed[[0, 3]], teacher[[0, 3]])
    assert ((mixed - teacher).abs().amax((1, 2, 3)) > 1e-3).tolist() == [False, True, True, False, True]


def test_an_adapter_adds_its_low_rank_product_to_each_map(root: Path) -> None:
    """y = W x + B A x: equal to a UNet whose weights were changed by B A."""
    model = load_model(root)
    adapter = model.adapters[1].network  # the style
    changed = load_model(root).unet
    for name, change in adapter.changes.items():
        product = change.up.weight.flatten(1) @ change.down.weight.flatten(1)
        layer = changed.get_submodule(name)
        layer.weight += product.view_as(layer.weight)
    network = AdaptedUNet(model.unet, [adapter])
    network.gates.segments = [(0, ALL_ROWS)]
    sample, times, text = torch.randn(2, 8, 8, 8), torch.tensor([999.0, 3]), torch.randn(2, 16, 32)
    with torch.inference_mode():
        expected = changed(sample, times, encoder_hidden_states=text, return_dict=False)[0]
        torch.testing.assert_close(network(sample, times, text), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("number", [0, 1])
def test_merged_maps_give_what_low_ranks_give(root: Path, number: int) -> None:
    model = load_model(root)
    adapters = [item.network for item in model.adapters]
    apart, merged = AdaptedUNet(model.unet, adapters), AdaptedUNet(model.unet, adapters, is_merged=True)
    sample, times, text = torch.randn(2, 8, 8, 8), torch.tensor([999.0, 3]), torch.randn(2, 16, 32)
    results = []
    for network in (apart, merged):
        network.gates.segments, network.gates.scales = [(number, slice(0, 2))], torch.full((2, 2), 1.5)
        with torch.inference_mode():
            results.append(network(sample, times, text))
    torch.testing.assert_close(*results, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("segments", "passes"),
    [
        ([(0, slice(2, 4)), (1, slice(4, 7))], [2, 2, 3]),
        ([(0, slice(0, 5))], [5, 2]),
        ([(1, slice(2, 4))], [2, 2, 3]),
        ([(0, slice(0, 6))], [7]),  # one row alone is not worth a pass
        ([], [7]),
    ],
    ids=str,
)
def test_on_a_cpu_each_kind_of_rows_has_a_pass_of_its_own(
    root: Path, segments: list[tuple[int, slice]], passes: list[int]
) -> None:
    model = load_model(root)
    adapters = [item.network for item in model.adapters]
    together, apart = AdaptedUNet(model.unet, adapters), AdaptedUNet(model.unet, adapters, is_merged=True)
    counts: list[int] = []
    for unet in (apart.unet, *apart.merged.values()):
        unet.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    sample, times, text = torch.randn(7, 8, 8, 8), torch.linspace(3.0, 999.0, 7), torch.randn(7, 16, 32)
    scales = torch.linspace(1.0, 2.0, 14).view(7, 2)
    results = []
    for network in (together, apart):
        network.gates.segments, network.gates.scales = segments, scales
        with torch.inference_mode():
            results.append(network(sample, times, text))
    torch.testing.assert_close(*results, rtol=0, atol=TOLERANCE)
    assert counts == passes
    assert apart.gates.segments == segments
    assert apart.gates.scales is scales


def test_low_ranks_are_computed_only_where_rows_differ(
    engine: TorchEngine, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def spy(change: LowRank, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        result: torch.Tensor = change.up(change.down(x))
        return result

    monkeypatch.setattr(LowRank, "forward", spy)
    run(engine, [make_job(adapter="few-step", steps=1), make_job(adapter="few-step", steps=1)])
    assert not calls
    run(engine, [make_job(adapter="few-step", steps=1), make_job(adapter="style", steps=1)])
    assert set(calls) == {1, 3}  # one row is too few for a pass of its own


def test_merging_leaves_the_model_as_it_was_and_can_be_left_out(root: Path) -> None:
    model = load_model(root)
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    merged = AdaptedUNet(model.unet, [item.network for item in model.adapters], is_merged=True).merged
    assert len(merged) == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.unet.state_dict().items())
    engine = load_torch_engine(WorkerConfig(model=str(root), slots=1, threads=1, merge_adapters=False))
    assert not engine._unet.merged


def test_a_fresh_adapter_changes_nothing(root: Path) -> None:
    model = load_model(root)
    network = AdaptedUNet(model.unet, [Adapter(model.unet, [name for name, _ in linear_maps(model.unet)], 4, True)])
    network.gates.segments, network.gates.scales = [(0, ALL_ROWS)], torch.ones(2, 2)
    sample, times, text = torch.randn(2, 8, 8, 8), torch.tensor([999.0, 3]), torch.randn(2, 16, 32)
    with torch.inference_mode():
        teacher = model.unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
        torch.testing.assert_close(network(sample, times, text), teacher, rtol=0, atol=0)


def test_a_student_s_step_is_one_row_and_takes_both_scales(engine: TorchEngine, make_job: Callable[..., Job]) -> None:
    job = make_job(adapter="few-step", steps=2)
    engine.admit(0, job)
    assert engine.slots.rows([0])[0] == [0]
    engine.release(0)
    (latents,) = run(engine, [job])
    for changes in ({"guidance_scale": 3.0}, {"image_guidance_scale": 1.9}, {"adapter": ""}, {"adapter": "style"}):
        (other,) = run(engine, [replace(job, **changes)])
        assert (other - latents).abs().max() > 1e-3, changes


def test_a_student_visits_the_training_steps_that_it_was_trained_at(
    engine: TorchEngine, make_job: Callable[..., Job]
) -> None:
    """The tiny model's schedule says nothing of its spacing: DDIM would start below the last training step."""
    engine.admit(0, make_job(adapter="few-step", steps=4))
    engine.admit(1, make_job(steps=4, sampler=Sampler.DDIM))
    assert engine.slots.timesteps[0, :4].tolist() == [999, 749, 499, 249]
    assert engine.slots.timesteps[1, 0] < 999
    engine.release(0)
    engine.release(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "turbo"}, "adapter 'turbo' does not exist; there are: few-step, style"),
        ({"steps": 5}, "steps is 5, must be 1 to 4 with adapter few-step"),
        ({"guidance_scale": 9.0}, "guidance_scale is 9, must be 1 to 8"),
        ({"image_guidance_scale": 2.5}, "image_guidance_scale is 2.5, must be 1 to 2"),
    ],
)
def test_refuses_jobs_out_of_the_adapter_s_bounds(
    engine: TorchEngine, make_job: Callable[..., Job], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.admit(0, make_job(**{"adapter": "few-step", **changes}))


def test_warm_up_tries_every_adapter(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    segments: set[int] = set()
    forward = engine._unet.forward

    def spy(*inputs: torch.Tensor) -> torch.Tensor:
        segments.update(number for number, _ in engine._unet.gates.segments)
        return forward(*inputs)

    monkeypatch.setattr(engine._unet, "forward", spy)
    config = WorkerConfig(denoise_buckets=(1,), encode_buckets=(1,), decode_buckets=(1,), warmup_repeats=1)
    costs = warm_up(engine, config)
    assert segments == {0, 1}
    assert set(costs) == {(stage, 1) for stage in Stage}


@given(rows=st.lists(st.integers(NO_ADAPTER, 3), max_size=20))
def test_segments_name_each_adapter_s_rows_once(rows: list[int]) -> None:
    ordered = sorted(rows)
    covered = [NO_ADAPTER] * len(ordered)
    for number, segment in adapter_segments(ordered):
        assert set(covered[segment]) == {NO_ADAPTER}
        covered[segment] = [number] * (segment.stop - segment.start)
    assert covered == ordered


# ---- what is refused at load


@pytest.fixture
def broken(root: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tiny"
    shutil.copytree(root, copy)
    return copy


def edit_description(**changes: Any) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        file = root / FOLDER / "few-step" / DESCRIPTION
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return apply


def cut_weights(root: Path) -> None:
    file = root / FOLDER / "few-step" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])


def rewrite_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = root / FOLDER / "few-step" / WEIGHTS
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_description(base_weights_sha256="00"), "was trained on other weights: base_weights_sha256 is 00, the"),
        (edit_description(base_weights_sha256=""), "was trained on other weights: base_weights_sha256 is empty"),
        (edit_description(format=2), "format: is 2, must be"),
        (edit_description(rank=2), "must be"),
        (edit_description(traits={"max_steps": 0}), "traits.max_steps: is 0, must be at least 1"),
        (
            edit_description(traits={"min_guidance_scale": 5.0, "max_guidance_scale": 2.0}),
            "traits.min_guidance_scale: is 5, must be at most max_guidance_scale, which is 2",
        ),
        (edit_description(timestep_spacing="logarithmic"), "timestep_spacing: is 'logarithmic', must be one of"),
        (cut_weights, "is no complete safetensors file"),
        (lambda root: (root / FOLDER / "few-step" / WEIGHTS).unlink(), "adapter.safetensors: is missing"),
        (lambda root: (root / FOLDER / "few-step" / DESCRIPTION).unlink(), "adapter.json: is missing"),
        (rewrite_weights(lambda t: t.pop("unet.conv_in.lora_B.weight")), "lacks tensor unet.conv_in.lora_B.weight"),
        (rewrite_weights(lambda t: t.update(odd=torch.ones(1))), "has no place for tensor odd"),
        (
            rewrite_weights(lambda t: t.update({"unet.nowhere.lora_A.weight": torch.ones(1)})),
            "the UNet has no linear map or convolution nowhere",
        ),
        (
            rewrite_weights(lambda t: t["unet.conv_in.lora_B.weight"].fill_(torch.nan)),
            "tensor unet.conv_in.lora_B.weight holds values that are not finite",
        ),
        (lambda root: list_adapters(root, "few-step", "gone"), r"gone.adapter\.json: is missing"),
        (lambda root: list_adapters(root, "../few-step"), "adapters: names '../few-step', must be 1 to 64"),
        (lambda root: list_adapters(root, "auto"), "adapters: names 'auto', must be"),
        (lambda root: list_adapters(root, "style", "style"), "adapters: names one twice: style, style"),
    ],
)
def test_refuses_at_load(broken: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(broken)
    with pytest.raises(ModelError, match=message):
        load_model(broken)


def test_refuses_a_student_of_another_teacher(broken: Path) -> None:
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1e-3
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="was trained on other weights"):
        load_model(broken)


def test_the_digest_says_which_adapters_there_are(root: Path, broken: Path) -> None:
    digests = {load_model(root).digest, load_model(broken).digest}
    assert len(digests) == 1
    list_adapters(broken, "style")
    digests.add(load_model(broken).digest)
    rewrite_weights(lambda t: t["unet.conv_in.lora_B.weight"].mul_(2))(broken)
    list_adapters(broken, "few-step", "style")
    digests.add(load_model(broken).digest)
    assert len(digests) == 3


def test_pictures_of_a_student_are_finite_pixels(engine: TorchEngine, make_job: Callable[..., Job]) -> None:
    engine.admit(0, make_job(adapter="few-step", steps=1))
    engine.encode([0])
    engine.denoise([0], [0])
    (picture,) = engine.decode([0]).wait().pictures
    engine.release(0)
    assert picture.dtype == np.uint8
    assert picture.std() > 1
