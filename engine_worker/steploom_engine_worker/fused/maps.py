"""Linear maps and convolutions of fused networks, each with the changes of all adapters, by diffusers' names.

Maps of one input are one matrix product, with their weights one below the other; some can be in e4m3, which saves half
of what the product takes where its input is made in e4m3 (`narrow_dense`). Biases are not the maps' to add: see
`blocks`. The rows that an adapter changes, and how far, are data on the device (`RowScalars`); without them a map is
the model's alone and launches nothing for adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from steploom_engine_worker.adapter import LowRank
from steploom_kernels.add import add
from steploom_kernels.fp8 import E4M3, MULTIPLE, quantise, quantise_channels, scaled_linear
from steploom_kernels.gated_lora import MAX_RANK, gated_lora, gated_up
from steploom_kernels.gather_rows import RowScalars
from steploom_kernels.geglu import geglu
from steploom_kernels.interleave import interleave, phase_weights
from steploom_kernels.linear_geglu import linear_geglu

Gates = RowScalars | None


def tokens(pictures: Tensor) -> Tensor:
    """[n, c, h, w], channels last in memory, as [n, h * w, c]: a view."""
    n, c, h, w = pictures.shape
    return pictures.permute(0, 2, 3, 1).view(n, h * w, c)


class Change(nn.Module):
    """What the adapters add to a stretch of a map's output: B A of each, with zeros where an adapter changes nothing.

    Args:
        start: of the stretch.
        down: [adapters, rank, in].
        up: [adapters, stretch, rank].
    """

    down: Tensor
    up: Tensor

    def __init__(self, start: int, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.stretch = slice(start, start + up.shape[1])
        self.register_buffer("down", down.contiguous())
        self.register_buffer("up", up.contiguous())

    def forward(self, y: Tensor, x: Tensor, rows: RowScalars) -> None:
        """Adds to y [rows, tokens, out] what x [rows, tokens, in] gives."""
        gated_lora(y[:, :, self.stretch], x, self.down, self.up, rows.gates, rows.adapters)


class Dense(nn.Module):
    """x W^T, without a bias.

    Args:
        weight: [out, in].
        changes: to stretches of the output.

    Attributes:
        short: [in], what x is short of, or None; adapters see x with it, the model's product does not.
    """

    weight: Tensor
    short: Tensor | None

    def __init__(self, weight: Tensor, changes: Sequence[Change] = ()) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("short", None)
        self.changes = nn.ModuleList(changes)

    def wants(self, _rows: Gates) -> float | None:
        """The scale by which x is to be quantised: none, it is read in its own type."""
        return None

    def forward(self, x: Tensor, rows: Gates, bias: Tensor | None = None) -> Tensor:
        """The product of x [rows, tokens, in], plus a bias: [rows, tokens, out]."""
        y = functional.linear(x, self.weight, bias)
        self._change(y, x, rows)
        return y

    def geglu(self, x: Tensor, rows: Gates, bias: Tensor, scale: float | None) -> Tensor:
        """GEGLU of the product of x plus a bias: [rows, tokens, out / 2], quantised where there is a scale.

        One launch where nothing else is to be done: no adapter's change between, and no quantising after. Then the
        product is not rounded before GEGLU, where there are kernels for it.
        """
        is_model_s_alone = rows is None or not len(self.changes)
        if is_model_s_alone and scale is None:
            return linear_geglu(x.flatten(0, 1), self.weight, bias).view(*x.shape[:2], -1)
        return _geglu(self(x, rows, bias), scale)

    def add_to(self, total: Tensor, x: Tensor, rows: Gates) -> Tensor:
        """Adds the product to total [rows, tokens, out], in place: no pass over memory but the product's own."""
        total.view(-1, total.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight.t())
        self._change(total, x, rows)
        return total

    def fed_short(self, short: Tensor | None) -> Dense:
        """This map, for an x that is short of a vector."""
        self.short = short
        return self

    def product(self) -> Tensor | None:
        """What the result is short of because x is."""
        return None if self.short is None else (self.weight.double() @ self.short.double()).to(self.weight.dtype)

    def columns(self, start: int, stop: int) -> Dense:
        """The part of the map that reads these inputs."""
        changes = cast(Sequence[Change], self.changes)
        parts = [Change(item.stretch.start, item.down[:, :, start:stop], item.up) for item in changes]
        short = None if self.short is None else self.short[start:stop]
        return Dense(self.weight[:, start:stop], parts).fed_short(short)

    def _change(self, y: Tensor, x: Tensor, rows: Gates) -> None:
        if rows is None or not len(self.changes):
            return
        whole = x if self.short is None else x + self.short
        for change in self.changes:
            change(y, whole, rows)


class EightBitDense(nn.Module):
    """x W^T with x and W in e4m3, without a bias; changes are made in the network's own type.

    Args:
        weight: [out, in], in the network's type, which results have too.
        scale: of x; see `fp8.quantise`.
        changes: to stretches of the output.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, scale: float, changes: Sequence[Change] = ()) -> None:
        super().__init__()
        codes, scales = quantise_channels(weight)
        self.register_buffer("weight", codes)
        self.register_buffer("scales", scales * scale)
        self.dtype, self.scale = weight.dtype, scale
        self.changes = nn.ModuleList(changes)

    def wants(self, rows: Gates) -> float | None:
        """The scale by which whoever makes x quantises it at once; None where adapters read x as well."""
        return None if rows is not None and len(self.changes) else self.scale

    def forward(self, x: Tensor, rows: Gates, bias: Tensor | None = None) -> Tensor:
        """The product of x [rows, tokens, in], quantised or not, plus a bias: [rows, tokens, out]."""
        codes = x if x.dtype == E4M3 else quantise(x, self.scale)
        y = scaled_linear(codes.flatten(0, 1), self.weight, self.scales, bias, self.dtype).view(*x.shape[:2], -1)
        self._change(y, x, rows)
        return y

    def geglu(self, x: Tensor, rows: Gates, bias: Tensor, scale: float | None) -> Tensor:
        """GEGLU of the product of x plus a bias: [rows, tokens, out / 2], quantised where there is a scale."""
        return _geglu(self(x, rows, bias), scale)

    def add_to(self, total: Tensor, x: Tensor, rows: Gates) -> Tensor:
        """Adds the product to total [rows, tokens, out], in place: torch's product cannot, so it takes a pass."""
        codes = x if x.dtype == E4M3 else quantise(x, self.scale)
        y = scaled_linear(codes.flatten(0, 1), self.weight, self.scales, None, self.dtype)
        add(total, y.view_as(total), out=total)
        self._change(total, x, rows)
        return total

    def _change(self, y: Tensor, x: Tensor, rows: Gates) -> None:
        if rows is not None:
            for change in self.changes:
                change(y, x, rows)


def _geglu(y: Tensor, scale: float | None) -> Tensor:
    """Of y [rows, tokens, columns]."""
    return geglu(y.flatten(0, 1), scale=scale).view(*y.shape[:2], -1)


class Convolution(nn.Module):
    """A convolution without a bias; pictures are channels last.

    Args:
        weight: [out, in, k, k].
        stride: of it.
        padding: of it.
        change: the adapters' A as a convolution, [adapters * rank, in, k, k], and B, [adapters, out, rank].
    """

    weight: Tensor
    down: Tensor | None
    up: Tensor | None

    def __init__(self, weight: Tensor, stride: int, padding: int, change: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        down, up = change or (None, None)
        self.register_buffer("down", None if down is None else down.contiguous(memory_format=torch.channels_last))
        self.register_buffer("up", None if up is None else up.contiguous())

    def forward(self, x: Tensor, rows: Gates, bias: Tensor | None = None) -> Tensor:
        """Of x [rows, in, h, w]."""
        y = self._convolved(x, self.weight, bias)
        if rows is not None and self.down is not None and self.up is not None:
            gated_up(tokens(y), tokens(self._convolved(x, self.down)), self.up, rows.gates, rows.adapters)
        return y

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = functional.conv2d(x, weight, bias, self.stride, self.padding)
        return y.contiguous(memory_format=torch.channels_last)  # as it is, but where one side is 1


class UpConvolution(Convolution):
    """A convolution of a picture that is first enlarged to twice its size by nearest neighbours: see `interleave`.

    Adapters' A go the same way. There is no choice by shape: by operations and bytes a GPU gains from about 40 channels
    on, and below them both forms are short. Only a row alone at the deepest level of Stable Diffusion waits for its
    weights, 16/9 as large as those of 3 x 3, and gains nothing.

    Args:
        weight: [out, in, 3, 3], for stride 1 and padding 1.
        change: as a `Convolution`'s.
    """

    def __init__(self, weight: Tensor, change: tuple[Tensor, Tensor] | None) -> None:
        phases = None if change is None else (phase_weights(change[0]), change[1])
        super().__init__(phase_weights(weight), stride=1, padding=1, change=phases)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return interleave(super()._convolved(x, weight, None if bias is None else bias.repeat(4)))


class RowDense(nn.Module):
    """A map of one vector a row, such as the timestep's embedding: a whole changed map for each adapter, rows choose.

    Args:
        weights: [out, in] of the model, and of the model with each adapter, or None where that changes nothing.
        bias: [out].
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, changed: Sequence[Tensor | None], bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias.contiguous())
        self.numbers = [number for number, item in enumerate(changed) if item is not None]
        for number in self.numbers:
            self.register_buffer(f"changed_{number}", cast(Tensor, changed[number]).contiguous())

    def forward(self, x: Tensor, rows: Gates) -> Tensor:
        """Of x [rows, in]: [rows, out]."""
        y = functional.linear(x, self.weight, self.bias)
        if rows is not None:
            for number in self.numbers:
                other = functional.linear(x, self.get_buffer(f"changed_{number}"), self.bias)
                share = torch.where(rows.adapters == number, rows.gates, 0.0).to(y.dtype)
                y = torch.lerp(y, other, share[:, None])
        return y


class Maps:
    """Hands out a network's maps by name.

    Args:
        network: one of diffusers'.
        changes: of each adapter by the name of the map.
        input_scales: of maps that may be multiplied in e4m3, by their names; empty: none is.
    """

    def __init__(
        self,
        network: nn.Module,
        changes: Sequence[Mapping[str, LowRank]] = (),
        input_scales: Mapping[str, float] | None = None,
    ) -> None:
        self._modules = dict(network.named_modules())
        self._changes = changes
        self._input_scales = input_scales or {}

    def dense(self, *names: str) -> Dense:
        """Linear maps, or convolutions of one pixel, of one input: their outputs side by side."""
        weight, changes = self._joined(names)
        return Dense(weight, changes)

    def narrow_dense(self, *names: str) -> Dense | EightBitDense:
        """`dense`, multiplied in e4m3 where the first name has an input scale and the sizes are such as torch takes."""
        weight, changes = self._joined(names)
        scale = self._input_scales.get(names[0])
        if scale is None or any(size % MULTIPLE for size in weight.shape):
            return Dense(weight, changes)
        return EightBitDense(weight, scale, changes)

    def _joined(self, names: Sequence[str]) -> tuple[Tensor, list[Change]]:
        weights = [self._weight(name).flatten(1) for name in names]
        changes = []
        start = 0
        for name, weight in zip(names, weights, strict=True):
            change = self._change(name)
            if change is not None:
                changes.append(Change(start, *change))
            start += len(weight)
        return torch.cat(weights), _joined(changes)

    def convolution(self, name: str, padding: int | None = None) -> Convolution:
        """A convolution, with another padding than its own where one is given."""
        base = cast(nn.Conv2d, self._modules[name])
        padding = int(base.padding[0]) if padding is None else padding
        return Convolution(base.weight, base.stride[0], padding, self._convolved_change(name))

    def up_convolution(self, name: str) -> UpConvolution:
        """A convolution of a picture that is first enlarged."""
        return UpConvolution(self._weight(name), self._convolved_change(name))

    def row_dense(self, *names: str, biases: Sequence[Tensor] = ()) -> RowDense:
        """Linear maps of one vector a row; `biases` are added to the maps' own."""
        changed = []
        for by_name in self._changes:
            weights = [self._merged(name, by_name.get(name)) for name in names]
            changed.append(torch.cat(weights) if any(name in by_name for name in names) else None)
        bias = torch.cat([self.bias(name) for name in names])
        if biases:
            bias = bias + torch.cat(list(biases))
        return RowDense(torch.cat([self._weight(name) for name in names]), changed, bias)

    def bias(self, name: str) -> Tensor:
        """A map's bias; zeros where it has none."""
        module = self._modules[name]
        bias: Tensor | None = cast(nn.Linear, module).bias
        return bias.detach() if bias is not None else self._weight(name).new_zeros(len(self._weight(name)))

    def _weight(self, name: str) -> Tensor:
        return cast(nn.Linear, self._modules[name]).weight.detach()

    def _merged(self, name: str, change: LowRank | None) -> Tensor:
        if change is None:
            return self._weight(name)
        return change.merged_into(cast(nn.Linear, self._modules[name])).weight.detach()

    def _convolved_change(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A of all adapters as one convolution [adapters * rank, in, k, k], and B [adapters, out, rank]."""
        change = self._change(name, is_flat=False)
        return None if change is None else (change[0].flatten(0, 1), change[1])

    def _change(self, name: str, is_flat: bool = True) -> tuple[Tensor, Tensor] | None:
        """A of each adapter [adapters, rank, ...] and B [adapters, out, rank], of the largest rank of any."""
        found = [by_name.get(name) for by_name in self._changes]
        ranks = [len(item.down.weight) for item in found if item is not None]
        if not ranks:
            return None
        weight = self._weight(name)
        downs, ups = [], []
        for item in found:
            shape = weight[0].flatten().shape if is_flat else weight.shape[1:]
            down, up = weight.new_zeros(max(ranks), *shape), weight.new_zeros(len(weight), max(ranks))
            if item is not None:
                rank = len(item.down.weight)
                down[:rank] = item.down.weight.detach().view(rank, *shape)
                up[:, :rank] = item.up.weight.detach().flatten(1)
            downs.append(down)
            ups.append(up)
        return torch.stack(downs), torch.stack(ups)


def _joined(changes: Sequence[Change]) -> list[Change]:
    """Changes of one input whose stretches touch as one, of their ranks' sum, as far as a launch takes it."""
    groups: list[list[Change]] = []
    for change in changes:
        last = groups[-1] if groups else []
        rank = sum(item.down.shape[1] for item in (*last, change))
        if last and rank <= MAX_RANK and last[-1].stretch.stop == change.stretch.start:
            last.append(change)
        else:
            groups.append([change])
    return [_side_by_side(group) for group in groups]


def _side_by_side(changes: Sequence[Change]) -> Change:
    if len(changes) == 1:
        return changes[0]
    down = torch.cat([change.down for change in changes], dim=1)
    up = down.new_zeros(len(down), sum(change.up.shape[1] for change in changes), down.shape[1])
    out = rank = 0
    for change in changes:
        _, more_out, more_rank = change.up.shape
        up[:, out : out + more_out, rank : rank + more_rank] = change.up
        out, rank = out + more_out, rank + more_rank
    return Change(changes[0].stretch.start, down, up)
