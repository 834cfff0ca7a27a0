"""GELU, SiLU and GEGLU as kernels, against float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor
from torch.nn import functional

from steploom_kernels import elementwise
from steploom_kernels.geglu import geglu, geglu_reference, geglu_triton
from steploom_kernels.gelu import gelu, gelu_reference, gelu_triton
from steploom_kernels.silu import silu, silu_reference, silu_triton

Operation = Callable[..., Tensor]
# Relative and absolute: one rounding of the result, and what the arithmetic in float32 may be off.
TOLERANCES = {torch.float16: (2.0**-11, 1e-6), torch.bfloat16: (2.0**-8, 1e-6), torch.float32: (1e-6, 4e-7)}
DTYPES = list(TOLERANCES)
SHAPES = [
    (1024,),  # exactly one program
    (5, 7, 41),  # odd: the last program is nearly empty, no vector is full at the end
    (1,),
]
PAIRS: dict[str, tuple[Operation, Operation, Operation]] = {
    "gelu": (gelu, gelu_triton, gelu_reference),
    "gelu_tanh": (partial(gelu, tanh=True), partial(gelu_triton, tanh=True), partial(gelu_reference, tanh=True)),
    "silu": (silu, silu_triton, silu_reference),
}


def random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 3.0) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(device, dtype)


def assert_close(result: Tensor, exact: Tensor, factor: float = 1.0) -> None:
    """The factor is what a GELU or SiLU was multiplied by, at most."""
    relative, absolute = TOLERANCES[result.dtype]
    relative = max(relative, cast_error(result.dtype, result.device))
    torch.testing.assert_close(result.double(), exact, rtol=relative, atol=absolute * factor)


def test_references_are_torchs() -> None:
    x = random((3, 64), torch.float64, torch.device("cpu"))
    torch.testing.assert_close(gelu_reference(x), functional.gelu(x))
    torch.testing.assert_close(gelu_reference(x, tanh=True), functional.gelu(x, approximate="tanh"))
    torch.testing.assert_close(silu_reference(x), functional.silu(x))
    hidden, gate = x.chunk(2, -1)  # as diffusers' GEGLU has it
    torch.testing.assert_close(geglu_reference(x), hidden * functional.gelu(gate))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elementwise(name: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    _, run, reference = PAIRS[name]
    x = random(shape, dtype, device)
    out = torch.full_like(x, torch.nan)
    assert run(x, out=out) is out
    assert_close(out, reference(x.double()))


@pytest.mark.parametrize("name", PAIRS)
def test_a_large_block_gives_the_same(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run, _ = PAIRS[name]
    x = random((9000,), torch.float16, device, scale=1.0)
    small = run(x)
    monkeypatch.setattr(elementwise, "_BUSY", 1)
    assert elementwise.flat_plan(9000) == elementwise.BLOCKS[1]
    torch.testing.assert_close(run(x), small, rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_in_place_and_channels_last(name: str, device: torch.device) -> None:
    _, run, reference = PAIRS[name]
    x = random((2, 3, 5, 7), torch.float16, device).contiguous(memory_format=torch.channels_last)
    exact = reference(x.double())
    assert run(x, out=x) is x
    assert_close(x, exact)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert run(x).stride() == x.stride()


@pytest.mark.filterwarnings(
    "ignore:overflow"
)  # of the interpreter: exp(-x) is infinite far below zero, as it should be
@pytest.mark.parametrize("name", PAIRS)
def test_far_from_zero(name: str, device: torch.device) -> None:
    _, run, _ = PAIRS[name]
    far = torch.tensor([-65504.0, -1e4, -100.0, 100.0, 1e4, 65504.0, torch.inf, torch.nan], device=device)
    result = run(far)
    assert (result[:3] == 0.0).all()
    assert torch.equal(result[3:7], far[3:7])
    assert result[7].isnan()


def test_gelu_keeps_the_tails_digits(device: torch.device) -> None:
    """Where 1 + erf has none left: relative to the result, not to one."""
    x = torch.linspace(-6.0, -2.0, 401, device=device)
    exact = gelu_reference(x.double())
    assert ((gelu_triton(x).double() - exact) / exact).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "width"),
    [
        (17, 384),  # three tiles a row, the last rows are not a whole tile
        (3, 2048),  # tiles as wide as they get
        (5, 41),  # odd: one column tile, not full
    ],
)
def test_geglu(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    x = random((rows, 2 * width), dtype, device)
    out = torch.full((rows, width), torch.nan, dtype=dtype, device=device)
    assert geglu_triton(x, out=out) is out
    assert_close(out, geglu_reference(x.double()), factor=float(x.abs().max()))


def test_empty_tensors(device: torch.device) -> None:
    assert silu_triton(torch.empty(0, 3, device=device)).shape == (0, 3)
    assert gelu_triton(torch.empty(0, device=device)).shape == (0,)
    assert geglu_triton(torch.empty(0, 6, device=device)).shape == (0, 3)


@pytest.mark.parametrize("run", [gelu_triton, silu_triton])
def test_what_elementwise_kernels_refuse(run: Operation, device: torch.device) -> None:
    x = random((4, 6), torch.float16, device)
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        run(x[:, ::2])
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        run(x.double())
    with pytest.raises(ValueError, match=r"^out is \[6, 4\]"):
        run(x, out=x.new_empty(6, 4))
    with pytest.raises(ValueError, match=r"^out is torch\.float32"):
        run(x, out=x.float())
    with pytest.raises(ValueError, match=r"^out must be laid out as x"):
        run(x, out=x.new_empty(6, 4).t())


def test_what_geglu_refuses(device: torch.device) -> None:
    x = random((4, 6), torch.float16, device)
    with pytest.raises(ValueError, match=r"^x has 5 columns"):
        geglu_triton(x.new_empty(4, 5))
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        geglu_triton(x.new_empty(6, 4).t())
    with pytest.raises(ValueError, match=r"^x is \[1, 4, 6\]"):
        geglu_triton(x[None])
    with pytest.raises(ValueError, match=r"^out is \[4, 6\]"):
        geglu_triton(x, out=torch.empty_like(x))


@pytest.mark.parametrize("name", PAIRS)
def test_a_cpu_tensor_takes_the_reference(name: str) -> None:
    run, _, reference = PAIRS[name]
    x = random((3, 5), torch.bfloat16, torch.device("cpu"))
    out = torch.full_like(x, torch.nan)
    assert run(x, out=out) is out
    assert torch.equal(out, reference(x))
    assert torch.equal(run(x), out)


def test_geglu_of_a_cpu_tensor() -> None:
    x = random((3, 10), torch.bfloat16, torch.device("cpu"))
    out = torch.full((3, 5), torch.nan, dtype=x.dtype)
    assert geglu(x, out=out) is out
    assert torch.equal(out, geglu_reference(x))
    assert torch.equal(geglu(x), out)
