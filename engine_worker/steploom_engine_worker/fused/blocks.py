"""The blocks of fused networks.

The one idea: a bias that would be added to a residual sum is not added at all. It waits, as a vector known when the
network is built, until a normalisation or an addition takes it along. So a sum costs the pass that its matrix product
makes anyway, and a tensor that is *short of* a vector v stands for itself plus v. Each block is built with what its
input is short of, and says in `short` what its output is short of; None is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from steploom_engine_worker.fused.maps import Gates, Maps, tokens
from steploom_kernels.add import add
from steploom_kernels.group_norm import group_norm, new_counters
from steploom_kernels.hopper_attention import attention_hopper, fits
from steploom_kernels.layer_norm import layer_norm

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # see `sdpa`


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's attention: of [n, tokens, heads, d] for each, into [n, tokens of q, heads, d]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`sdpa`, by the kernel that is made for a GPU's narrow heads of many tokens where it is one of those."""
    return attention_hopper(q, k, v) if fits(q, k, v) else sdpa(q, k, v)


@dataclass
class Tick:
    """What all blocks of one forward pass read."""

    rows: Gates = None
    shifts: Tensor | None = None  # [n, sum of channels]: what each resnet's second norm adds, side by side
    keys_values: Tensor | None = None  # [n, text tokens, sum of 2 * width]: of each cross-attention, side by side
    attend: Attend = attend


@dataclass
class Layout:
    """Where each block finds its part of what `Tick` holds side by side; filled while the blocks are built."""

    time_names: list[str] = field(default_factory=list)  # maps of the timestep's embedding
    time_biases: list[Tensor] = field(default_factory=list)
    time_width: int = 0
    text_names: list[str] = field(default_factory=list)  # keys and values of cross-attention, in turn
    text_width: int = 0

    def reserve_time(self, name: str, bias: Tensor) -> slice:
        """The place of a resnet's shift, to which a bias is added."""
        start, self.time_width = self.time_width, self.time_width + len(bias)
        self.time_names.append(name)
        self.time_biases.append(bias)
        return slice(start, self.time_width)

    def reserve_text(self, key: str, value: str, width: int) -> slice:
        """The place of a cross-attention's keys and values."""
        start, self.text_width = self.text_width, self.text_width + 2 * width
        self.text_names += [key, value]
        return slice(start, self.text_width)


def unknown_part(config: Any, settings: Mapping[str, tuple[object, ...]], blocks: tuple[str, ...]) -> str:
    """What a network's config has that is not known here, in words; empty where there is nothing.

    Args:
        config: of a diffusers network with down and up blocks.
        settings: the values that are known of each; the first stands for a setting that is not there.
        blocks: the types of blocks that are known.
    """
    for name, wanted in settings.items():
        value = getattr(config, name, wanted[0])
        if value not in wanted:
            return f"{name} is {value!r}, must be {' or '.join(map(repr, wanted))}"
    for block in (*config.down_block_types, *config.up_block_types):
        if block not in blocks:
            return f"has a block {block}, must be one of {', '.join(blocks)}"
    return ""


def summed(first: Tensor, *others: Tensor | None) -> Tensor:
    """The sum of what is not None."""
    present = [first, *(vector for vector in others if vector is not None)]
    return torch.stack(present).double().sum(0).to(first.dtype)


class GroupNorm(nn.Module):
    """Of what is short of a vector, optionally with SiLU after.

    Its counters are for one launch at a time, as passes of a network must be: its graphs are of one lane, and what runs
    while one is recorded goes into that lane, too.
    """

    weight: Tensor
    bias: Tensor
    short: Tensor | None
    counters: Tensor

    def __init__(self, base: nn.GroupNorm, short: Tensor | None = None, silu: bool = False) -> None:
        super().__init__()
        self.groups, self.eps, self.silu = base.num_groups, base.eps, silu
        self.register_buffer("weight", base.weight.detach())
        self.register_buffer("bias", base.bias.detach())
        self.register_buffer("short", short)
        self.register_buffer("counters", new_counters(base.weight.device), persistent=False)

    def forward(self, x: Tensor, beside: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Of x [n, c, h, w], with the channels of `beside` after its own; `shift` [n, c] in place of a vector."""
        if shift is None and self.short is not None:
            shift = self.short.expand(len(x), -1)
        return group_norm(
            x, self.weight, self.bias, self.groups, eps=self.eps, silu=self.silu,
            shift=shift, beside=beside, counters=self.counters,
        )  # fmt: skip


class LayerNorm(nn.Module):
    """Of what is short of a vector."""

    weight: Tensor
    bias: Tensor
    short: Tensor | None

    def __init__(self, base: nn.LayerNorm, short: Tensor | None) -> None:
        super().__init__()
        self.eps = base.eps
        self.register_buffer("weight", base.weight.detach())
        self.register_buffer("bias", base.bias.detach())
        self.register_buffer("short", short)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        """Of x [n, tokens, width]; with a scale quantised by it."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps, shift=self.short, scale=scale)


class Resnet(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut.

    Args:
        base: a diffusers ResnetBlock2D, with or without a timestep, of the name `name`.
        short: what the input is short of, with the channels of a skip after its own.
        skip_channels: of the skip beside the input.
        is_settled: whether the output is short of nothing.
    """

    short: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        base: Any,
        name: str,
        maps: Maps,
        layout: Layout,
        short: Tensor | None,
        skip_channels: int,
        is_settled: bool,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(base.norm1, short, silu=True)
        self.conv1 = maps.convolution(f"{name}.conv1")
        inner, has_time = maps.bias(f"{name}.conv1"), base.time_emb_proj is not None
        self.norm2 = GroupNorm(base.norm2, None if has_time else inner, silu=True)
        self.shift_place = layout.reserve_time(f"{name}.time_emb_proj", inner) if has_time else None
        self.conv2 = maps.convolution(f"{name}.conv2")
        bias = maps.bias(f"{name}.conv2")
        self.shortcut = self.skip_shortcut = None
        if base.conv_shortcut is not None:
            whole = maps.dense(f"{name}.conv_shortcut").fed_short(short)
            own = base.in_channels - skip_channels
            self.shortcut = whole.columns(0, own)
            if skip_channels:
                self.skip_shortcut = whole.columns(own, base.in_channels)
            bias = summed(bias, maps.bias(f"{name}.conv_shortcut"), whole.product())
        else:
            bias = summed(bias, short)
        # an addition of its own takes the bias along
        adds = self.shortcut is None or is_settled
        self.register_buffer("bias", bias if adds else None)
        self.register_buffer("short", None if adds else bias)

    def forward(self, x: Tensor, tick: Tick, skip: Tensor | None = None) -> Tensor:
        """Of x [n, c, h, w]."""
        y = self.conv1(self.norm1(x, skip), tick.rows)
        shift = None if self.shift_place is None else cast(Tensor, tick.shifts)[:, self.shift_place]
        y = self.conv2(self.norm2(y, shift=shift), tick.rows)
        if self.shortcut is None:
            return add(y, x, self.bias, out=y)
        into = tokens(y)
        self.shortcut.add_to(into, tokens(x), tick.rows)
        if self.skip_shortcut is not None and skip is not None:
            self.skip_shortcut.add_to(into, tokens(skip), tick.rows)
        return _add_bias(y, self.bias)


class Attention(nn.Module):
    """Self-attention, or attention to the text; without the addition to its input.

    Args:
        base: a diffusers Attention, of the name `name`.
    """

    bias: Tensor
    query_bias: Tensor | None

    def __init__(self, base: Any, name: str, maps: Maps, layout: Layout, is_cross: bool) -> None:
        super().__init__()
        self.heads = int(base.heads)
        self.out = maps.dense(f"{name}.to_out.0")
        self.register_buffer("bias", maps.bias(f"{name}.to_out.0"))
        query, key, value = (f"{name}.{part}" for part in ("to_q", "to_k", "to_v"))
        own = [query] if is_cross else [query, key, value]
        self.query = maps.narrow_dense(*own)
        has_bias = base.to_q.bias is not None
        self.register_buffer("query_bias", torch.cat([maps.bias(part) for part in own]) if has_bias else None)
        self.text_place = layout.reserve_text(key, value, len(self.query.weight)) if is_cross else None

    def add_to(self, total: Tensor, x: Tensor, tick: Tick) -> Tensor:
        """Adds what x [n, tokens, width], as `query` wants it, attends to, short of `bias`."""
        n, count, _ = x.shape
        if self.text_place is None:
            q, k, v = self.query(x, tick.rows, self.query_bias).view(n, count, 3, self.heads, -1).unbind(2)
        else:
            q = self.query(x, tick.rows, self.query_bias).view(n, count, self.heads, -1)
            places = cast(Tensor, tick.keys_values)[:, :, self.text_place]
            k, v = places.view(n, places.shape[1], 2, self.heads, -1).unbind(2)
        found = tick.attend(q, k, v).reshape(n, count, -1)
        return self.out.add_to(total, found, tick.rows)


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, and GEGLU; in place.

    Args:
        base: a diffusers BasicTransformerBlock, of the name `name`.
        short: what the input is short of.
    """

    short: Tensor
    hidden_bias: Tensor

    def __init__(self, base: Any, name: str, maps: Maps, layout: Layout, short: Tensor | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm(base.norm1, short)
        self.attn1 = Attention(base.attn1, f"{name}.attn1", maps, layout, is_cross=False)
        short = summed(self.attn1.bias, short)
        self.norm2 = LayerNorm(base.norm2, short)
        self.attn2 = Attention(base.attn2, f"{name}.attn2", maps, layout, is_cross=True)
        short = summed(short, self.attn2.bias)
        self.norm3 = LayerNorm(base.norm3, short)
        self.hidden = maps.narrow_dense(f"{name}.ff.net.0.proj")
        self.out = maps.narrow_dense(f"{name}.ff.net.2")
        self.register_buffer("hidden_bias", maps.bias(f"{name}.ff.net.0.proj"))
        self.register_buffer("short", summed(maps.bias(f"{name}.ff.net.2"), short))

    def forward(self, x: Tensor, tick: Tick) -> Tensor:
        """Changes x [n, tokens, width]."""
        rows = tick.rows
        self.attn1.add_to(x, self.norm1(x, self.attn1.query.wants(rows)), tick)
        self.attn2.add_to(x, self.norm2(x, self.attn2.query.wants(rows)), tick)
        inner = self.norm3(x, self.hidden.wants(rows))
        return self.out.add_to(x, self.hidden.geglu(inner, rows, self.hidden_bias, self.out.wants(rows)), rows)


class Transformer(nn.Module):
    """Transformer layers over the pixels of a picture, with the picture added.

    Args:
        base: a diffusers Transformer2DModel, of the name `name`.
        short: what the input is short of.
        is_settled: whether the output is short of nothing.
    """

    short: Tensor | None
    bias: Tensor | None
    in_bias: Tensor

    def __init__(
        self, base: Any, name: str, maps: Maps, layout: Layout, short: Tensor | None, is_settled: bool
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(base.norm, short)
        self.proj_in = maps.dense(f"{name}.proj_in")
        self.register_buffer("in_bias", maps.bias(f"{name}.proj_in"))
        self.layers = nn.ModuleList()
        inner: Tensor | None = None
        for number, layer in enumerate(base.transformer_blocks):
            built = TransformerLayer(layer, f"{name}.transformer_blocks.{number}", maps, layout, inner)
            self.layers.append(built)
            inner = built.short
        self.proj_out = maps.dense(f"{name}.proj_out").fed_short(inner)
        bias = summed(maps.bias(f"{name}.proj_out"), short, self.proj_out.product())
        self.register_buffer("bias", bias if is_settled else None)
        self.register_buffer("short", None if is_settled else bias)

    def forward(self, x: Tensor, tick: Tick) -> Tensor:
        """Changes x [n, c, h, w]."""
        hidden = self.proj_in(tokens(self.norm(x)), tick.rows, self.in_bias)
        for layer in self.layers:
            hidden = layer(hidden, tick)
        self.proj_out.add_to(tokens(x), hidden, tick.rows)
        return _add_bias(x, self.bias)


class Sampler(nn.Module):
    """Half or twice the size, by a convolution. Its input is short of nothing, its output of the bias.

    Args:
        name: of diffusers' convolution.
        scale: by which the picture is enlarged before it: 1 or 2.
    """

    short: Tensor

    def __init__(self, name: str, maps: Maps, scale: int) -> None:
        super().__init__()
        self.conv = maps.convolution(name) if scale == 1 else maps.up_convolution(name)
        self.register_buffer("short", maps.bias(name))

    def forward(self, x: Tensor, tick: Tick) -> Tensor:
        """Of x [n, c, h, w]."""
        result: Tensor = self.conv(x, tick.rows)
        return result


def _add_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    """In place, to each pixel."""
    return x if bias is None else x.add_(bias[:, None, None])
