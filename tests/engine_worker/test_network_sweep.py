"""The sweep over forms of a network: what is right is timed, what is wrong or breaks is said, and the rest goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from steploom_engine_worker.bench import unet as unet_bench
from steploom_engine_worker.bench import vae as vae_bench
from steploom_engine_worker.bench.profile import Call, calls_markdown, kind_of, markdown
from steploom_engine_worker.bench.sweep import Form, Forward, Point, Subject, sweep
from steploom_engine_worker.model import load_model
from steploom_kernels.bench.case import Function, Inputs
from steploom_kernels.bench.outcome import Timing
from steploom_kernels.bench.roofline import Ceilings, CopyPoint


class FakeMachine:
    """A machine on which every call takes a millisecond a row."""

    device = torch.device("cpu")

    def describe(self) -> dict[str, object]:
        return {"gpu": "none"}

    def ceilings(self) -> Ceilings:
        return Ceilings([CopyPoint(1, 1.0, "none")], 1e12)

    def time(self, run: Function, sets: Sequence[Inputs]) -> Timing:
        run(*sets[0])
        seconds = len(sets[0][0]) * 1e-3
        return Timing(seconds, seconds, seconds)


@pytest.fixture(scope="module")
def unet(tiny_model_dir: Path) -> Any:
    return load_model(tiny_model_dir).unet


def of_forms(unet: Any, forms: Sequence[Form]) -> Subject:
    return dataclasses.replace(unet_bench.unet_subject(unet, rank=2), forms=forms)


def plain(unet: Any) -> Forward:
    return lambda x, t, c: unet(x, t, encoder_hidden_states=c, return_dict=False)[0]


def test_wrong_and_broken_forms_are_said_and_the_rest_is_measured(unet: Any) -> None:
    def broken(rows: int) -> Forward:
        raise RuntimeError("out of tricks\nat line 3")

    forms = [
        Form("plain", lambda rows: plain(unet)),
        Form("wrong", lambda rows: lambda x, t, c: plain(unet)(x, t, c) * 1.1),
        Form("broken", broken),
        Form("one row", lambda rows: plain(unet), rows=(1,)),
    ]
    said: list[Point] = []
    subject = of_forms(unet, forms)
    result = sweep(subject, [1, 2], FakeMachine(), budget_s=60, clock=lambda: 0.0, say=said.append)
    assert said == result.points
    assert [(point.form, point.rows) for point in said if not point.problem] == [
        ("plain", 1),
        ("plain", 2),
        ("one row", 1),
    ]
    problems = {point.form: point.problem for point in said if point.problem}
    assert problems == {"wrong": "is off by 0.1", "broken": "RuntimeError: out of tricks"}
    assert result.ms_per_row("plain", 2) == pytest.approx(1.0)
    assert result.ms_per_row("wrong", 1) is None
    assert result.share_of_peak("plain", 1) == pytest.approx(subject.flops_per_row / 1e9)
    lines = result.markdown().splitlines()
    assert lines[0] == "| rows | plain | wrong | broken | one row |"
    assert lines[2].startswith("| 1 | 1.00 ms, ")
    assert lines[3].endswith("|  |  |  |")
    assert result.to_json()["points"][0]["form"] == "plain"


def test_no_form_begins_after_the_budget(unet: Any) -> None:
    times = iter(range(100))
    forms = [Form("plain", lambda rows: plain(unet))]
    result = sweep(
        of_forms(unet, forms),
        [1, 2, 3],
        FakeMachine(),
        budget_s=1.5,
        clock=lambda: float(next(times)),
        say=lambda point: None,
    )
    assert [point.rows for point in result.points] == [1]


def checked(subject: Subject, names: set[str]) -> None:
    """The forms of these names give what the first gives, which is one of them."""
    forms = [form for form in subject.forms if form.name in names]
    assert len(forms) == len(names)
    subject = dataclasses.replace(subject, forms=forms)
    result = sweep(subject, [2], FakeMachine(), budget_s=60, clock=lambda: 0.0, say=lambda point: None)
    assert len(result.points) == len(names)
    assert not any(point.problem for point in result.points)


def test_the_fused_forms_are_right_on_a_cpu(unet: Any, tiny_model_dir: Path) -> None:
    names = {"eager", "fused, a fresh adapter of rank 2", "fused, fp8 linear layers"}
    checked(unet_bench.unet_subject(unet, rank=2), names)
    assert not any(module._forward_pre_hooks for module in unet.modules())
    subjects = vae_bench.vae_subjects(load_model(tiny_model_dir).vae)
    assert list(subjects) == ["encode", "decode"]
    for subject in subjects.values():
        checked(subject, {"eager", "fused"})


def test_flops_are_of_one_row(unet: Any) -> None:
    assert unet_bench.inputs(unet, 3)[0].shape[0] == 3
    more = [module for module in unet.modules() if isinstance(module, torch.nn.Conv2d)]
    weights = sum(module.weight.numel() for module in more)
    assert unet_bench.unet_subject(unet, rank=2).flops_per_row > 2 * weights


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU to measure")
@pytest.mark.parametrize("main", [unet_bench.main, vae_bench.main])
def test_without_a_gpu_it_says_so(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_knob_3", "attention"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32", "convolution"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_TNT", "matrix product"),
        ("_moments_kernel", "group norm"),
        ("_layer_norm_kernel", "layer norm"),
        ("_hopper_kernel", "attention"),
        ("_geglu_kernel", "GEGLU"),
        ("_linear_geglu_walk_kernel", "product with GEGLU"),
        ("_gated_lora_kernel", "adapters"),
        ("_add_kernel", "addition"),
        ("_quantise_kernel", "quantisation"),
        ("_interleave_kernel", "copy and layout"),
        ("void at::native::vectorized_elementwise_kernel<4, sin>", "other"),
    ],
)
def test_kinds_of_kernels(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_a_profile_is_a_table_by_kind_longest_first() -> None:
    kinds = {"GEGLU": [("_geglu_kernel", 2e-5, 16.0)], "attention": [("flash", 6e-5, 5.0), ("small", 1e-6, 1.0)]}
    lines = markdown(kinds, rows=2).splitlines()
    assert lines[2] == "| attention | 30.5 | 75.3% | 6 | `flash` 30.0, `small` 0.5 |"
    assert lines[-1].startswith("| all | 40.5 |")


def test_calls_are_told_by_shape() -> None:
    calls = [Call("mm", "[8, 4] [4, 2]", 3e-5, 2.0), Call("conv2d", "[1, 4, 8, 8] [4, 4, 3, 3]", 1e-6, 1.0)]
    lines = calls_markdown(calls, rows=2).splitlines()
    assert lines[2:] == ["| mm | [8, 4] [4, 2] | 2 | 15.0 |", "| conv2d | [1, 4, 8, 8] [4, 4, 3, 3] | 1 | 0.5 |"]
