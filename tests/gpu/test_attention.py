"""Attention as a kernel, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from steploom_kernels import attention as module
from steploom_kernels.attention import (
    Plan,
    attention,
    attention_reference,
    attention_triton,
    candidate_plans,
    power_of_two,
)
from steploom_kernels.jit import jit, tl

# One rounding of a type: the shares of the softmax are rounded to it, and so is the result.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-20}
DTYPES = list(ROUNDING)
POWER_ERROR = 2.0**-13.5  # of the polynomial
# n, queries, keys, heads, width
SHAPES = [
    (2, 70, 77, 2, 40),  # a text; the last block of queries is not full; a head in two parts, the second padded
    (1, 64, 128, 3, 80),  # all blocks full, two of keys
    (1, 33, 150, 1, 160),  # three blocks of keys, the last not full
    (2, 16, 16, 2, 24),  # the embedded model: one part, padded
    (1, 5, 3, 1, 8),  # fewer tokens and a narrower head than the tensor cores take
    (1, 3, 65, 1, 248),  # one key in the second block; one part of 256
]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Heads:
    """Queries, keys and values, apart and contiguous; values have a mean, which shares that miss one would show."""

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        n, queries, keys, heads, width = shape
        self.q = (2.0 * random(0, n, queries, heads, width)).to(device, dtype)
        self.k = random(1, n, keys, heads, width).to(device, dtype)
        self.v = (random(2, n, keys, heads, width) + 1.0).to(device, dtype)

    def run(self, plan: Plan | None = None, scale: float | None = None, out: Tensor | None = None) -> Tensor:
        return attention_triton(self.q, self.k, self.v, scale=scale, out=out, plan=plan)

    def exact(self, scale: float | None = None) -> Tensor:
        return attention_reference(self.q.double(), self.k.double(), self.v.double(), scale=scale)

    def assert_close(self, result: Tensor, scale: float | None = None, polynomial: bool = False) -> None:
        """Each value is off by the rounding of the shares, weighted as they are, and by its own."""
        exact = self.exact(scale)
        weighted = attention_reference(self.q.double(), self.k.double(), self.v.double().abs(), scale=scale)
        bound = (
            ROUNDING[result.dtype] * (weighted + exact.abs())
            + 2e-6
            + (POWER_ERROR * 2 * weighted if polynomial else 0.0)
        )
        assert bool(((result.double() - exact).abs() <= bound).all())


def test_the_reference_is_torchs() -> None:
    heads = Heads((2, 7, 9, 3, 16), torch.float64, torch.device("cpu"))
    q, k, v = (each.transpose(1, 2) for each in (heads.q, heads.k, heads.v))
    plain, scaled = (functional.scaled_dot_product_attention(q, k, v, scale=scale) for scale in (None, 0.3))
    torch.testing.assert_close(heads.exact(), plain.transpose(1, 2))
    torch.testing.assert_close(heads.exact(scale=0.3), scaled.transpose(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 matrices")
    heads = Heads(shape, dtype, device)
    out = torch.full_like(heads.q, torch.nan)
    assert heads.run(out=out) is out
    heads.assert_close(out)


PLANS = [Plan(64, 32, 4, 2, 0), Plan(128, 64, 8, 3, 0), Plan(64, 128, 4, 2, 0), Plan(32, 64, 4, 2, 3)]


@pytest.mark.parametrize("keys", [128, 150])  # whole blocks, and a last one that is not full
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_any_plan_gives_the_same(plan: Plan, ahead: bool, keys: int, device: torch.device) -> None:
    heads = Heads((1, 70, keys, 1, 40), torch.float16, device)
    heads.assert_close(heads.run(plan._replace(ahead=ahead)), polynomial=plan.polynomial > 0)


@pytest.mark.parametrize("keys", [64, 3])
def test_one_block_and_none_to_begin_ahead(keys: int, device: torch.device) -> None:
    heads = Heads((1, 5, keys, 1, 24), torch.float16, device)
    assert torch.equal(heads.run(Plan(64, 64, 4, 2, 0, ahead=True)), heads.run(Plan(64, 64, 4, 2, 0)))


def test_a_scale_of_ones_own(device: torch.device) -> None:
    heads = Heads((1, 9, 20, 1, 16), torch.float16, device)
    heads.assert_close(heads.run(scale=0.7), scale=0.7)


def test_slices_of_one_projection(device: torch.device) -> None:
    heads = Heads((2, 19, 19, 3, 40), torch.float16, device)
    apart = heads.run()
    wide = torch.stack([heads.q, heads.k, heads.v], dim=2).flatten(2)  # [n, tokens, 3 * heads * width]
    sliced = wide.view(2, 19, 3, 3, 40).unbind(2)
    assert sliced[0].stride() == (19 * 360, 360, 40, 1)
    assert torch.equal(attention_triton(*sliced), apart)


def test_strides_that_are_no_pieces_of_16_bytes(device: torch.device) -> None:
    heads = Heads((2, 5, 19, 2, 24), torch.float16, device)
    odd = heads.k.new_full((2, 19, 2, 27), torch.nan)
    odd[..., 1:25] = heads.k
    assert torch.equal(attention_triton(heads.q, odd[..., 1:25], heads.v), heads.run())


def test_heads_before_tokens(device: torch.device) -> None:
    heads = Heads((2, 5, 19, 2, 24), torch.float16, device)
    swapped = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (heads.q, heads.k, heads.v))
    assert torch.equal(attention_triton(*swapped), heads.run())


@pytest.mark.parametrize("polynomial", [0, 2])
def test_a_picture_is_the_same_in_any_batch(polynomial: int, device: torch.device) -> None:
    heads = Heads((3, 20, 70, 2, 40), torch.float16, device)
    plan = Plan(64, 64, 4, 2, polynomial)
    together = heads.run(plan)
    alone = attention_triton(heads.q[2:], heads.k[2:], heads.v[2:], plan=plan)
    assert torch.equal(alone[0], together[2])


@pytest.mark.parametrize("polynomial", [0, 8])
@pytest.mark.parametrize("rising", [False, True])
def test_scores_far_apart(rising: bool, polynomial: int, device: torch.device) -> None:
    """A largest score of 256, in the first block or in the last: most shares vanish, and nothing overflows."""
    heads = Heads((1, 16, 150, 1, 16), torch.float16, device)
    heads.q.fill_(8.0)
    heads.k.copy_(torch.linspace(-8.0, 8.0, 150).view(1, 150, 1, 1).to(device) * (1 if rising else -1))
    heads.assert_close(heads.run(Plan(64, 64, 4, 2, polynomial)), polynomial=polynomial > 0)


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning"
)  # the interpreter's arithmetic is numpy's
def test_what_is_not_a_number_stays_in_its_head_and_query(device: torch.device) -> None:
    heads = Heads((2, 6, 20, 2, 24), torch.float16, device)
    clean = heads.run()
    heads.q[1, 3, 1, 5] = torch.nan
    result = heads.run()
    assert result[1, 3, 1].isnan().all()
    result[1, 3, 1] = clean[1, 3, 1]
    assert torch.equal(result, clean)
    heads.v[0, 19, 0, 7] = torch.nan
    assert heads.run()[0, :, 0, 7].isnan().all()


def test_equal_keys_give_the_mean(device: torch.device) -> None:
    heads = Heads((1, 4, 77, 1, 40), torch.float32, device)
    heads.k.copy_(heads.k[:, :1].clone().expand_as(heads.k))
    torch.testing.assert_close(heads.run(), heads.v.mean(1, keepdim=True).expand(1, 4, 1, 40), rtol=1e-5, atol=1e-6)


@jit
def _power_kernel(x: tl.tensor, out: tl.tensor, block: tl.constexpr) -> None:
    index = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out + index, power_of_two(tl.load(x + index)))


def test_the_polynomial_is_a_power_of_two(device: torch.device) -> None:
    x = torch.cat([torch.linspace(-3.0, 0.0, 4096), torch.linspace(-140.0, 0.0, 4096)]).to(device)
    out = torch.full_like(x, torch.nan)
    _power_kernel[(8,)](x, out, block=1024)
    exact = torch.exp2(x.double().clamp(min=-125.0))
    relative = (out.double() / exact - 1.0).abs()
    assert float(relative.max()) < 2.0**-13.6
    assert float(relative.max()) < 0.5 * 2.0**-11  # less than half precision rounds by
    far = torch.tensor([-math.inf, -1e30] * 512, device=device)
    _power_kernel[(1,)](far, out, block=1024)
    assert float(out[:1024].max()) <= 2.0**-124


@pytest.mark.parametrize("width", range(8, 257, 8))
def test_parts_hold_a_head_and_waste_little(width: int) -> None:
    first, second = module._parts(width)
    assert first + second >= width
    assert first >= 16
    assert second == 0 or second >= 16
    assert all(part & (part - 1) == 0 for part in (first, second))
    assert first + second <= max(16, module._power_of_two(width))
    assert {40: (32, 16), 80: (64, 16), 160: (128, 32)}.get(width, (first, second)) == (first, second)


@pytest.mark.parametrize(("width", "tokens"), [(40, 4096), (80, 1024), (160, 256), (40, 77), (160, 77)])
def test_candidates_are_apart_and_the_usual_plan_is_among_them(width: int, tokens: int) -> None:
    plans = candidate_plans(width, tokens)
    assert len(set(plans)) == len(plans)
    assert module._plan(width, {40: 4096, 80: 1024, 160: 256}[width], tokens) in plans


def test_nothing_to_ask(device: torch.device) -> None:
    heads = Heads((2, 1, 3, 2, 8), torch.float16, device)
    assert attention_triton(heads.q[:, :0], heads.k, heads.v).shape == (2, 0, 2, 8)
    assert attention_triton(heads.q[:0], heads.k[:0], heads.v[:0]).shape == (0, 1, 2, 8)


def test_what_attention_refuses(device: torch.device) -> None:
    heads = Heads((2, 4, 6, 3, 16), torch.float16, device)
    q, k, v = heads.q, heads.k, heads.v
    with pytest.raises(ValueError, match=r"^q is \[4, 3, 16\]"):
        attention_triton(q[0], k[0], v[0])
    with pytest.raises(ValueError, match=r"^q is torch\.float64"):
        attention_triton(q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match=r"^q has heads of 12, must be a multiple of 8"):
        attention_triton(q[..., :12], k[..., :12], v[..., :12])
    with pytest.raises(ValueError, match=r"^q has heads of 264"):
        attention_triton(*q.new_zeros(3, 1, 2, 1, 264))
    with pytest.raises(ValueError, match=r"^k is \[2, 6, 2, 16\]"):
        attention_triton(q, k[:, :, :2], v)
    with pytest.raises(ValueError, match=r"^k has no tokens"):
        attention_triton(q, k[:, :0], v[:, :0])
    with pytest.raises(ValueError, match=r"^v is \[2, 5, 3, 16\]"):
        attention_triton(q, k, v[:, :5])
    with pytest.raises(ValueError, match=r"^v is torch\.float32"):
        attention_triton(q, k, v.float())
    with pytest.raises(ValueError, match=r"^k must hold the values of a head side by side"):
        attention_triton(q, k.repeat(1, 1, 1, 2)[..., ::2], v)
    with pytest.raises(ValueError, match=r"^scale is 0\.0"):
        attention_triton(q, k, v, scale=0.0)
    with pytest.raises(ValueError, match=r"^out must be contiguous"):
        attention_triton(q, k, v, out=q.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(ValueError, match=r"^out is torch\.float32"):
        attention_triton(q, k, v, out=q.float())


def test_attention_of_cpu_tensors() -> None:
    heads = Heads((2, 4, 6, 3, 16), torch.bfloat16, torch.device("cpu"))
    out = torch.full_like(heads.q, torch.nan)
    assert attention(heads.q, heads.k, heads.v, scale=0.5, out=out) is out
    assert torch.equal(out, attention_reference(heads.q, heads.k, heads.v, scale=0.5))
    assert attention(heads.q, heads.k, heads.v).is_contiguous()
