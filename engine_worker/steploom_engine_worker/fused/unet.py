"""A diffusers UNet for inference alone: the same weights, the same result, fewer passes over memory.

What one input is multiplied by is one product: query, key and value; the keys and values of every cross-attention;
the timestep's part in every resnet. Norms take SiLU, the timestep's part and a skip's channels along; biases of sums
wait for them (see `blocks`). Every tensor is channels last, so that a picture is its own list of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from steploom_engine_worker.adapter import Adapter, GuidanceEmbedding
from steploom_engine_worker.fused.blocks import (
    Attend,
    GroupNorm,
    Layout,
    Resnet,
    Sampler,
    Tick,
    Transformer,
    attend,
    unknown_part,
)
from steploom_engine_worker.fused.maps import Gates, Maps

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")
# Settings of a UNet whose other values ask for what no block here does.
_WANTED: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False, None),
    "downsample_padding": (1,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
}


def cannot_fuse(unet: Any) -> str:
    """Why a UNet cannot be fused, in words; empty where it can."""
    return unknown_part(unet.config, _WANTED, (*_DOWN, *_UP))


class FusedUNet(nn.Module):
    """See the module.

    Args:
        unet: a diffusers UNet2DConditionModel on its device, in its type; it is read, and shares memory where it can.
        adapters: whose changes rows may ask for; a row's number counts in this order.
        are_merged: the adapters' changes are in the UNet's weights already: only their guidance embeddings count.
        attend: the attention; see `blocks.attend`.
        input_scales: of the transformers' maps that are multiplied in e4m3, by their names; None: none is.
        first_number: of the first adapter, where they are merged.

    Raises:
        ValueError: the UNet has something that is not known here.
    """

    frequencies: Tensor
    out_bias: Tensor

    def __init__(
        self,
        unet: Any,
        adapters: Sequence[Adapter] = (),
        *,
        are_merged: bool = False,
        attend: Attend = attend,
        input_scales: Mapping[str, float] | None = None,
        first_number: int = 0,
    ) -> None:
        super().__init__()
        problem = cannot_fuse(unet)
        if problem:
            raise ValueError(problem)
        self.attend = attend
        maps = Maps(unet, [] if are_merged else [adapter.changes for adapter in adapters], input_scales)
        layout = Layout()
        self._build_blocks(unet, maps, layout)
        self.times = maps.row_dense(*layout.time_names, biases=layout.time_biases)
        self.texts = maps.dense(*layout.text_names)
        self.time_1 = maps.row_dense("time_embedding.linear_1")
        self.time_2 = maps.row_dense("time_embedding.linear_2")
        self.guidance = nn.ModuleDict(
            {
                str(number): adapter.guidance
                for number, adapter in enumerate(adapters, first_number)
                if adapter.guidance is not None
            }
        )
        half = int(unet.time_proj.num_channels) // 2
        exponents = torch.arange(half, device=unet.device) / (half - unet.time_proj.downscale_freq_shift)
        self.register_buffer("frequencies", 10000.0**-exponents)
        self.flip_sin_to_cos = bool(unet.time_proj.flip_sin_to_cos)

    def _build_blocks(self, unet: Any, maps: Maps, layout: Layout) -> None:
        """Walks the network as a forward pass does, with what each tensor is short of."""
        self.conv_in = maps.convolution("conv_in")
        short: Tensor | None = maps.bias("conv_in")
        shorts = [short]  # of the skips
        self.down = nn.ModuleList()
        for number, block in enumerate(unet.down_blocks):
            name = f"down_blocks.{number}"
            layers = nn.ModuleList()
            attentions = getattr(block, "attentions", None)
            for index, resnet in enumerate(block.resnets):
                # the sampler's convolution pads with zeros: what it reads must be whole
                is_settled = block.downsamplers is not None and index == len(block.resnets) - 1
                layer = _Layer(resnet, attentions, name, index, maps, layout, short, 0, is_settled)
                layers.append(layer)
                short = layer.short
                shorts.append(short)
            if block.downsamplers is not None:
                layers.append(Sampler(f"{name}.downsamplers.0.conv", maps, scale=1))
                short = cast(Tensor, layers[-1].short)
                shorts.append(short)
            self.down.append(layers)
        self.middle = nn.ModuleList()
        for index, resnet in enumerate(unet.mid_block.resnets):
            attentions = unet.mid_block.attentions if index < len(unet.mid_block.attentions) else None
            layer = _Layer(resnet, attentions, "mid_block", index, maps, layout, short, 0, False)
            self.middle.append(layer)
            short = layer.short
        self.up = nn.ModuleList()
        channels = int(unet.mid_block.resnets[-1].out_channels)
        for number, block in enumerate(unet.up_blocks):
            name = f"up_blocks.{number}"
            layers = nn.ModuleList()
            attentions = getattr(block, "attentions", None)
            for index, resnet in enumerate(block.resnets):
                skip = int(resnet.in_channels) - channels
                both = _side_by_side(short, shorts.pop(), channels, skip, resnet.norm1.weight)
                is_settled = block.upsamplers is not None and index == len(block.resnets) - 1
                layer = _Layer(resnet, attentions, name, index, maps, layout, both, skip, is_settled)
                layers.append(layer)
                short, channels = layer.short, int(resnet.out_channels)
            if block.upsamplers is not None:
                layers.append(Sampler(f"{name}.upsamplers.0.conv", maps, scale=2))
                short = cast(Tensor, layers[-1].short)
            self.up.append(layers)
        self.norm_out = GroupNorm(unet.conv_norm_out, short, silu=True)
        self.conv_out = maps.convolution("conv_out")
        self.register_buffer("out_bias", maps.bias("conv_out"))

    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor, rows: Gates = None) -> Tensor:
        """The prediction of each row.

        Args:
            sample: [rows, in_channels, h, w], channels last.
            timesteps: float32 [rows].
            context: [rows, tokens, width].
            rows: which adapter each row is of, how far it counts, and the guidance scales; None: no row has one.

        Returns:
            [rows, out_channels, h, w], channels last.
        """
        tick = Tick(rows, self._shifts(timesteps, rows, sample.dtype), self.texts(context, rows), self.attend)
        x = self.conv_in(sample, rows)
        skips = [x]
        for layer in _all(self.down):
            x = layer(x, tick)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, tick)
        for layer in _all(self.up):
            x = layer(x, tick) if isinstance(layer, Sampler) else layer(x, tick, skips.pop())
        return cast(Tensor, self.conv_out(self.norm_out(x), rows, self.out_bias))

    def _shifts(self, timesteps: Tensor, rows: Gates, dtype: torch.dtype) -> Tensor:
        """What every resnet adds for a row's timestep and guidance scales, side by side."""
        phases = timesteps[:, None] * self.frequencies
        waves = (phases.cos(), phases.sin()) if self.flip_sin_to_cos else (phases.sin(), phases.cos())
        time = self.time_2(functional.silu(self.time_1(torch.cat(waves, dim=1).to(dtype), rows)), rows)
        if rows is not None:
            for number, embedding in self.guidance.items():
                change = cast(GuidanceEmbedding, embedding)(rows.scales)
                is_own = (rows.adapters == int(number))[:, None]
                time = time + torch.where(is_own, change * rows.gates[:, None].to(dtype), 0.0)
        return cast(Tensor, self.times(functional.silu(time), rows))


class _Layer(nn.Module):
    """A resnet, and the transformer after it where there is one."""

    def __init__(
        self,
        resnet: Any,
        attentions: Any,
        name: str,
        index: int,
        maps: Maps,
        layout: Layout,
        short: Tensor | None,
        skip: int,
        is_settled: bool,
    ) -> None:
        super().__init__()
        is_last = attentions is None
        self.resnet = Resnet(resnet, f"{name}.resnets.{index}", maps, layout, short, skip, is_settled and is_last)
        self.transformer = None
        if attentions is not None:
            self.transformer = Transformer(
                attentions[index], f"{name}.attentions.{index}", maps, layout, self.resnet.short, is_settled
            )

    @property
    def short(self) -> Tensor | None:
        """What the output is short of."""
        return self.resnet.short if self.transformer is None else self.transformer.short

    def forward(self, x: Tensor, tick: Tick, skip: Tensor | None = None) -> Tensor:
        x = self.resnet(x, tick, skip)
        return x if self.transformer is None else cast(Tensor, self.transformer(x, tick))


def _all(blocks: nn.ModuleList) -> Iterator[nn.Module]:
    for layers in blocks:
        yield from cast(nn.ModuleList, layers)


def _side_by_side(
    first: Tensor | None, second: Tensor | None, channels: int, skip_channels: int, like: Tensor
) -> Tensor | None:
    """What two tensors side by side are short of."""
    if first is None and second is None:
        return None
    parts = ((first, channels), (second, skip_channels))
    return torch.cat([like.new_zeros(count) if part is None else part for part, count in parts])
