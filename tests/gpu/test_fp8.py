"""Quantisation to e4m3 as a kernel and in the kernels that do it in passing, bit for bit; and the product.

Triton's interpreter rounds wrongly to e4m3, so there kernels take the form for GPUs without it, by integers; on a GPU
that has it the same tests are of its own conversion.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from steploom_kernels import aot, elementwise, fp8
from steploom_kernels.fp8 import (
    E4M3,
    LARGEST,
    cannot_multiply,
    has_unit,
    quantise,
    quantise_channels,
    quantise_reference,
    quantise_triton,
    scaled_linear,
    scaled_linear_reference,
)
from steploom_kernels.geglu import geglu, geglu_reference, geglu_triton
from steploom_kernels.layer_norm import layer_norm, layer_norm_reference, layer_norm_triton

HALVES = [torch.float16, torch.bfloat16]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unwritten(*shape: int, device: torch.device) -> Tensor:
    """e4m3 that no test expects: not numbers."""
    return torch.full(shape, 0x7F, dtype=torch.uint8, device=device).view(E4M3)


def codes(x: Tensor) -> Tensor:
    return x.view(torch.uint8).cpu()


def all_values() -> Tensor:
    """Of e4m3, by their codes; not a number twice."""
    return torch.arange(256, dtype=torch.uint8).view(E4M3).double()


def test_the_reference_takes_the_nearest_code_the_even_one_of_two() -> None:
    """All midpoints of neighbours, and values beside them, against a search through the table."""
    table = all_values()[:0x7F]  # 0 to 448
    middles = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, middles, middles * (1 + 2.0**-11), middles * (1 - 2.0**-11)]).float()
    distances = (x.double()[:, None] - table).abs()
    nearest = distances.argmin(1)
    is_tie = (distances == distances.amin(1, keepdim=True)).sum(1) == 2
    expected = torch.where(is_tie & (nearest % 2 == 1), nearest + 1, nearest)
    assert is_tie.sum() == len(middles)
    assert torch.equal(codes(quantise_reference(x, 1.0)).long(), expected)
    assert torch.equal(codes(quantise_reference(-x[1:], 1.0)).long(), expected[1:] + 0x80)


def test_beyond_the_end_is_the_end_and_what_is_not_finite_is_not_a_number() -> None:
    x = torch.tensor([449.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
    result = quantise_reference(x, 1.0).float()
    assert result[:3].tolist() == [LARGEST, LARGEST, -LARGEST]
    assert result[3:].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1.0, 2.0**-5, 0.37])
def test_every_half_of_all(dtype: torch.dtype, scale: float, device: torch.device) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    out = unwritten(len(x), device=device)
    assert quantise_triton(x.to(device), scale, out=out) is out
    assert torch.equal(codes(out), codes(quantise_reference(x, scale)))


@pytest.mark.parametrize(
    "shape",
    [
        (1024,),  # exactly one program
        (5, 7, 41),  # odd: the last program is nearly empty, no vector is full at the end
        (1,),
        (0, 3),
    ],
    ids=str,
)
def test_any_shape(shape: tuple[int, ...], device: torch.device) -> None:
    x = random(0, *shape)
    out = unwritten(*shape, device=device)
    quantise_triton(x.to(device), 2.0**-7, out=out)
    assert torch.equal(codes(out), codes(quantise_reference(x, 2.0**-7)))


def test_channels_last_stays(device: torch.device) -> None:
    x = random(0, 2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    result = quantise_triton(x.to(device), 0.01)
    assert result.stride() == x.stride()
    assert torch.equal(codes(result), codes(quantise_reference(x, 0.01)))


def test_a_large_block_gives_the_same(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random(0, 9000).half().to(device)
    small = quantise_triton(x, 0.01)
    monkeypatch.setattr(elementwise, "_BUSY", 1)
    assert torch.equal(codes(quantise_triton(x, 0.01)), codes(small))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "width"), [(5, 320), (3, 96), (2, 41)])  # parts that divide the width; one; odd
@pytest.mark.parametrize("shifted", [False, True])
def test_layer_norm_quantises_what_it_would_store(
    rows: int, width: int, dtype: torch.dtype, shifted: bool, device: torch.device
) -> None:
    x = (random(0, rows, width) * 3 + 1).to(device, dtype)
    weight, bias = random(1, width).to(device, dtype), random(2, width).to(device, dtype)
    shift = random(3, width).to(device, dtype) if shifted else None
    apart = quantise_triton(layer_norm_triton(x, weight, bias, shift=shift), 2.0**-6)
    out = unwritten(rows, width, device=device)
    assert layer_norm_triton(x, weight, bias, shift=shift, scale=2.0**-6, out=out) is out
    assert torch.equal(codes(out), codes(apart))
    assert (codes(out) != 0x7F).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "width"), [(17, 384), (3, 2048), (5, 41)])  # as in the tests of GEGLU
def test_geglu_quantises_what_it_would_store(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    x = (random(0, rows, 2 * width) * 3).to(device, dtype)
    apart = quantise_triton(geglu_triton(x), 2.0**-4)
    out = unwritten(rows, width, device=device)
    assert geglu_triton(x, scale=2.0**-4, out=out) is out
    assert torch.equal(codes(out), codes(apart))
    assert (codes(out) != 0x7F).all()


def test_what_is_refused(device: torch.device) -> None:
    x = random(0, 4, 6).half().to(device)
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        quantise_triton(x[:, ::2], 1.0)
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        quantise_triton(x.double(), 1.0)
    with pytest.raises(ValueError, match=r"^out is \[6, 4\]"):
        quantise_triton(x, 1.0, out=unwritten(6, 4, device=device))
    with pytest.raises(ValueError, match=r"^out is torch\.float16"):
        quantise_triton(x, 1.0, out=x)
    with pytest.raises(ValueError, match=r"^out must be laid out as x"):
        quantise_triton(x, 1.0, out=unwritten(6, 4, device=device).t())
    with pytest.raises(ValueError, match=r"^out is torch\.float16"):
        layer_norm_triton(x, x[0], x[0], scale=1.0, out=x)
    with pytest.raises(ValueError, match=r"^out is torch\.float16"):
        geglu_triton(x, scale=1.0, out=x[:, :3].contiguous())


def test_a_cpu_tensor_takes_the_reference() -> None:
    x = random(0, 6, 10).half()
    out = unwritten(6, 10, device=x.device)
    assert quantise(x, 0.1, out=out) is out
    assert torch.equal(codes(out), codes(quantise_reference(x, 0.1)))
    assert torch.equal(codes(geglu(x, scale=0.1)), codes(quantise(geglu_reference(x), 0.1)))
    norm = layer_norm(x, x[0], x[1], scale=0.1)
    assert torch.equal(codes(norm), codes(quantise(layer_norm_reference(x, x[0], x[1]), 0.1)))


def test_channels_of_a_weight_reach_the_end_and_no_further() -> None:
    weight = random(0, 48, 64) * torch.logspace(-6, 3, 48)[:, None]
    weight[7] = 0.0
    result, scales = quantise_channels(weight.half())
    wide = result.float()
    assert wide.abs().amax(1).tolist() == [0.0 if row == 7 else LARGEST for row in range(48)]
    halves = weight.half().float()
    close = (wide * scales[:, None] - halves).abs() <= 2.0**-4 * halves.abs() + 2.0**-10 * scales[:, None]
    assert close.all()


class Product:
    """Arguments of a product, and what it is in float64."""

    def __init__(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self.codes = quantise_reference(random(0, tokens, 96), 2.0**-6).to(device)
        weight, scales = quantise_channels(random(1, 32, 96) * 0.1)
        self.weight, self.scales = weight.to(device), (scales * 2.0**-6).to(device)
        self.bias, self.dtype = random(2, 32).to(device, dtype), dtype
        wide = (each.cpu().double() for each in (self.codes, self.weight, self.scales, self.bias))
        x, w, s, b = wide
        self.exact = (x @ w.t()) * s + b

    def run(self, bias: bool = True) -> Tensor:
        return scaled_linear(self.codes, self.weight, self.scales, self.bias if bias else None, self.dtype)

    def check(self, result: Tensor, relative: float) -> None:
        """Within a rounding of the result, or of the terms that nearly cancel in it."""
        assert result.dtype == self.dtype
        atol = relative * float(self.exact.abs().max())
        torch.testing.assert_close(result.cpu().double(), self.exact, rtol=relative, atol=atol)


def test_the_product_is_of_codes_and_scales() -> None:
    given = Product(7, torch.device("cpu"), torch.float32)
    given.check(given.run(), 1e-5)
    without = scaled_linear_reference(
        given.codes, given.weight, given.scales, None, torch.float64, compute=torch.float64
    )
    torch.testing.assert_close(without + given.bias.double(), given.exact)


def test_torch_takes_the_arguments_as_they_are_given() -> None:
    """Its product on a CPU, where there is one, has the GPU's signature."""
    given = Product(7, torch.device("cpu"), torch.bfloat16)
    ones = fp8._ones(7, torch.device("cpu"))
    try:
        result = torch._scaled_mm(
            given.codes, given.weight.t(), ones, given.scales[None], given.bias, out_dtype=given.dtype
        )
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot on this CPU: {error}")
    given.check(result, 2.0**-7)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    problem = cannot_multiply(torch.device("cuda"), torch.float16)
    assert problem == "needs a GPU of compute capability 8.9 or later, this one has 8.6"


def test_no_form_is_compiled_for_gpus_without_e4m3() -> None:
    variants = fp8.variants()
    assert all(aot.fitting(variant, aot.ARCHITECTURES) == [89, 90, 100, 120] for variant in variants)
    plain = elementwise.flat_variants("plain", fp8._quantise_kernel)[0]
    assert aot.fitting(plain, aot.ARCHITECTURES) == list(aot.ARCHITECTURES)


def can_multiply() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= fp8.LOWEST_CAPABILITY


@pytest.mark.skipif(not can_multiply(), reason="a GPU of compute capability 8.9 multiplies e4m3")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", [1, 7, 64, 300])  # any number: a tile of the product is not full
def test_a_gpu_multiplies(dtype: torch.dtype, tokens: int) -> None:
    device = torch.device("cuda")
    assert has_unit(torch.empty(1, device=device))
    assert cannot_multiply(device, dtype) == ""
    given = Product(tokens, device, dtype)
    relative = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    given.check(given.run(), relative)
    given.check(given.run(bias=False) + given.bias, 2 * relative)


@pytest.mark.skipif(not can_multiply(), reason="a GPU of compute capability 8.9 multiplies e4m3")
def test_a_recorded_product_reads_what_is_there_then() -> None:
    given = Product(48, torch.device("cuda"), torch.float16)
    given.run()  # before it is recorded: scales of rows are made, libraries choose their kernels
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = given.run()
    codes = given.codes.view(torch.uint8)
    codes.copy_(codes.flip(0))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(result.cpu().double(), given.exact.flip(0), rtol=2.0**-10, atol=1e-3)
