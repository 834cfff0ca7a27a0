"""A diffusers AutoencoderKL for inference alone: the same weights, the same result, fewer passes over memory.

At 512 x 512 pixels a pass costs as much as a convolution of few channels. Norms take SiLU and the bias of the
convolution before them along, sums take theirs (see `blocks`), and the downsampler's padding moves nothing. What is
linear at both ends is one map: the mean of the moments alone out of the encoder, the scale of latents into the decoder.
Every tensor is channels last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from steploom_engine_worker.fused.blocks import (
    Attend,
    Attention,
    GroupNorm,
    Layout,
    Resnet,
    Sampler,
    Tick,
    sdpa,
    summed,
    unknown_part,
)
from steploom_engine_worker.fused.maps import Convolution, Maps, tokens

_WIDEST_HEAD = 256  # of flash attention and of cuDNN's
_BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
# Settings of a VAE whose other values ask for what no block here does.
_WANTED: Mapping[str, tuple[object, ...]] = {"act_fn": ("silu", "swish")}


def cannot_fuse_vae(vae: Any) -> str:
    """Why a VAE cannot be fused, in words; empty where it can."""
    if not isinstance(vae, AutoencoderKL):
        return f"is an {type(vae).__name__}, must be an AutoencoderKL"
    return unknown_part(vae.config, _WANTED, _BLOCKS)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`blocks.sdpa`, by products where one head is wider than libraries' fast kernels take.

    Scores are then rounded once, which for half precision with its eleven digits moves a share by a thousandth or so of
    itself; with the eight of bfloat16 it would be a hundredth, so that is left to the library.
    """
    is_wide = q.shape[-1] > _WIDEST_HEAD and q.dtype == torch.float16 and q.is_cuda
    return attend_by_products(q, k, v) if is_wide else sdpa(q, k, v)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`blocks.sdpa` as two products around a softmax, whose scores are all in memory at once."""
    n, tokens_q, heads, width = q.shape
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))  # no copies where there is one head
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=width**-0.5)
    return (scores.softmax(dim=-1) @ v).view(n, heads, tokens_q, width).transpose(1, 2)


class FusedEncoder(nn.Module):
    """The mean of the latents of pictures.

    Args:
        vae: a diffusers AutoencoderKL on its device, in its type; it is read, and shares memory where it can.
        attend: the attention; see `attend`.

    Raises:
        ValueError: the VAE has something that is not known here.
    """

    out_bias: Tensor

    def __init__(self, vae: Any, attend: Attend = attend) -> None:
        super().__init__()
        _require_known(vae)
        stages = [(f"down_blocks.{number}", block) for number, block in enumerate(vae.encoder.down_blocks)]
        self.body = _Body(vae.encoder, "encoder", [*stages, ("mid_block", vae.encoder.mid_block)], Maps(vae), attend)
        weight, bias = _mean(vae.encoder.conv_out, vae.quant_conv, int(vae.config.latent_channels))
        self.conv_out = Convolution(weight, stride=1, padding=1, change=None)
        self.register_buffer("out_bias", bias)

    def forward(self, pictures: Tensor) -> Tensor:
        """Latents [n, channels, h / factor, w / factor], not scaled, of pictures [n, 3, h, w], -1 to 1."""
        return cast(Tensor, self.conv_out(self.body(pictures), None, self.out_bias))


class FusedDecoder(nn.Module):
    """Pictures of latents as a sampler leaves them.

    Args:
        vae: a diffusers AutoencoderKL on its device, in its type; it is read, and shares memory where it can.
        attend: the attention; see `attend`.

    Raises:
        ValueError: the VAE has something that is not known here.
    """

    in_weight: Tensor
    in_bias: Tensor
    out_bias: Tensor

    def __init__(self, vae: Any, attend: Attend = attend) -> None:
        super().__init__()
        _require_known(vae)
        maps = Maps(vae)
        weight, bias = _unscaled(vae.post_quant_conv, vae)
        self.register_buffer("in_weight", weight)
        self.register_buffer("in_bias", bias)
        stages = [(f"up_blocks.{number}", block) for number, block in enumerate(vae.decoder.up_blocks)]
        self.body = _Body(vae.decoder, "decoder", [("mid_block", vae.decoder.mid_block), *stages], maps, attend)
        self.conv_out = maps.convolution("decoder.conv_out")
        self.register_buffer("out_bias", maps.bias("decoder.conv_out"))

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures [n, 3, factor * h, factor * w], about -1 to 1, of float32 latents [n, channels, h, w]."""
        n, channels, height, width = latents.shape
        # a product of matrices, as torch may compute convolutions of float32 in fewer digits
        x = torch.baddbmm(self.in_bias, self.in_weight.expand(n, -1, -1), latents.reshape(n, channels, -1))
        x = x.view(n, -1, height, width).to(self.out_bias.dtype, memory_format=torch.channels_last)
        return cast(Tensor, self.conv_out(self.body(x), None, self.out_bias))


class _Body(nn.Module):
    """All of an encoder or a decoder but its last convolution.

    Args:
        base: diffusers' Encoder or Decoder, of the name `name`.
        stages: its blocks in the order of a forward pass, by their names in it.
    """

    def __init__(self, base: Any, name: str, stages: Iterable[tuple[str, Any]], maps: Maps, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.conv_in = maps.convolution(f"{name}.conv_in")
        self.blocks = nn.ModuleList()
        short: Tensor | None = maps.bias(f"{name}.conv_in")
        for stage, block in stages:
            for layer in _layers(block, f"{name}.{stage}", maps, short):
                self.blocks.append(layer)
                short = cast(Tensor | None, layer.short)
        self.norm_out = GroupNorm(base.conv_norm_out, short, silu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Of x [n, c, h, w], what the last convolution reads."""
        tick = Tick(attend=self.attend)
        x = self.conv_in(x, tick.rows)
        for block in self.blocks:
            x = block(x, tick)
        return cast(Tensor, self.norm_out(x))


def _layers(block: Any, name: str, maps: Maps, short: Tensor | None) -> Iterable[nn.Module]:
    """A block's resnets, its attention after the first where it has one, and its sampler where it has one."""
    layout = Layout()  # stays empty: there is neither a timestep nor a text
    is_down, is_up = (getattr(block, kind, None) is not None for kind in ("downsamplers", "upsamplers"))
    attentions = dict(enumerate(getattr(block, "attentions", ())))
    last = len(block.resnets) - 1
    for index, base in enumerate(block.resnets):
        # a sampler's convolution pads with zeros: what it reads must be whole
        is_settled = index == last and (is_down or is_up)
        resnet = Resnet(base, f"{name}.resnets.{index}", maps, layout, short, 0, is_settled)
        yield resnet
        short = resnet.short
        if attentions.get(index) is not None:
            attention = _PixelAttention(attentions[index], f"{name}.attentions.{index}", maps, layout, short)
            yield attention
            short = attention.short
    if is_down:
        yield _Half(f"{name}.downsamplers.0.conv", maps)
    if is_up:
        yield Sampler(f"{name}.upsamplers.0.conv", maps, scale=2)


class _PixelAttention(nn.Module):
    """Attention of a picture's pixels to each other, with the picture added; in place.

    Args:
        base: a diffusers Attention with a norm, of the name `name`.
        short: what the input is short of.
    """

    short: Tensor

    def __init__(self, base: Any, name: str, maps: Maps, layout: Layout, short: Tensor | None) -> None:
        super().__init__()
        self.norm = GroupNorm(base.group_norm, short)
        self.attention = Attention(base, name, maps, layout, is_cross=False)
        self.register_buffer("short", summed(self.attention.bias, short))

    def forward(self, x: Tensor, tick: Tick) -> Tensor:
        """Changes x [n, c, h, w]."""
        self.attention.add_to(tokens(x), tokens(self.norm(x)), tick)
        return x


class _Half(nn.Module):
    """Half the size, by a convolution of stride 2 that is padded by one at the right and at the bottom alone.

    Padded by two on all sides it gives the same, after a first line and column: dropping these is a pass over a quarter
    of the pixels, padding one side would be one over all. Its input is short of nothing, its output of the bias.

    Args:
        name: of diffusers' convolution.
    """

    short: Tensor

    def __init__(self, name: str, maps: Maps) -> None:
        super().__init__()
        self.conv = maps.convolution(name, padding=2)
        self.register_buffer("short", maps.bias(name))

    def forward(self, x: Tensor, tick: Tick) -> Tensor:
        """Of x [n, c, h, w]."""
        height, width = (side // 2 for side in x.shape[2:])
        y: Tensor = self.conv(x, tick.rows)[:, :, 1 : height + 1, 1 : width + 1]
        return y.contiguous(memory_format=torch.channels_last)


def _require_known(vae: Any) -> None:
    problem = cannot_fuse_vae(vae)
    if problem:
        raise ValueError(problem)


def _mean(conv_out: nn.Conv2d, quant_conv: nn.Conv2d | None, channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of what the last convolution, and the map of each pixel after it, make of the mean."""
    weight, bias = conv_out.weight.detach(), cast(Tensor, conv_out.bias).detach()
    if quant_conv is None:
        return weight[:channels], bias[:channels]
    outer, outer_bias = _pixel_map(quant_conv)
    outer, outer_bias = outer[:channels], outer_bias[:channels]
    whole = torch.einsum("oi,ijhw->ojhw", outer, weight.double())
    return whole.to(weight.dtype), (outer @ bias.double() + outer_bias).to(bias.dtype)


def _unscaled(post_quant_conv: nn.Conv2d | None, vae: Any) -> tuple[Tensor, Tensor]:
    """The map [channels, channels] of each pixel before the decoder, and its bias [channels, 1], of scaled latents.

    It is not a part of the first convolution: beyond the border that reads zeros, and not the bias.
    """
    if post_quant_conv is None:
        weight = torch.eye(int(vae.config.latent_channels), dtype=torch.float64, device=vae.device)
        bias = weight.new_zeros(len(weight))
    else:
        weight, bias = _pixel_map(post_quant_conv)
    bias = bias + weight.sum(1) * float(getattr(vae.config, "shift_factor", None) or 0.0)
    return (weight / float(vae.config.scaling_factor)).float(), bias[:, None].float()


def _pixel_map(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a convolution of one pixel, in float64."""
    bias = cast(Tensor, convolution.bias)
    return convolution.weight.detach().flatten(1).double(), bias.detach().double()
