"""Linear layers in e4m3: close to the network's own, the same by every way, and refused where they cannot be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from steploom_common.settings import ConfigError
from steploom_engine_worker import calibration, graph_engine
from steploom_engine_worker.adapter import Adapter, linear_maps, merged_unet
from steploom_engine_worker.bench import fp8 as bench
from steploom_engine_worker.calibration import MARGIN, STEPS, Observer, Watch, input_scales, largest_inputs, scale_for
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.fused.maps import Change, Dense, EightBitDense, Maps
from steploom_engine_worker.fused.unet import FusedUNet
from steploom_engine_worker.graph_engine import Buckets, GraphEngine, load_graph_engine
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_kernels.fp8 import E4M3, LARGEST, LOWEST_CAPABILITY, quantise
from steploom_kernels.gather_rows import NO_ADAPTER, RowScalars

CPU = torch.device("cpu")
ROUNDED = 0.3  # the tiny model's attention to the text is so sharp that a rounding grows; another result is off by 1
BUCKETS = Buckets(encode=(2,), denoise=(1, 3, 6), decode=(2,))


@pytest.fixture(scope="module")
def model(adapted_dir: Path) -> Model:
    return load_model(adapted_dir)


@pytest.fixture(scope="module")
def scales(model: Model) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "STEPS", 2)
        return input_scales(model, CPU, torch.float32)


def inputs(unet: Any, rows: int, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    sample = torch.randn(rows, 8, side, side).contiguous(memory_format=torch.channels_last)
    return sample, torch.linspace(999, 3, rows), torch.randn(rows, 16, unet.config.cross_attention_dim)


def gates(times: Tensor, adapters: list[int]) -> RowScalars:
    numbers = torch.tensor(adapters, dtype=torch.int32)
    return RowScalars(times, numbers, (numbers >= 0).float(), torch.full((len(adapters), 2), 1.7))


def lively(unet: Any, seed: int, names: list[str] | None = None) -> Adapter:
    torch.manual_seed(seed)
    adapter = Adapter(unet, names or [name for name, _ in linear_maps(unet)], 2, has_guidance=False)
    for tensor in adapter.tensors().values():
        torch.nn.init.normal_(tensor, std=0.2)
    return adapter.requires_grad_(False)


def off(result: Tensor, wanted: Tensor) -> float:
    return float((result - wanted).norm() / wanted.norm())


class Layer:
    """A map in e4m3, with an adapter's change of a part of it, and what both give in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.weight, self.x, self.bias = torch.randn(48, 32) * 0.2, torch.randn(3, 5, 32), torch.randn(48)
        self.down, self.up = torch.randn(1, 2, 32), torch.randn(1, 16, 2)
        self.scale = scale_for(float(self.x.abs().max()))
        self.map = EightBitDense(self.weight, self.scale, [Change(16, self.down, self.up)])
        self.rows = gates(torch.zeros(3), [NO_ADAPTER, 0, NO_ADAPTER])

    def exact(self) -> Tensor:
        """Of what the codes stand for."""
        x = quantise(self.x, self.scale).double() * self.scale
        weight = self.map.weight.double() * (self.map.scales.double() / self.scale)[:, None]
        return functional.linear(x, weight)

    def change(self) -> Tensor:
        """Of x as it is."""
        change = torch.zeros(3, 5, 48, dtype=torch.float64)
        change[1, :, 16:32] = self.x[1].double() @ self.down[0].double().T @ self.up[0].double().T
        return change


def test_a_map_multiplies_codes_and_adds_its_bias() -> None:
    layer = Layer()
    torch.testing.assert_close(
        layer.map(layer.x, None, layer.bias).double(), layer.exact() + layer.bias, atol=1e-5, rtol=0
    )
    assert 0.01 < off(layer.map(layer.x, None), functional.linear(layer.x, layer.weight)) < 0.06


def test_a_map_takes_what_is_quantised_already() -> None:
    layer = Layer()
    codes = quantise(layer.x, layer.scale)
    assert layer.map.wants(None) == layer.scale
    assert torch.equal(layer.map(codes, None), layer.map(layer.x, None))
    total = torch.randn(3, 5, 48)
    assert torch.equal(layer.map.add_to(total.clone(), codes, None), layer.map.add_to(total.clone(), layer.x, None))


def test_a_map_adds_to_a_sum_in_place() -> None:
    layer = Layer()
    total = torch.randn(3, 5, 48)
    expected = total.double() + layer.exact() + layer.change()
    assert layer.map.add_to(total, layer.x, layer.rows) is total
    torch.testing.assert_close(total.double(), expected, atol=1e-5, rtol=0)


def test_an_adapter_s_change_is_not_quantised() -> None:
    layer = Layer()
    assert layer.map.wants(layer.rows) is None
    got = layer.map(layer.x, layer.rows)
    torch.testing.assert_close(got.double(), layer.exact() + layer.change(), atol=1e-5, rtol=0)
    assert torch.equal(got[[0, 2]], layer.map(layer.x, None)[[0, 2]])


def test_scales_are_powers_of_two_with_room() -> None:
    for largest in (0.01, 1.0, 3.0, 224.0, 225.0, 6e4):
        scale = scale_for(largest)
        assert math.log2(scale).is_integer()
        assert MARGIN * largest <= LARGEST * scale < 2 * MARGIN * largest
    assert scale_for(0.0) == 1.0
    for broken in (math.inf, math.nan):
        with pytest.raises(ValueError, match="not finite"):
            scale_for(broken)


def test_a_calibration_sees_every_map_that_can_be_in_e4m3(model: Model, scales: dict[str, float]) -> None:
    """Of each transformer layer the two queries, and both maps of the feed-forward layer."""
    blocks = [name for name, _ in model.unet.named_modules() if name.rpartition(".")[0].endswith("transformer_blocks")]
    fused = FusedUNet(model.unet, input_scales=scales)
    narrow = [module for module in fused.modules() if isinstance(module, EightBitDense)]
    assert len(narrow) == 4 * len(blocks) == len(scales)
    assert all(module.weight.dtype == E4M3 for module in narrow)
    assert not any(isinstance(module, EightBitDense) for module in FusedUNet(model.unet).modules())


def test_a_calibration_sees_what_goes_in(model: Model, make_job: Callable[..., Job]) -> None:
    observer = Observer(model, 1, 2, CPU, torch.float32, merge_adapters=False)
    name = next(name for name in observer.largest if name.endswith("ff.net.2"))
    inside: list[float] = []
    hidden = observer._unet.unet.get_submodule(name)
    hidden.register_forward_pre_hook(lambda _, given: inside.append(float(given[0].abs().max())))
    observer.draw([make_job(steps=2)])
    assert len(inside) == 2
    assert observer.largest[name] == max(inside) > 0


def test_the_largest_input_is_that_of_all_passes() -> None:
    network = torch.nn.Module()
    network.layer = torch.nn.Module()
    network.layer.attn1 = torch.nn.Module()
    network.layer.attn1.to_q = network.layer.other = torch.nn.Linear(2, 2)
    watch = Watch(network)
    for values in ([1.0, 0.5], [2.0, -3.0], [0.0, 1.0]):
        network.layer.attn1.to_q(torch.tensor(values))
    assert watch.largest == {"layer.attn1.to_q": 3.0}
    watch.end()
    network.layer.attn1.to_q(torch.tensor([9.0, 9.0]))
    assert watch.largest == {"layer.attn1.to_q": 3.0}


def test_a_calibration_leaves_the_model_as_it_was(adapted_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "STEPS", 1)
    model = load_model(adapted_dir)
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    assert largest_inputs(model, CPU, torch.float32) == largest_inputs(model, CPU, torch.float32)
    assert not any(module._forward_pre_hooks for module in model.unet.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.unet.state_dict().items())


def test_a_calibration_draws_with_every_adapter(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []
    monkeypatch.setattr(Observer, "draw", lambda _, jobs: drawn.append((jobs[0].adapter, jobs[0].steps)))
    largest_inputs(model, CPU, torch.float32)
    most = {item.name: item.manifest.traits.max_steps for item in model.adapters}
    assert drawn == [("", STEPS), *((name, min(STEPS, steps)) for name, steps in most.items())]


@torch.inference_mode()
def test_the_embedded_network_is_close_to_its_own() -> None:
    unet = load_model(embedded_model()).unet
    sample, times, text = inputs(unet, 2, side=32)
    watch = Watch(unet)
    whole = unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
    watch.end()
    fused = FusedUNet(unet, input_scales={name: scale_for(seen) for name, seen in watch.largest.items()})
    assert 1e-3 < off(fused(sample, times, text), whole) < 0.03


@torch.inference_mode()
def test_rows_without_an_adapter_are_the_model_s_alone(model: Model, scales: dict[str, float]) -> None:
    """Where adapters read the inputs too, these are quantised apart: to the same codes."""
    adapters = [lively(model.unet, 1), lively(model.unet, 2)]
    fused = FusedUNet(model.unet, adapters, input_scales=scales)
    sample, times, text = inputs(model.unet, 4)
    mixed = fused(sample, times, text, gates(times, [NO_ADAPTER, 0, 1, NO_ADAPTER]))
    plain = fused(sample, times, text)
    assert torch.equal(mixed[[0, 3]], plain[[0, 3]])
    whole = FusedUNet(model.unet, adapters)
    rows = gates(times, [NO_ADAPTER, 0, 1, NO_ADAPTER])
    assert off(mixed, whole(sample, times, text, rows)) < ROUNDED
    assert off(mixed[1:3], plain[1:3]) > 0.5


@torch.inference_mode()
def test_merged_weights_are_quantised_merged(model: Model, scales: dict[str, float]) -> None:
    adapter = lively(model.unet, 3)
    merged = merged_unet(model.unet, adapter)
    fused = FusedUNet(merged, [adapter], are_merged=True, input_scales=scales)
    sample, times, text = inputs(model.unet, 2)
    rows = gates(times, [0, 0])
    assert any(isinstance(module, EightBitDense) for module in fused.modules())
    whole = FusedUNet(merged, [adapter], are_merged=True)
    assert off(fused(sample, times, text, rows), whole(sample, times, text, rows)) < ROUNDED


def test_sizes_that_torch_cannot_multiply_stay_as_they_are() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.odd = torch.nn.Linear(32, 48), torch.nn.Linear(32, 40)

    maps = Maps(Odd(), input_scales={"wide": 1.0, "odd": 1.0})
    assert isinstance(maps.narrow_dense("wide"), EightBitDense)
    assert isinstance(maps.narrow_dense("odd"), Dense)
    assert isinstance(Maps(Odd(), input_scales={"odd": 1.0}).narrow_dense("wide"), Dense)


def test_an_engine_draws_nearly_the_same_and_an_overflow_fails_alone(
    adapted_dir: Path, scales: dict[str, float], make_job: Callable[..., Job]
) -> None:
    engines = [
        GraphEngine(load_model(adapted_dir), 3, 4, CPU, torch.float32, BUCKETS, input_scales=given)
        for given in (None, scales)
    ]
    for names in (("", ""), ("few-step", "few-step")):
        jobs = [make_job(picture=number, seed=number, adapter=name, steps=2) for number, name in enumerate(names)]
        own, narrow = (bench.draw(engine, jobs) for engine in engines)
        for ours, theirs in zip(narrow, own, strict=True):
            assert not np.array_equal(ours, theirs)
            assert bench.psnr(ours, theirs) > 25
    engine = engines[1]
    for slot in (0, 1):
        engine.admit(slot, make_job(steps=1))
    engine.encode([0, 1]).wait()
    engine.slots.latents[1] = torch.inf
    assert engine.denoise([0, 1], [0, 0]).wait().failures == {1: "the UNet gave values that are not finite"}


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^fp8: is 'linear', which needs a GPU: device is 'cpu'"):
        WorkerConfig(fp8="linear", dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"^fp8: is 'linear', which needs dtype float16 or bfloat16: it is float32"):
        WorkerConfig(fp8="linear", device="cuda:1")
    with pytest.raises(ConfigError, match=r"^fp8: is 'all', must be one of off, linear"):
        WorkerConfig(fp8="all")
    assert WorkerConfig(fp8="linear", device="cuda", dtype="float16").fp8 == "linear"


def test_a_gpu_that_cannot_is_a_wrong_setting(adapted_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on one that is too old; whatever the reason is, the setting is named."""
    monkeypatch.setattr(graph_engine, "device_of", lambda _: CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    config = WorkerConfig(model=str(adapted_dir), device="cuda", dtype="bfloat16", fp8="linear")
    with pytest.raises(
        ConfigError, match=r"^worker\.fp8: is 'linear', needs a GPU of compute capability 8\.9 or later"
    ):
        load_graph_engine(config)


def test_the_bench_tells_what_is_lost(
    adapted_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "STEPS", 2)
    picture, out = tmp_path / "picture.png", tmp_path / "out" / "fp8.json"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(picture)
    arguments = ["--picture", str(picture), "--instruction", "one", "two", "--model", str(adapted_dir)]
    assert bench.main([*arguments, "--steps", "2", "--device", "cpu", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [(loss["form"], loss["adapter"], loss["pictures"]) for loss in report["losses"]] == [
        (form, name, 2) for form in ("fp8 linear layers", "bfloat16") for name in ("", "few-step", "style")
    ]
    assert all(20 < loss["worst_db"] <= loss["mean_db"] < 70 for loss in report["losses"])
    assert 0 < report["fullest"] < 1.5
    assert "| fp8 linear layers | few-step | 2 | " in capsys.readouterr().out


def test_psnr() -> None:
    first = np.zeros((2, 2, 3), np.uint8)
    assert bench.psnr(first, first) == 100.0
    assert bench.psnr(first, np.full_like(first, 255)) == pytest.approx(0.0)
    assert bench.psnr(np.full_like(first, 255), first) == pytest.approx(0.0)  # bytes do not wrap
    assert bench.psnr(first, np.full_like(first, 51)) == pytest.approx(20 * math.log10(5))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < LOWEST_CAPABILITY,
    reason="a GPU of compute capability 8.9 multiplies e4m3",
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gpu_draws_nearly_the_same(adapted_dir: Path, make_job: Callable[..., Job], dtype: str) -> None:
    config = WorkerConfig(
        model=str(adapted_dir), slots=4, max_steps=8, device="cuda", dtype=dtype, encode_buckets=(4,),
        denoise_buckets=(3, 12), decode_buckets=(4,),
    )  # fmt: skip
    own, narrow = (load_graph_engine(replace(config, fp8=fp8)) for fp8 in ("off", "linear"))
    for names in (("",), ("few-step", "few-step"), ("", "few-step", "style")):
        jobs = [make_job(picture=number, seed=number, adapter=name, steps=3) for number, name in enumerate(names)]
        for ours, theirs in zip(bench.draw(narrow, jobs), bench.draw(own, jobs), strict=True):
            assert not np.array_equal(ours, theirs)
            assert bench.psnr(ours, theirs) > 25
