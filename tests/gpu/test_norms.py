"""Group and layer normalisation as kernels, against float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import cast_error
from torch import Tensor
from torch.nn import functional

from steploom_kernels import group_norm_plans as plans
from steploom_kernels.group_norm import group_norm, group_norm_reference, group_norm_triton, new_counters
from steploom_kernels.group_norm_plans import Form, Picture, default_plan
from steploom_kernels.layer_norm import (
    MAX_WIDTH,
    add_layer_norm,
    add_layer_norm_reference,
    add_layer_norm_triton,
    layer_norm,
    layer_norm_reference,
    layer_norm_triton,
)

# Relative and absolute: one rounding of the result, and what the arithmetic in float32 may be off.
TOLERANCES = {torch.float16: (2.0**-11, 5e-6), torch.bfloat16: (2.0**-8, 5e-6), torch.float32: (2e-6, 5e-6)}
DTYPES = list(TOLERANCES)

# n, channels, h, w, groups: one launch
WHOLE = [
    (2, 64, 8, 8, 16),  # the embedded model; four channels a group, all groups in one program
    (1, 96, 8, 8, 16),  # six channels a group: a piece of eight is of three, and lanes are left over
    (2, 60, 5, 7, 3),  # odd sides: pixels are not a power of two; three groups in four padded ones
    (1, 30, 3, 3, 6),  # few channels, fewer than a cache line; the last piece of eight is not full
    (3, 20, 1, 1, 1),  # one pixel, one group: layer normalisation
    (1, 160, 16, 16, 16),  # several steps of pixels, and groups that a run does not divide
]
# the same, two launches
SPLIT = [
    (2, 160, 13, 11, 2),  # wide groups: a run is one; the last tile of pixels is not full
    (1, 80, 24, 30, 8),  # ten channels a group; five tiles and a part of one in eight padded ones
    (1, 64, 32, 32, 16),  # the embedded model; all tiles are full
    (2, 90, 23, 29, 3),  # odd sides, thirty channels a group, masked channels in the only run
]
SHAPES = [*WHOLE, *SPLIT]
WIDTHS = [
    (9, 96),  # the embedded model: three parts of 32
    (5, 320),  # five parts of 64
    (2, 1280),  # a row of a part fills a warp
    (3, 100),  # one part, and lanes left over
    (1, 1),
    (2, 5000),  # as many parts as are held, wider than a warp, the last one not full
]


# n, channels, channels beside, h, w, groups
BESIDE = [
    (2, 24, 36, 5, 7, 3),  # one launch; twenty channels a group: the border is within the second
    (1, 640, 320, 2, 2, 32),  # Stable Diffusion's most uneven pair, thirty channels a group
    (1, 8, 72, 24, 30, 8),  # two launches; ten channels a group, the border in the first block of 64
    (1, 64, 1, 32, 30, 5),  # the same; one channel beside, lanes left over
]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pictures:
    """Inputs of a group normalisation, with a mean that differs by channel and is far from zero."""

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        n, channels, height, width, self.groups = shape
        x = random(0, n, channels, height, width) + 2.0 * random(1, 1, channels, 1, 1) + 3.0
        self.x = x.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = random(2, channels).to(device, dtype), random(3, channels).to(device, dtype)
        self.shift = random(4, n, channels).to(device, dtype)

    def run(
        self, x: Tensor | None = None, *, silu: bool = False, shifted: bool = False, out: Tensor | None = None
    ) -> Tensor:
        shift = self.shift if shifted else None
        x = self.x if x is None else x
        return group_norm_triton(x, self.weight, self.bias, self.groups, silu=silu, shift=shift, out=out)

    def exact(self, *, silu: bool = False, shifted: bool = False) -> Tensor:
        shift = self.shift if shifted else None
        x, weight, bias = self.x.double(), self.weight.double(), self.bias.double()
        return group_norm_reference(x, weight, bias, self.groups, silu=silu, shift=shift)


def assert_close(result: Tensor, exact: Tensor) -> None:
    relative, absolute = TOLERANCES[result.dtype]
    relative = max(relative, cast_error(result.dtype, result.device))
    torch.testing.assert_close(result.double(), exact, rtol=relative, atol=absolute)


def test_references_are_torchs() -> None:
    x, weight, bias = random(0, 2, 12, 3, 5).double(), random(1, 12).double(), random(2, 12).double()
    shift = random(3, 2, 12).double()
    torch.testing.assert_close(
        group_norm_reference(x, weight, bias, 4, eps=1e-3), functional.group_norm(x, 4, weight, bias, 1e-3)
    )
    torch.testing.assert_close(
        group_norm_reference(x, weight, bias, 4, silu=True, shift=shift),
        functional.silu(functional.group_norm(x + shift[:, :, None, None], 4, weight, bias)),
    )
    tokens = x.flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        group_norm_reference(tokens, weight, bias, 4),
        functional.group_norm(x, 4, weight, bias).flatten(2).transpose(1, 2),
    )
    torch.testing.assert_close(
        layer_norm_reference(tokens, weight, bias, eps=1e-3), functional.layer_norm(tokens, (12,), weight, bias, 1e-3)
    )
    torch.testing.assert_close(
        layer_norm_reference(tokens, weight, bias, shift=shift[0]),
        functional.layer_norm(tokens + shift[0], (12,), weight, bias),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms(shape: tuple[int, int, int, int, int]) -> None:
    _, channels, height, width, groups = shape
    plan = default_plan(Picture(height * width, channels, groups))
    assert (plan.form(height * width, may_wait=True) is Form.WHOLE) == (shape in WHOLE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_group_norm(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    pictures = Pictures(shape, dtype, device)
    out = torch.full_like(pictures.x, torch.nan)
    assert pictures.run(out=out) is out
    assert_close(out, pictures.exact())


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_shift_and_silu(shape: tuple[int, int, int, int, int], silu: bool, device: torch.device) -> None:
    pictures = Pictures(shape, torch.float16, device)
    assert_close(pictures.run(silu=silu, shifted=True), pictures.exact(silu=silu, shifted=True))
    assert_close(pictures.run(silu=silu), pictures.exact(silu=silu))


@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_tokens_are_pixels(shape: tuple[int, int, int, int, int], device: torch.device) -> None:
    pictures = Pictures(shape, torch.float16, device)
    tokens = pictures.x.permute(0, 2, 3, 1).flatten(1, 2)
    assert tokens.is_contiguous()
    result = pictures.run(tokens)
    torch.testing.assert_close(result, pictures.run().permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [WHOLE[0], SPLIT[0]], ids=str)
def test_a_picture_is_the_same_in_any_batch_and_in_place(
    shape: tuple[int, int, int, int, int], device: torch.device
) -> None:
    pictures = Pictures(shape, torch.float16, device)
    together = pictures.run(silu=True)
    alone = pictures.run(pictures.x[1:].contiguous(memory_format=torch.channels_last), silu=True)
    assert torch.equal(alone[0], together[1])
    assert pictures.run(silu=True, out=pictures.x) is pictures.x
    assert torch.equal(pictures.x, together)


@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_a_mean_far_from_zero(shape: tuple[int, int, int, int, int], device: torch.device) -> None:
    """A sum of squares would have lost every digit of the variance: 1 beside 4096 squared is 24 bits down."""
    pictures = Pictures(shape, torch.float32, device)
    pictures.x += 4096.0
    # the values themselves are known to 2**-12 only, so the exact result is that of the rounded values
    torch.testing.assert_close(pictures.run().double(), pictures.exact(), rtol=0, atol=3e-3)


@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_a_shift_far_from_zero(shape: tuple[int, int, int, int, int], device: torch.device) -> None:
    pictures = Pictures(shape, torch.float32, device)
    pictures.shift += 4096.0
    torch.testing.assert_close(pictures.run(shifted=True).double(), pictures.exact(shifted=True), rtol=0, atol=3e-3)


@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_a_first_pixel_out_of_line(shape: tuple[int, int, int, int, int], device: torch.device) -> None:
    """What deviations are summed from."""
    pictures = Pictures(shape, torch.float32, device)
    pictures.x[:, :, 0, 0] = 1e4
    torch.testing.assert_close(pictures.run().double(), pictures.exact(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_what_is_not_a_number_stays_in_its_group(shape: tuple[int, int, int, int, int], device: torch.device) -> None:
    pictures = Pictures(shape, torch.float16, device)
    clean = pictures.run()
    pictures.x[1, -1, 2, 3] = torch.nan
    result = pictures.run()
    a_group = pictures.x.shape[1] // pictures.groups
    assert result[1, -a_group:].isnan().all()
    assert torch.equal(result[0], clean[0])
    assert torch.equal(result[1, :-a_group], clean[1, :-a_group])


def test_a_constant_picture_is_the_bias(device: torch.device) -> None:
    pictures = Pictures(SPLIT[0], torch.float16, device)
    pictures.x.fill_(7.0)
    torch.testing.assert_close(pictures.run()[0, :, 3, 4], pictures.bias, rtol=0, atol=0)


def test_more_pixels_than_chunks_are_kept(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large picture a program of the first launch takes several tiles, of the second one."""
    monkeypatch.setattr(plans, "MAX_CHUNKS", 2)
    pictures = Pictures((1, 80, 24, 30, 8), torch.float16, device)
    plan = default_plan(Picture(24 * 30, 80, 8))
    assert (plan.programs(24 * 30), plan.tiles(24 * 30)) == (12, 8)
    assert_close(pictures.run(silu=True, shifted=True), pictures.exact(silu=True, shifted=True))


@pytest.mark.parametrize("shape", [(1, 40, 9, 8, 4), (2, 48, 11, 7, 3)], ids=str)
def test_every_plan_is_right(shape: tuple[int, int, int, int, int], device: torch.device) -> None:
    pictures = Pictures(shape, torch.float16, device)
    _, channels, height, width, groups = shape
    picture, exact = Picture(height * width, channels, groups), pictures.exact(silu=True, shifted=True)
    small = [plan._replace(pixels=8) for plan in plans.candidate_plans(picture)[:1]]
    for plan in {*plans.candidate_plans(picture), *small}:
        result = group_norm_triton(
            pictures.x, pictures.weight, pictures.bias, groups, silu=True, shift=pictures.shift, plan=plan
        )
        assert_close(result, exact)


def test_what_group_norm_refuses(device: torch.device) -> None:
    pictures = Pictures(WHOLE[0], torch.float16, device)
    x, weight, bias, shift = pictures.x, pictures.weight, pictures.bias, pictures.shift
    with pytest.raises(ValueError, match=r"^x must be channels last"):
        group_norm_triton(x.contiguous(), weight, bias, 16)
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        group_norm_triton(x.flatten(2), weight, bias, 16)
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        group_norm_triton(x.double(), weight, bias, 16)
    with pytest.raises(ValueError, match=r"^groups is 5"):
        group_norm_triton(x, weight, bias, 5)
    with pytest.raises(ValueError, match=r"^groups is 0"):
        group_norm_triton(x, weight, bias, 0)
    with pytest.raises(ValueError, match=r"^weight is \[63\]"):
        group_norm_triton(x, weight[1:], bias, 16)
    with pytest.raises(ValueError, match=r"^bias must be contiguous"):
        group_norm_triton(x, weight, bias.repeat(2)[::2], 16)
    with pytest.raises(ValueError, match=r"^shift is \[1, 64\]"):
        group_norm_triton(x, weight, bias, 16, shift=shift[:1])
    with pytest.raises(ValueError, match=r"^shift is torch\.float64"):
        group_norm_triton(x, weight, bias, 16, shift=shift.double())
    with pytest.raises(ValueError, match=r"^shift must hold a row's values side by side"):
        group_norm_triton(x, weight, bias, 16, shift=shift.repeat(1, 2)[:, ::2])
    with pytest.raises(ValueError, match=r"^out must be laid out as x"):
        group_norm_triton(x, weight, bias, 16, out=x.contiguous())
    with pytest.raises(ValueError, match=r"^counters is \[511, 8\], must be \[512, 8\]"):
        group_norm_triton(x, weight, bias, 16, counters=new_counters(device)[1:])
    with pytest.raises(ValueError, match=r"^counters is torch\.float32"):
        group_norm_triton(x, weight, bias, 16, counters=new_counters(device).float())


@pytest.mark.parametrize("shape", [WHOLE[2], SPLIT[0]], ids=str)
def test_rows_of_the_shift_may_be_apart_or_the_same(
    shape: tuple[int, int, int, int, int], device: torch.device
) -> None:
    pictures = Pictures(shape, torch.float16, device)
    plain, (n, channels) = pictures.run(shifted=True), pictures.shift.shape
    wide = torch.full((n, 3 * channels + 5), torch.nan, dtype=torch.float16, device=device)
    wide[:, 11 : 11 + channels] = pictures.shift
    pictures.shift = wide[:, 11 : 11 + channels]
    assert torch.equal(pictures.run(shifted=True), plain)
    pictures.shift = pictures.shift[0].contiguous().expand(n, channels)
    assert pictures.shift.stride(0) == 0
    assert_close(pictures.run(shifted=True), pictures.exact(shifted=True))


@pytest.mark.parametrize(
    ("dtype", "shifted"), [(torch.float16, False), (torch.float16, True), (torch.bfloat16, True), (torch.float32, True)]
)
@pytest.mark.parametrize("shape", BESIDE, ids=str)
def test_side_by_side_is_the_concatenation(
    shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, shifted: bool, device: torch.device
) -> None:
    n, left, right, height, width, groups = shape
    pictures = Pictures((n, left + right, height, width, groups), dtype, device)
    joined = pictures.run(silu=True, shifted=shifted)
    x, beside = (part.contiguous(memory_format=torch.channels_last) for part in pictures.x.tensor_split([left], 1))
    shift = pictures.shift if shifted else None
    out = torch.full_like(pictures.x, torch.nan)
    arguments = x, pictures.weight, pictures.bias, groups
    assert group_norm_triton(*arguments, silu=True, shift=shift, beside=beside, out=out) is out
    assert_close(out, pictures.exact(silu=True, shifted=shifted))
    if device.type == "cpu":  # a GPU's threads may hold other values where 16 bytes are read of one and less of two
        assert torch.equal(out, joined)
    fresh = group_norm_triton(*arguments, silu=True, shift=shift, beside=beside)
    assert torch.equal(fresh, out)
    assert fresh.stride() == joined.stride()


def test_tokens_side_by_side(device: torch.device) -> None:
    pictures = Pictures((2, 24, 5, 7, 2), torch.float16, device)
    tokens = pictures.x.permute(0, 2, 3, 1).flatten(1, 2)
    x, beside = (part.contiguous() for part in tokens.tensor_split([16], 2))
    result = group_norm_triton(x, pictures.weight, pictures.bias, 2, beside=beside)
    assert_close(result, pictures.exact().permute(0, 2, 3, 1).flatten(1, 2))


def test_both_forms_are_there_side_by_side() -> None:
    sizes = [(h * w, Picture(h * w, left + right, groups, left)) for _, left, right, h, w, groups in BESIDE]
    forms = [default_plan(picture).form(pixels, may_wait=False) for pixels, picture in sizes]
    assert forms == [Form.WHOLE, Form.WHOLE, Form.SPLIT, Form.SPLIT]


def test_what_group_norm_side_by_side_refuses(device: torch.device) -> None:
    pictures = Pictures((2, 24, 5, 7, 3), torch.float16, device)
    weight, bias = pictures.weight, pictures.bias
    x, beside = (part.contiguous(memory_format=torch.channels_last) for part in pictures.x.tensor_split([16], 1))
    with pytest.raises(ValueError, match=r"^beside must be channels last"):
        group_norm_triton(x, weight, bias, 3, beside=beside.contiguous())
    with pytest.raises(ValueError, match=r"^beside is \[1, 8, 5, 7\], must be \[2, any, 5, 7\]"):
        group_norm_triton(x, weight, bias, 3, beside=beside[:1])
    with pytest.raises(ValueError, match=r"^beside is torch\.float32"):
        group_norm_triton(x, weight, bias, 3, beside=beside.float())
    odd = x[:, :12].contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"^x has 12 channels, must be a multiple of 8"):
        group_norm_triton(odd, weight, bias, 3, beside=odd)
    with pytest.raises(ValueError, match=r"^groups is 16"):  # cuts x, and not both
        group_norm_triton(x, weight, bias, 16, beside=beside)
    with pytest.raises(ValueError, match=r"^weight is \[16\]"):
        group_norm_triton(x, weight[:16], bias, 3, beside=beside)
    with pytest.raises(ValueError, match=r"^shift is \[2, 16\]"):
        group_norm_triton(x, weight, bias, 3, beside=beside, shift=pictures.shift[:, :16])
    with pytest.raises(ValueError, match=r"^out is \[2, 16, 5, 7\]"):
        group_norm_triton(x, weight, bias, 3, beside=beside, out=x)
    with pytest.raises(ValueError, match=r"^out is torch\.float32"):
        group_norm_triton(x, weight, bias, 3, beside=beside, out=pictures.x.float())
    with pytest.raises(ValueError, match=r"^out must be channels last"):
        group_norm_triton(x, weight, bias, 3, beside=beside, out=pictures.x.contiguous())


def test_no_pictures(device: torch.device) -> None:
    pictures = Pictures(WHOLE[0], torch.float16, device)
    assert pictures.run(pictures.x[:0]).shape == (0, 64, 8, 8)
    assert layer_norm_triton(torch.empty(0, 8, device=device), *torch.ones(2, 8, device=device)).shape == (0, 8)


def test_group_norm_of_a_cpu_tensor() -> None:
    pictures = Pictures(WHOLE[0], torch.bfloat16, torch.device("cpu"))
    arguments = pictures.x, pictures.weight, pictures.bias, 16
    out = torch.full_like(pictures.x, torch.nan)
    assert group_norm(*arguments, eps=1e-3, silu=True, shift=pictures.shift, out=out) is out
    assert torch.equal(out, group_norm_reference(*arguments, eps=1e-3, silu=True, shift=pictures.shift))
    assert torch.equal(group_norm(*arguments), group_norm_reference(*arguments))
    halves = pictures.x.tensor_split([32], 1)
    beside = group_norm(halves[0], pictures.weight, pictures.bias, 16, beside=halves[1])
    assert torch.equal(beside, group_norm_reference(*arguments))


class Rows:
    """Inputs of a layer normalisation; each row has a mean of its own, far from zero."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.x = (random(0, rows, width) + 5.0 * random(1, rows, 1) + 3.0).to(device, dtype)
        self.residual = (2.0 * random(2, rows, width)).to(device, dtype)
        self.weight, self.bias = random(3, width).to(device, dtype), random(4, width).to(device, dtype)
        self.shift = (3.0 * random(5, width)).to(device, dtype)

    def exact(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return layer_norm_reference(x.double(), self.weight.double(), self.bias.double(), shift=shift)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), WIDTHS)
def test_layer_norm(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    given = Rows(rows, width, dtype, device)
    out = torch.full_like(given.x, torch.nan)
    assert layer_norm_triton(given.x, given.weight, given.bias, out=out) is out
    assert_close(out, given.exact(given.x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), WIDTHS)
def test_layer_norm_shift(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """The sum is not rounded: in half precision that would be off by more than the tolerance."""
    given = Rows(rows, width, dtype, device)
    out = torch.full_like(given.x, torch.nan)
    assert layer_norm_triton(given.x, given.weight, given.bias, shift=given.shift, out=out) is out
    assert_close(out, given.exact(given.x, given.shift))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), WIDTHS)
def test_add_layer_norm(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    given = Rows(rows, width, dtype, device)
    out = torch.full_like(given.x, torch.nan), torch.full_like(given.x, torch.nan)
    total, normed = add_layer_norm_triton(given.x, given.residual, given.weight, given.bias, out=out)
    assert (total is out[0], normed is out[1]) == (True, True)
    rounding = cast_error(dtype, device)
    torch.testing.assert_close(total, given.x + given.residual, rtol=rounding, atol=0)
    assert_close(normed, given.exact(total))


def test_layer_norm_in_place_over_any_axes(device: torch.device) -> None:
    given = Rows(12, 40, torch.float16, device)
    apart = layer_norm_triton(given.x, given.weight, given.bias)
    x = given.x.clone().view(3, 4, 40)
    assert layer_norm_triton(x, given.weight, given.bias, out=x) is x
    assert torch.equal(x.view(12, 40), apart)
    residual = given.residual.clone()
    expected = add_layer_norm_triton(given.x, residual, given.weight, given.bias)
    total, normed = add_layer_norm_triton(
        given.x, residual, given.weight, given.bias, out=(residual, torch.empty_like(residual))
    )
    assert torch.equal(total, expected[0])
    assert torch.equal(normed, expected[1])


def test_a_row_is_the_same_in_any_batch(device: torch.device) -> None:
    given = Rows(37, 320, torch.float16, device)
    together = layer_norm_triton(given.x, given.weight, given.bias)
    alone = layer_norm_triton(given.x[36:], given.weight, given.bias)
    assert torch.equal(alone, together[36:])


def test_a_row_with_a_mean_far_from_zero(device: torch.device) -> None:
    given = Rows(3, 320, torch.float32, device)
    given.x += 4096.0
    result = layer_norm_triton(given.x, given.weight, given.bias)
    torch.testing.assert_close(result.double(), given.exact(given.x), rtol=0, atol=3e-3)


def test_eps_is_added(device: torch.device) -> None:
    """To the variance: that of +1 and -1 is 1, and of 3 more a half is left."""
    x = torch.tensor([[1.0, -1.0] * 8], device=device)
    one, zero = torch.ones(16, device=device), torch.zeros(16, device=device)
    torch.testing.assert_close(layer_norm_triton(x, one, zero, eps=3.0), x / 2)
    picture = x.view(1, 16, 1, 1).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(group_norm_triton(picture, one, zero, 1, eps=3.0), picture / 2)
    large = picture.expand(1, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    assert default_plan(Picture(1024, 16, 1)).form(1024, may_wait=False) is Form.SPLIT
    torch.testing.assert_close(group_norm_triton(large, one, zero, 1, eps=3.0), large / 2)


def test_what_layer_norm_refuses(device: torch.device) -> None:
    given = Rows(4, 6, torch.float16, device)
    x, weight, bias = given.x, given.weight, given.bias
    with pytest.raises(ValueError, match=r"^x must be contiguous"):
        layer_norm_triton(x[:, ::2], weight[:3], bias[:3])
    with pytest.raises(ValueError, match=r"^x is torch\.float64"):
        layer_norm_triton(x.double(), weight, bias)
    with pytest.raises(ValueError, match=f"must be 1 to {MAX_WIDTH}"):
        layer_norm_triton(x.new_empty(1, MAX_WIDTH + 1), weight, bias)
    with pytest.raises(ValueError, match=r"^weight is \[5\]"):
        layer_norm_triton(x, weight[1:], bias)
    with pytest.raises(ValueError, match=r"^bias is \[5\]"):
        layer_norm_triton(x, weight, bias[1:])
    with pytest.raises(ValueError, match=r"^shift is \[5\]"):
        layer_norm_triton(x, weight, bias, shift=bias[1:])
    with pytest.raises(ValueError, match=r"^shift must be contiguous"):
        layer_norm_triton(x, weight, bias, shift=bias.repeat(2)[::2])
    with pytest.raises(ValueError, match=r"^residual is \[3, 6\]"):
        add_layer_norm_triton(x, x[1:], weight, bias)
    with pytest.raises(ValueError, match=r"^out's sum is torch\.float32"):
        add_layer_norm_triton(x, x, weight, bias, out=(x.float(), x))
    with pytest.raises(ValueError, match=r"^out's norm must be laid out as x"):
        add_layer_norm_triton(x, x, weight, bias, out=(x, x.new_empty(6, 4).t()))


def test_layer_norm_of_a_cpu_tensor() -> None:
    given = Rows(3, 10, torch.bfloat16, torch.device("cpu"))
    out = torch.full_like(given.x, torch.nan)
    assert layer_norm(given.x, given.weight, given.bias, eps=1e-3, out=out) is out
    assert torch.equal(out, layer_norm_reference(given.x, given.weight, given.bias, eps=1e-3))
    layer_norm(given.x, given.weight, given.bias, shift=given.shift, out=out)
    assert torch.equal(out, layer_norm_reference(given.x, given.weight, given.bias, shift=given.shift))
    both = torch.full_like(given.x, torch.nan), torch.full_like(given.x, torch.nan)
    arguments = given.x, given.residual, given.weight, given.bias
    total, normed = add_layer_norm(*arguments, out=both)
    assert (total is both[0], normed is both[1]) == (True, True)
    for result, expected in zip(both, add_layer_norm_reference(*arguments), strict=True):
        assert torch.equal(result, expected)
    assert torch.equal(total, given.x + given.residual)
    assert torch.equal(add_layer_norm(*arguments)[1], normed)
