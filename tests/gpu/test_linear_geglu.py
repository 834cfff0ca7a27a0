"""A linear layer with GEGLU after it as one kernel, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels import linear_geglu as module
from steploom_kernels.geglu import geglu
from steploom_kernels.gelu import gelu_reference, gelu_values_for_half
from steploom_kernels.jit import jit, tl
from steploom_kernels.linear_geglu import (
    Plan,
    candidate_plans,
    linear_geglu,
    linear_geglu_reference,
    linear_geglu_triton,
)

# One rounding of the result, relative; and of sums of so many products in float32, of their sizes.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}
SUMMED = 2.0**-19
DTYPES = list(ROUNDING)
# rows, width of x, width of the result
SHAPES = [
    (256, 128, 128),  # whole tiles only
    (70, 96, 72),  # the last tiles are not full, nor is the last step; rows are multiples of 16 bytes
    (5, 41, 27),  # odd: nothing is a multiple of anything
    (1, 8, 8),  # less than any tile
]
TILES = [Plan(16, 16, 16, 4, 2), Plan(64, 32, 32, 4, 3), Plan(128, 64, 64, 8, 3)]
WALKS = [Plan(16, 16, 16, 4, 2, 1), Plan(64, 32, 32, 4, 3, 2), Plan(128, 64, 64, 8, 3, 1)]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Layer:
    """x, weights and biases; hidden columns have a mean, so that one that took another's gate would show."""

    def __init__(self, rows: int, inner: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        if dtype == torch.bfloat16 and device.type == "cpu":
            pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices")
        self.x = random(0, rows, inner).to(device, dtype)
        self.weight = (2.0 * random(1, 2 * width, inner) * max(inner, 1) ** -0.5).to(device, dtype)
        self.bias = (random(2, 2 * width) + (torch.arange(2 * width) < width)).to(device, dtype)
        self.width = width

    def run(self, plan: Plan | None = None, rows: slice = slice(None)) -> Tensor:
        x = self.x[rows].contiguous()
        out = x.new_full((len(x), self.width), torch.nan)
        assert linear_geglu_triton(x, self.weight, self.bias, out=out, plan=plan) is out
        return out

    def exact(self) -> Tensor:
        return linear_geglu_reference(self.x.double(), self.weight.double(), self.bias.double())

    def assert_close(self, result: Tensor) -> None:
        exact = self.exact()
        sizes = functional.linear(self.x.double().abs(), self.weight.double().abs(), self.bias.double().abs())
        hidden, gate = sizes.chunk(2, dim=-1)
        bound = ROUNDING[result.dtype] * exact.abs() + SUMMED * (1.0 + hidden) * (1.0 + gate)
        assert bool(((result.double() - exact).abs() <= bound).all())


def test_the_reference_is_torchs() -> None:
    layer = Layer(7, 12, 5, torch.float64, torch.device("cpu"))
    hidden, gate = functional.linear(layer.x, layer.weight, layer.bias).chunk(2, dim=-1)  # as diffusers' GEGLU has it
    torch.testing.assert_close(layer.exact(), hidden * functional.gelu(gate))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner", "width"), SHAPES, ids=str)
def test_linear_geglu(rows: int, inner: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    layer = Layer(rows, inner, width, dtype, device)
    layer.assert_close(layer.run())


@pytest.mark.parametrize("plan", [*TILES, *WALKS], ids=str)
@pytest.mark.parametrize(("rows", "inner", "width"), [SHAPES[1], (150, 16, 48), (128, 32, 16)], ids=str)
def test_any_plan_gives_the_same(rows: int, inner: int, width: int, plan: Plan, device: torch.device) -> None:
    """Of 150 rows tiles of 16 are more than a group, of 128 they are just one, and of 70 some plans have one tile."""
    if plan.residents:
        pytest.importorskip("triton.tools.tensor_descriptor")
    layer = Layer(rows, inner, width, torch.float16, device)
    layer.assert_close(layer.run(plan))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the plans are for a GPU, and so are the bits")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inner", [320, 328])
def test_every_plan_gives_the_same_bits(inner: int, dtype: torch.dtype) -> None:
    """So the plan may go by the number of rows, and a row's result does not."""
    device = torch.device("cuda")
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the plans are for Hopper")
    layer = Layer(1100, inner, 200, dtype, device)
    usual = layer.run()
    layer.assert_close(usual)
    for plan in candidate_plans():
        assert torch.equal(layer.run(plan), usual), plan
    for rows in (slice(3, 20), slice(64, 164), slice(1000, 1100)):
        assert torch.equal(layer.run(rows=rows), usual[rows]), rows


@pytest.mark.parametrize("plan", [TILES[0], WALKS[0]], ids=str)
def test_a_row_is_the_same_in_any_batch(plan: Plan, device: torch.device) -> None:
    layer = Layer(150, 48, 40, torch.float16, device)
    together = layer.run(plan)
    for rows in (slice(0, 1), slice(0, 90), slice(144, 150)):
        assert torch.equal(layer.run(plan, rows), together[rows])


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning"
)  # the interpreter's arithmetic is numpy's
@pytest.mark.parametrize("plan", [TILES[0], WALKS[0]], ids=str)
def test_what_is_not_a_number_stays_in_its_row_or_column(plan: Plan, device: torch.device) -> None:
    layer = Layer(40, 32, 24, torch.float16, device)
    clean = layer.run(plan)
    layer.x[17, 5] = torch.nan
    layer.weight[24 + 20, 3] = torch.nan
    result = layer.run(plan)
    assert result[17].isnan().all()
    assert result[:, 20].isnan().all()
    result[17], result[:, 20] = clean[17], clean[:, 20]
    assert torch.equal(result, clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gates_far_from_zero(dtype: torch.dtype, device: torch.device) -> None:
    layer = Layer(16, 16, 16, dtype, device)
    layer.weight.zero_()
    layer.bias[:16] = 1.0
    layer.bias[16:] = torch.tensor([-6e4, -300.0, -40.0, -12.0, 12.0, 40.0, 300.0, 6e4] * 2)
    result = layer.run()
    assert torch.equal(result[0, 4:8], layer.bias[20:24])
    assert float(result[:, :4].abs().max()) < 1e-30


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gelu_is_as_close_as_the_type_needs(dtype: torch.dtype, device: torch.device) -> None:
    """Of sums that are exact: a gate alone."""
    layer = Layer(1, 8, 400, dtype, device)
    layer.weight.zero_()
    layer.bias[:400] = 1.0
    layer.bias[400:] = torch.linspace(-5.0, 5.0, 400)
    exact = layer.exact()
    relative, absolute = (2.0**-23, 2e-7) if dtype == torch.float32 else (1.02 * 2.0**-11, 2.0**-24)
    bound = relative * exact.abs() + absolute
    assert bool(((layer.run().double() - exact).abs() <= bound).all())


@jit
def _gelu_kernel(x: tl.tensor, out: tl.tensor, block: tl.constexpr) -> None:
    index = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out + index, gelu_values_for_half(tl.load(x + index)))


def test_gelu_for_half_is_far_closer_than_half_rounds(device: torch.device) -> None:
    x = torch.linspace(-6.0, 6.0, 8192, device=device)
    out = torch.full_like(x, torch.nan)
    _gelu_kernel[(8,)](x, out, block=1024)
    exact = gelu_reference(x.double())
    assert float(((out.double() - exact) / exact).abs().max()) < 1e-5 < 2.0**-11 / 40


@pytest.mark.parametrize("rows", [1, 64, 65, 256, 768, 1024, 4096, 49152])
@pytest.mark.parametrize(("inner", "width"), [(320, 1280), (640, 2560), (1280, 5120), (96, 384)])
def test_the_usual_plans_are_candidates(rows: int, inner: int, width: int) -> None:
    plans = candidate_plans()
    assert len(set(plans)) == len(plans)
    assert module._pays(inner, torch.float16)
    assert not module._pays(inner, torch.float32)
    for takes_descriptors in (False, True):
        plan = module._plan(rows, width, 2, takes_descriptors)
        assert plan in plans
        assert (plan.residents > 0) == takes_descriptors
    assert module._plan(rows, width, 4, False).residents == 0


def test_many_tiles_take_the_largest() -> None:
    widest = {(rows, width): module._plan(rows, width, 2, True)[:2] for rows, width in [(49152, 1280), (3072, 5120)]}
    assert set(widest.values()) == {(128, 128)}
    assert module._plan(256, 5120, 2, True)[:2] == (128, 64)
    assert module._plan(64, 5120, 2, True)[:2] == (64, 64)


def test_nothing_to_compute(device: torch.device) -> None:
    x, weight = torch.empty(0, 6, device=device), torch.empty(8, 6, device=device)
    assert linear_geglu_triton(x, weight, weight.new_empty(8)).shape == (0, 4)
    assert linear_geglu_triton(x.new_empty(3, 6), weight[:0], weight.new_empty(0)).shape == (3, 0)


def test_without_an_input_the_biases_are_left(device: torch.device) -> None:
    layer = Layer(3, 0, 4, torch.float32, device)
    layer.assert_close(layer.run())


def test_what_linear_geglu_refuses(device: torch.device) -> None:
    layer = Layer(4, 6, 8, torch.float16, device)
    x, weight, bias = layer.x, layer.weight, layer.bias
    with pytest.raises(ValueError, match=r"^x is \[1, 4, 6\]"):
        linear_geglu_triton(x[None], weight, bias)
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        linear_geglu_triton(x.double(), weight, bias)
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        linear_geglu_triton(x.t().contiguous().t(), weight, bias)
    with pytest.raises(ValueError, match=r"^weight is \[16, 5\]"):
        linear_geglu_triton(x, weight[:, :5], bias)
    with pytest.raises(ValueError, match=r"^weight is torch\.float32"):
        linear_geglu_triton(x, weight.float(), bias)
    with pytest.raises(ValueError, match=r"^weight has 15 rows, must be two halves"):
        linear_geglu_triton(x, weight[:15], bias)
    with pytest.raises(ValueError, match=r"^weight must be contiguous"):
        linear_geglu_triton(x, weight.t().contiguous().t(), bias)
    with pytest.raises(ValueError, match=r"^bias is \[8\]"):
        linear_geglu_triton(x, weight, bias[:8])
    with pytest.raises(ValueError, match=r"^bias is torch\.float32"):
        linear_geglu_triton(x, weight, bias.float())
    with pytest.raises(ValueError, match=r"^out is \[4, 16\]"):
        linear_geglu_triton(x, weight, bias, out=x.new_empty(4, 16))


def test_linear_geglu_of_cpu_tensors() -> None:
    x, weight, bias = (random(seed, *shape).bfloat16() for seed, shape in enumerate([(3, 10), (8, 10), (8,)]))
    out = torch.full((3, 4), torch.nan, dtype=x.dtype)
    assert linear_geglu(x, weight, bias, out=out) is out
    assert torch.equal(out, linear_geglu_reference(x, weight, bias))
    assert torch.equal(linear_geglu(x, weight, bias), out)


def test_single_precision_is_a_product_and_geglu() -> None:
    """Bit for bit: what a network does without this kernel."""
    x, weight, bias = (random(seed, *shape) for seed, shape in enumerate([(3, 10), (8, 10), (8,)]))
    assert torch.equal(linear_geglu(x, weight, bias), geglu(functional.linear(x, weight, bias)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="chooses on a GPU")
@pytest.mark.parametrize(("inner", "dtype"), [(320, torch.float16), (2048, torch.float16), (64, torch.float32)])
def test_what_does_not_pay_is_two_launches(inner: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(70, inner, 40, dtype, torch.device("cuda"))
    expected = functional.linear(layer.x, layer.weight, layer.bias)
    fused: list[int] = []
    monkeypatch.setattr(module, "linear_geglu_triton", lambda *_, **__: fused.append(inner))
    result = linear_geglu(layer.x, layer.weight, layer.bias)
    assert fused == ([320] if inner == 320 else [])
    assert fused or torch.equal(result, geglu(expected))
