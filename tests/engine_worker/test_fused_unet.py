"""The fused UNet gives what diffusers' module and the adapters on it give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from steploom_engine_worker.adapter import AdaptedUNet, Adapter, linear_maps, merged_unet
from steploom_engine_worker.fused import maps
from steploom_engine_worker.fused.unet import FusedUNet, cannot_fuse
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_kernels.gather_rows import NO_ADAPTER, RowScalars
from steploom_kernels.linear_geglu import linear_geglu

TOLERANCE = 2e-4  # of float32: sums in another order


@pytest.fixture(scope="module")
def unet(tiny_model_dir: Path) -> Any:
    """The tiny model's, with biases and norms that are not those of a fresh network: zeros and ones hide mistakes."""
    unet = load_model(tiny_model_dir).unet
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return unet


def inputs(unet: Any, rows: int, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    sample = torch.randn(rows, 8, side, side).contiguous(memory_format=torch.channels_last)
    text = torch.randn(rows, 16, unet.config.cross_attention_dim)
    return sample, torch.linspace(999, 3, rows), text


def random_adapter(
    unet: Any, seed: int, rank: int, names: list[str] | None = None, std: float = 0.2, **options: Any
) -> Adapter:
    torch.manual_seed(seed)
    adapter = Adapter(unet, names or [name for name, _ in linear_maps(unet)], rank, **options)
    for tensor in adapter.tensors().values():
        torch.nn.init.normal_(tensor, std=std)
    return adapter.requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
def test_gives_what_the_module_gives(unet: Any, rows: int) -> None:
    sample, times, text = inputs(unet, rows)
    expected = unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
    got = FusedUNet(unet)(sample, times, text)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    assert got.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_gives_what_the_embedded_model_gives() -> None:
    unet = load_model(embedded_model()).unet
    sample, times, text = inputs(unet, 2, side=32)
    expected = unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
    torch.testing.assert_close(FusedUNet(unet)(sample, times, text), expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_rows_of_two_adapters_and_of_none(unet: Any) -> None:
    attention = [name for name, _ in linear_maps(unet) if "attn" in name]
    adapters = [
        random_adapter(unet, 1, rank=3, has_guidance=True),
        random_adapter(unet, 2, rank=2, names=attention, has_guidance=False),
    ]
    sample, times, text = inputs(unet, 5)
    adapted = AdaptedUNet(unet, adapters)
    adapted.gates.segments = [(0, slice(1, 3)), (1, slice(3, 4))]
    adapted.gates.scales = torch.rand(5, 2) + 1
    expected = adapted(sample, times, text)
    numbers = torch.tensor([NO_ADAPTER, 0, 0, 1, NO_ADAPTER], dtype=torch.int32)
    rows = RowScalars(times, numbers, (numbers >= 0).float(), adapted.gates.scales)
    fused = FusedUNet(unet, adapters)
    got = fused(sample, times, text, rows)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
    plain = fused(sample, times, text)
    assert torch.equal(got[[0, 4]], plain[[0, 4]])
    assert ((got - plain).abs().amax((1, 2, 3)) > 1e-3).tolist() == [False, True, True, True, False]


@torch.inference_mode()
def test_the_change_of_each_kind_of_map_counts(unet: Any) -> None:
    """Each alone: a change that is lost would not show beside all the others."""
    sample, times, text = inputs(unet, 2)
    numbers = torch.tensor([NO_ADAPTER, 0], dtype=torch.int32)
    rows = RowScalars(times, numbers, torch.tensor([0.0, 1.0]), torch.ones(2, 2))
    plain = unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
    # in the narrow blocks at both ends a group of a norm is one channel, and takes back what is added to it
    names = sorted((name for name, _ in linear_maps(unet)), key=lambda name: ("up_blocks" in name, name))
    kinds: dict[str, str] = {}
    for name in names:
        kind = re.sub(r"\d+", "", name)
        kinds[kind] = kinds.get(kind, name) if "up_blocks" in name else name
    assert len(kinds) > 25
    for name in kinds.values():
        adapter = random_adapter(unet, 3, rank=2, names=[name], std=0.6, has_guidance=False)
        adapted = AdaptedUNet(unet, [adapter])
        adapted.gates.segments = [(0, slice(1, 2))]
        expected = adapted(sample, times, text)
        assert (expected - plain).abs().max() > TOLERANCE, name
        got = FusedUNet(unet, [adapter])(sample, times, text, rows)
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE / 4, msg=name)


@torch.inference_mode()
def test_a_gate_between_zero_and_one(unet: Any) -> None:
    """The prediction moves with the gate, from the model's to the adapter's."""
    names = [name for name, _ in linear_maps(unet) if "time" in name or "attn" in name]
    fused = FusedUNet(unet, [random_adapter(unet, 4, rank=2, names=names, has_guidance=True)])
    sample, times, text = inputs(unet, 1)
    numbers = torch.zeros(1, dtype=torch.int32)
    results = [
        fused(sample, times, text, RowScalars(times, numbers, torch.tensor([gate]), torch.full((1, 2), 2.0)))
        for gate in (0.0, 0.5, 1.0)
    ]
    torch.testing.assert_close(results[0], fused(sample, times, text), rtol=0, atol=TOLERANCE)
    half, whole = ((item - results[0]).norm() for item in results[1:])
    assert 0.2 * whole < half < 0.8 * whole


@torch.inference_mode()
def test_merged_weights_take_only_the_guidance_embedding(unet: Any) -> None:
    adapter = random_adapter(unet, 5, rank=2, has_guidance=True)
    adapted = AdaptedUNet(unet, [adapter])
    adapted.gates.segments, adapted.gates.scales = [(0, slice(0, 2))], torch.full((2, 2), 1.7)
    sample, times, text = inputs(unet, 2)
    expected = adapted(sample, times, text)
    rows = RowScalars(times, torch.zeros(2, dtype=torch.int32), torch.ones(2), adapted.gates.scales)
    got = FusedUNet(merged_unet(unet, adapter), [adapter], are_merged=True)(sample, times, text, rows)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_a_product_and_geglu_are_one_launch_where_nothing_comes_between(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's change comes between, in the layers that it changes and unless it is merged; and so does what makes
    floats of 8 bits."""
    weights: list[int] = []

    def counted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weights.append(weight.data_ptr())
        return linear_geglu(x, weight, bias)

    monkeypatch.setattr(maps, "linear_geglu", counted)
    names = [name for name, _ in linear_maps(unet)]
    hidden = [name for name in names if name.endswith("ff.net.0.proj")]
    sample, times, text = inputs(unet, 2)
    rows = RowScalars(
        times, torch.tensor([NO_ADAPTER, 0], dtype=torch.int32), torch.tensor([0.0, 1.0]), torch.ones(2, 2)
    )

    def launches(changed: list[str], gates: RowScalars | None, **options: Any) -> int:
        weights.clear()
        adapter = random_adapter(unet, 6, rank=2, names=changed, has_guidance=False)
        FusedUNet(unet, [adapter], **options)(sample, times, text, gates)
        assert len(set(weights)) == len(weights)
        return len(weights)

    attention = [name for name in names if "attn" in name]
    assert len(hidden) > 4
    assert launches(names, None) == len(hidden)
    assert launches(names, rows) == 0
    assert launches(attention, rows) == len(hidden)
    assert launches([*attention, hidden[0]], rows) == len(hidden) - 1
    assert launches(names, rows, are_merged=True) == len(hidden)
    narrow = [hidden[1], hidden[2].replace("ff.net.0.proj", "ff.net.2")]
    assert launches(names, None, input_scales=dict.fromkeys(narrow, 1.0)) == len(hidden) - 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("act_fn", "gelu", "act_fn is 'gelu', must be 'silu' or 'swish'"),
        ("resnet_time_scale_shift", "scale_shift", "resnet_time_scale_shift is 'scale_shift', must be 'default'"),
        ("num_class_embeds", 10, "num_class_embeds is 10, must be None"),
        ("mid_block_only_cross_attention", True, "mid_block_only_cross_attention is True, must be None or False"),
        ("down_block_types", ("AttnDownBlock2D",), "has a block AttnDownBlock2D"),
    ],
)
def test_says_why_it_cannot_fuse(tiny_model_dir: Path, name: str, value: object, message: str) -> None:
    unet = load_model(tiny_model_dir).unet
    assert not cannot_fuse(unet)
    unet.register_to_config(**{name: value})
    assert message in cannot_fuse(unet)
    with pytest.raises(ValueError, match="must be"):
        FusedUNet(unet)


def test_nothing_of_it_stays_behind_when_it_moves(unet: Any) -> None:
    """One that is made on the host is moved to the device whole: no tensor lies beside its parameters and buffers."""
    adapter = random_adapter(unet, 4, rank=2, has_guidance=True)
    moved = FusedUNet(merged_unet(unet, adapter), [adapter], are_merged=True, first_number=7).to("meta")
    tensors = [
        value for module in moved.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)
    ]
    assert tensors == []
    assert {item.device.type for item in (*moved.parameters(), *moved.buffers())} == {"meta"}
    assert [*moved.guidance] == ["7"]
