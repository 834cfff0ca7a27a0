"""Adapters' changes by the kernels, against the references in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steploom_kernels import gated_lora as module
from steploom_kernels.gated_lora import (
    gated_lora,
    gated_lora_reference,
    gated_lora_triton,
    gated_up,
    gated_up_reference,
    gated_up_triton,
)

# none, the first adapter, shut though there is an adapter, the second half open, none though the gate is open, negative
ADAPTERS = [-1, 0, 1, 1, -1, 0]
GATES = [0.0, 1.0, 0.0, 0.5, 1.0, -2.0]
TOUCHED = [1, 3, 5]
NUM_ADAPTERS = 2
# the change is rounded once where x A^T is kept, and y once; float32 is computed as such
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-5}
SHAPES = [
    (64, 64, 64, 16),  # one block, nothing left over
    (70, 80, 96, 4),  # odd tokens, and a last block of each width that is not full
    (1, 33, 40, 64),  # a row is one token, as for the timestep; widths that no vector fits
    (20, 16, 200, 24),  # a rank that is no power of two; a width below one block
]


class Layer:
    """A layer's input and result, and its adapters."""

    def __init__(
        self, device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float16
    ) -> None:
        tokens, width, out, rank = shape
        if dtype == torch.bfloat16 and device.type == "cpu":
            pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as whole numbers")

        def random(seed: int, *sizes: int) -> Tensor:
            return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(device, dtype)

        self.y = random(0, len(GATES), tokens, out)
        self.x = random(1, len(GATES), tokens, width)
        self.hidden = random(2, len(GATES), tokens, NUM_ADAPTERS * rank)
        self.down = random(3, NUM_ADAPTERS, rank, width) * width**-0.5
        self.up = random(4, NUM_ADAPTERS, out, rank) * rank**-0.5
        self.gates = torch.tensor(GATES, device=device)
        self.adapters = torch.tensor(ADAPTERS, dtype=torch.int32, device=device)

    def lora(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return y, self.x, self.down, self.up, self.gates, self.adapters

    def second_half(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return y, self.hidden, self.up, self.gates, self.adapters


def assert_changed(layer: Layer, y: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[y.dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    untouched = [row for row in range(len(GATES)) if row not in TOUCHED]
    assert torch.equal(y[untouched].view(torch.uint8), layer.y[untouched].view(torch.uint8))
    assert all((y[row] != layer.y[row]).any() for row in TOUCHED)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_linear_layer_is_changed_as_by_the_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    layer = Layer(device, shape, dtype)
    y, expected = layer.y.clone(), layer.y.double()
    gated_lora_triton(*layer.lora(y))
    gated_lora_reference(*layer.lora(expected), compute=torch.float64)
    assert_changed(layer, y, expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_convolution_is_changed_as_by_the_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    layer = Layer(device, shape, dtype)
    y, expected = layer.y.clone(), layer.y.double()
    gated_up_triton(*layer.second_half(y))
    gated_up_reference(*layer.second_half(expected), compute=torch.float64)
    assert_changed(layer, y, expected)


def test_the_second_half_on_pictures_is_a_convolution(device: torch.device) -> None:
    """The operation goes where a 1 x 1 convolution stood."""
    layer = Layer(device, (12, 16, 24, 8), torch.float32)
    y = layer.y.view(-1, 3, 4, 24).permute(0, 3, 1, 2).clone(memory_format=torch.channels_last)
    hidden = layer.hidden.view(-1, 3, 4, 16).permute(0, 3, 1, 2)
    expected = y[3] + 0.5 * torch.nn.functional.conv2d(hidden[3:4, 8:], layer.up[1][:, :, None, None])[0]
    in_place = y.permute(0, 2, 3, 1).flatten(1, 2)
    assert in_place.data_ptr() == y.data_ptr()
    gated_up_triton(in_place, hidden.permute(0, 2, 3, 1).flatten(1, 2), layer.up, layer.gates, layer.adapters)
    torch.testing.assert_close(y[3], expected, rtol=2e-5, atol=2e-5)


def test_rows_that_overflow_do_not_reach_others(device: torch.device) -> None:
    layer = Layer(device, (20, 16, 40, 8))
    layer.x[[0, 1, 2, 4]] = torch.nan  # of these, one row is touched
    y = layer.y.clone()
    gated_lora_triton(*layer.lora(y))
    assert y[1].isnan().all()
    assert y[[0, 2, 3, 4, 5]].isfinite().all()


def test_columns_of_wider_tensors_are_changed_in_place(device: torch.device) -> None:
    """As when queries, keys and values are the result of one product."""
    layer = Layer(device, (20, 32, 48, 8))
    wide_y, wide_x = layer.y.repeat(1, 1, 3), layer.x.repeat(1, 1, 2)
    expected = layer.y.clone()
    gated_lora_triton(*layer.lora(expected))
    layer.x = wide_x[:, :, 32:]
    gated_lora_triton(*layer.lora(wide_y[:, :, 48:96]))
    assert torch.equal(wide_y, torch.cat([layer.y, expected, layer.y], dim=2))


def test_a_row_is_the_same_in_any_batch_and_share_of_columns(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer(device, (70, 80, 600, 16))
    together, shared, alone = layer.y.clone(), layer.y.clone(), layer.y[3:4].clone()
    monkeypatch.setattr(module, "_FULL_GPU", 1)
    gated_lora_triton(*layer.lora(together))
    monkeypatch.setattr(module, "_FULL_GPU", 128)
    gated_lora_triton(*layer.lora(shared))
    gated_lora_triton(alone, layer.x[3:4], layer.down, layer.up, layer.gates[3:4], layer.adapters[3:4])
    assert torch.equal(shared, together)
    assert torch.equal(alone[0], together[3])


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        ((24, 4096, 320), (64, 320)),  # pictures of a full batch: a block of tokens is read once
        ((24, 64, 1280), (64, 256)),  # few tokens
        ((1, 64, 10240), (64, 256)),  # little work: as many programs as are worth it
        ((3, 77, 320), (64, 320)),  # too few columns to share
        ((24, 1, 1280), (16, 256)),  # one token
        ((1, 1, 40), (16, 64)),  # less than a step
    ],
)
def test_columns_are_shared_where_a_gpu_would_idle(shape: tuple[int, int, int], plan: tuple[int, int]) -> None:
    assert module._plan(*shape) == plan


def test_the_public_operations_change_in_place(device: torch.device) -> None:
    layer = Layer(device, (20, 16, 40, 8), torch.float32)
    linear, convolution = layer.y.clone(), layer.y.clone()
    gated_lora(*layer.lora(linear))
    gated_up(*layer.second_half(convolution))
    for y in (linear, convolution):
        assert [row for row in range(len(GATES)) if not torch.equal(y[row], layer.y[row])] == TOUCHED


def test_nothing_is_no_launch(device: torch.device) -> None:
    layer = Layer(device, (20, 16, 40, 8))
    gated_lora_triton(layer.y[:0], layer.x[:0], layer.down, layer.up, layer.gates[:0], layer.adapters[:0])
    gated_up_triton(layer.y[:0], layer.hidden[:0], layer.up, layer.gates[:0], layer.adapters[:0])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("y", lambda t: t.double(), "y is torch.float64"),
        ("y", lambda t: t[0], r"y is \[20, 40\], must be \[any, any, any\]"),
        ("y", lambda t: t[:, :, ::2], "y must hold the values of a token side by side"),
        ("x", lambda t: t[:, :5], r"x is \[6, 5, 16\], must be \[6, 20, any\]"),
        ("x", lambda t: t.float(), "x is torch.float32, must be torch.float16"),
        ("down", lambda t: t[:, :4], r"down is \[2, 4, 16\], must be \[2, 8, 16\]"),
        ("up", lambda t: t[:, :4], r"up is \[2, 4, 8\], must be \[any, 40, any\]"),
        ("up", lambda t: t.repeat(1, 1, 9), "up has rank 72, must be 1 to 64"),
        ("gates", lambda t: t.half(), "gates is torch.float16, must be torch.float32"),
        ("gates", lambda t: t[:2], r"gates is \[2\], must be \[6\]"),
        ("adapters", lambda t: t.long(), "adapters is torch.int64, must be torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, change: Callable[[Tensor], Tensor], message: str, device: torch.device
) -> None:
    layer = Layer(device, (20, 16, 40, 8))
    setattr(layer, name, change(getattr(layer, name)))
    with pytest.raises(ValueError, match=message):
        gated_lora_triton(*layer.lora(layer.y))


def test_a_second_half_that_does_not_fit_is_refused(device: torch.device) -> None:
    layer = Layer(device, (20, 16, 40, 8))
    hidden = layer.hidden
    layer.hidden = hidden[:, :, :8]
    with pytest.raises(ValueError, match=r"hidden is \[6, 20, 8\], must be \[6, 20, 16\]"):
        gated_up_triton(*layer.second_half(layer.y))
    layer.hidden = hidden.float()
    with pytest.raises(ValueError, match=r"hidden is torch.float32, must be torch.float16"):
        gated_up_triton(*layer.second_half(layer.y))
    layer.hidden, layer.up = hidden, layer.up.float()
    with pytest.raises(ValueError, match=r"up is torch.float32, must be torch.float16"):
        gated_up_triton(*layer.second_half(layer.y))
