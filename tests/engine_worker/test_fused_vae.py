"""The fused encoder and decoder give what diffusers' VAE gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from steploom_engine_worker.fused.blocks import sdpa
from steploom_engine_worker.fused.vae import FusedDecoder, FusedEncoder, attend_by_products, cannot_fuse_vae
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_engine_worker.tiny_model import VAE

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
TOLERANCE = 1e-4  # of float32, relative: sums in another order


def made_lively(network: Any) -> Any:
    """Biases and norms that are not those of a fresh network: zeros and ones hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return network.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def vae(tiny_model_dir: Path) -> Any:
    return made_lively(load_model(tiny_model_dir).vae)


def small_vae(**changes: object) -> Any:
    """The tiny model's with fewer layers."""
    return made_lively(AutoencoderKL.from_config({**VAE, "layers_per_block": 1, **changes}))


def encoded(vae: Any, pictures: Tensor) -> Tensor:
    latents: Tensor = vae.encode(pictures).latent_dist.mode()
    return latents


def decoded(vae: Any, latents: Tensor) -> Tensor:
    unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    image: Tensor = vae.decode(unscaled, return_dict=False)[0]
    return image


def assert_near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def assert_gives_the_same(vae: Any, pictures: Tensor) -> None:
    latents = encoded(vae, pictures)
    assert_near(FusedEncoder(vae)(pictures), latents)
    scaled = latents * vae.config.scaling_factor
    image = FusedDecoder(vae)(scaled)
    assert_near(image, decoded(vae, scaled))
    assert image.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
def test_gives_what_the_module_gives(vae: Any, rows: int) -> None:
    assert_gives_the_same(vae, torch.rand(rows, 3, 64, 64) * 2 - 1)


@torch.inference_mode()
def test_gives_what_the_embedded_model_gives() -> None:
    """Its middle has no attention, and a shortcut stands right before a sampler."""
    assert_gives_the_same(load_model(embedded_model()).vae, torch.rand(2, 3, 128, 128) * 2 - 1)


@torch.inference_mode()
def test_widths_that_rise() -> None:
    assert_gives_the_same(small_vae(block_out_channels=[32, 64, 64, 96]), torch.rand(1, 3, 32, 32) * 2 - 1)


@torch.inference_mode()
def test_without_the_maps_around_the_latents() -> None:
    vae = small_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.7)
    assert_gives_the_same(vae, torch.rand(1, 3, 32, 32) * 2 - 1)


@torch.inference_mode()
def test_latents_are_shifted_before_the_map_of_their_pixels() -> None:
    assert_gives_the_same(small_vae(shift_factor=-1.3), torch.rand(1, 3, 32, 32) * 2 - 1)


@torch.inference_mode()
def test_the_attention_reads_a_sum_that_is_short_of_a_bias() -> None:
    vae = small_vae()
    options = {"in_channels": 32, "out_channels": 32, "temb_channels": None, "use_in_shortcut": True}
    for part in (vae.encoder, vae.decoder):
        part.mid_block.resnets[0] = made_lively(ResnetBlock2D(**options))
    assert_gives_the_same(vae, torch.rand(1, 3, 32, 32) * 2 - 1)


@torch.inference_mode()
def test_sides_that_are_not_a_multiple_of_two() -> None:
    vae = small_vae()
    pictures = torch.rand(1, 3, 51, 38) * 2 - 1
    assert_near(FusedEncoder(vae)(pictures), encoded(vae, pictures))


@torch.inference_mode()
def test_every_bias_counts() -> None:
    """Each alone: one that is lost would not show beside all the others."""
    # in the tiny model a group of a norm is one channel, and takes back what is added to it
    vae = small_vae(
        block_out_channels=[16, 32], norm_num_groups=4, down_block_types=[DOWN] * 2, up_block_types=[UP] * 2
    )
    pictures, latents = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 4, 8, 8)
    before = encoded(vae, pictures), decoded(vae, latents)
    sides = {"quant_conv": 0, "encoder": 0, "post_quant_conv": 1, "decoder": 1}
    tried = {0: 0, 1: 0}
    for name, parameter in vae.named_parameters():
        if not name.endswith("bias") or "to_k" in name:  # the softmax takes a key's bias back
            continue
        old = parameter.clone()
        parameter[0] += 2.0  # of a mean, where there are moments
        side = sides[name.partition(".")[0]]
        expected = decoded(vae, latents) if side else encoded(vae, pictures)
        got = FusedDecoder(vae)(latents) if side else FusedEncoder(vae)(pictures)
        assert (expected - before[side]).abs().max() > 10 * TOLERANCE * float(expected.abs().max()), name
        assert_near(got, expected)
        parameter.copy_(old)
        tried[side] += 1
    assert tried[0] > 20
    assert tried[1] > 25


@torch.inference_mode()
def test_half_precision_is_no_further_from_the_exact_picture(vae: Any) -> None:
    """Than the module's own is."""
    latents = torch.randn(2, 4, 8, 8) * 0.2
    exact = decoded(vae, latents)
    half = AutoencoderKL.from_config(vae.config).to(torch.bfloat16).eval()
    half.load_state_dict(vae.state_dict())
    got = FusedDecoder(half)(latents)
    assert got.dtype == torch.bfloat16
    unscaled = (latents / vae.config.scaling_factor).bfloat16()
    theirs = (half.decode(unscaled, return_dict=False)[0] - exact).norm()
    assert (got - exact).norm() < 1.1 * theirs


def test_says_why_it_cannot_fuse(vae: Any) -> None:
    assert not cannot_fuse_vae(vae)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    assert cannot_fuse_vae(tiny) == "is an AutoencoderTiny, must be an AutoencoderKL"
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"act_fn": "gelu"}, "act_fn is 'gelu', must be 'silu' or 'swish'"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "has a block AttnDownEncoderBlock2D, must be one of"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "has a block AttnUpDecoderBlock2D, must be one of"),
    )
    for changes, message in refused:
        other = small_vae(**changes)
        assert message in cannot_fuse_vae(other)
        for form in (FusedEncoder, FusedDecoder):
            with pytest.raises(ValueError, match="must be"):
                form(other)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_by_products_is_attention(heads: int) -> None:
    """Of parts of one wide tensor, as a map of query, key and value gives them, with scores that exponentials feel."""
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(2, 21, 3, heads, 24, generator=generator, dtype=torch.float64) * 3
    q, k, v = wide.unbind(2)
    torch.testing.assert_close(attend_by_products(q, k, v), sdpa(q, k, v))


def test_a_vae_attends_as_it_is_told(vae: Any) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    calls = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return attend_by_products(q, k, v)

    assert_near(FusedDecoder(vae, attend)(latents), decoded(vae, latents))
    assert len(calls) == 1
