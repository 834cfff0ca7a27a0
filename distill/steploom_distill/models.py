"""The networks and the noise schedule, built from a `ModelConfig` in the shapes diffusers' InstructPix2Pix expects."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from .config import ModelConfig

LATENT_CHANNELS = 4


def build_unet(config: ModelConfig) -> UNet2DConditionModel:
    """The denoiser: 4 noisy and 4 image latent channels in, 4 out; attention at the two lower levels."""
    build = cast(Callable[..., UNet2DConditionModel], UNet2DConditionModel)
    return build(
        sample_size=config.resolution // 4,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=config.unet_layers,
        block_out_channels=config.unet_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=config.unet_heads,
        cross_attention_dim=config.text_width,
        norm_num_groups=config.norm_groups,
    )


def build_vae(config: ModelConfig) -> AutoencoderKL:
    """The autoencoder: a quarter of the size a side, 4 channels, no attention."""
    build = cast(Callable[..., AutoencoderKL], AutoencoderKL)
    levels = len(config.vae_channels)
    return build(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=config.vae_layers,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=config.norm_groups,
        sample_size=config.resolution,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_text_encoder(config: ModelConfig, vocabulary: int, bos: int, eos: int) -> CLIPTextModel:
    """A small CLIP text encoder; its last hidden states condition the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.text_width,
            intermediate_size=3 * config.text_width,
            projection_dim=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.text_tokens,
            hidden_act="gelu",
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
            initializer_factor=1.0,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM with v-prediction and zero terminal SNR, as arXiv 2305.08891 sections 3.1 to 3.3 ask for."""
    build = cast(Callable[..., DDIMScheduler], DDIMScheduler)
    return build(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def encode_mode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """The unscaled mode of the posterior: images ``[n, 3, s, s]`` in 0..1 to latents ``[n, 4, s/4, s/4]``."""
    moments = _moments(vae, images)
    return moments.chunk(2, dim=1)[0]


def _moments(vae: AutoencoderKL, images: Tensor) -> Tensor:
    hidden = vae.encoder((images * 2 - 1).contiguous(memory_format=torch.channels_last))
    return cast(Tensor, vae.quant_conv(hidden))


def posterior(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents of images ``[n, 3, s, s]`` in 0..1."""
    mean, log_variance = _moments(vae, images).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Unscaled latents back to images, about 0..1 (not clamped)."""
    return cast(Tensor, vae.decoder(vae.post_quant_conv(latents))) * 0.5 + 0.5
