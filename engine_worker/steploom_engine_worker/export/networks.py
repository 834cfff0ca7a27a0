"""The four networks as they are exported: rows in front, channels last at the edges, adapters gated by an input.

The one idea: what differs between the rows of a tick is an input with a value a row (timestep, gates of the adapters,
guidance scales), so that one engine serves all of them. A gate scales an adapter's change where it is narrowest,
between A and B of y = W x + B (g * A x); the changes of several adapters to one map are one pair of products, of the
sum of their ranks.

What is in here is diffusers' own network over the very weights of the model, with parts exchanged for others that give
the same and export as few plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from steploom_engine_worker.adapter import Adapter, GuidanceEmbedding, LowRank, linear_maps, with_shared_weights
from steploom_engine_worker.model import Model

UNET, TEXT_ENCODER, VAE_ENCODER, VAE_DECODER = "unet", "text_encoder", "vae_encoder", "vae_decoder"
NETWORKS = (TEXT_ENCODER, VAE_ENCODER, UNET, VAE_DECODER)  # in the order of a job

_LEAST_SCALE = 1e-3  # guidance scales are at least 1; a padded row's may be anything, and must not become NaN


@dataclass(frozen=True)
class Port:
    """An input or output of a network."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of one row


@dataclass(frozen=True)
class Network:
    """A network that can be exported for any number of rows."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def example(self, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs as they may come: normal noise, timesteps and tokens of all sizes, gates from none to whole."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_example(port, rows, generator, self._num_tokens) for port in self.inputs)

    @property
    def _num_tokens(self) -> int:
        return int(getattr(self.module, "vocabulary", 1))


def _example(port: Port, rows: int, generator: torch.Generator, vocabulary: int) -> Tensor:
    shape = (rows, *port.shape)
    if port.dtype == torch.int32:
        return torch.randint(0, vocabulary, shape, generator=generator, dtype=torch.int32)
    if port.name == "timesteps":
        return torch.linspace(1, 999, rows).round()
    if port.name == "gates":
        return torch.rand(shape, generator=generator).round(decimals=1)
    if port.name == "scales":
        return 1 + 9 * torch.rand(shape, generator=generator)
    if port.name == "pictures":
        return torch.rand(shape, generator=generator).mul(2).sub(1).to(port.dtype)
    return torch.randn(shape, generator=generator).to(port.dtype)


def network(model: Model, name: str) -> Network:
    """One of `NETWORKS`, over the weights of a model and in their type; the model stays as it is.

    Raises:
        ValueError: the model has something that cannot be exported; the message says what.
    """
    return _MAKERS[name](model)


def _unet(model: Model) -> Network:
    adapters = [item.network for item in model.adapters]
    module = ExportedUNet(model.unet, adapters)
    channels, height, width = model.latent_shape
    dtype = model.unet.dtype
    text = (model.num_tokens, int(model.text_encoder.config.hidden_size))
    inputs = [
        Port("sample", dtype, (height, width, 2 * channels)),
        Port("timesteps", torch.float32, ()),
        Port("context", dtype, text),
    ]
    if adapters:
        inputs.append(Port("gates", torch.float32, (len(adapters),)))
    if any(adapter.guidance is not None for adapter in adapters):
        inputs.append(Port("scales", torch.float32, (2,)))
    return Network(UNET, module, tuple(inputs), (Port("prediction", dtype, (height, width, channels)),))


def _text_encoder(model: Model) -> Network:
    encoder = model.text_encoder
    if getattr(encoder.config, "use_attention_mask", False):
        raise ValueError("the text encoder reads an attention mask, which the exported one does not")
    width = int(encoder.config.hidden_size)
    return Network(
        TEXT_ENCODER,
        ExportedTextEncoder(encoder, model.num_tokens),
        (Port("tokens", torch.int32, (model.num_tokens,)),),
        (Port("context", encoder.dtype, (model.num_tokens, width)),),
    )


def _vae_encoder(model: Model) -> Network:
    pictures, latents = _vae_ports(model)
    return Network(VAE_ENCODER, ExportedEncoder(model.vae), (pictures,), (latents,))


def _vae_decoder(model: Model) -> Network:
    pictures, latents = _vae_ports(model)
    return Network(VAE_DECODER, ExportedDecoder(model.vae), (latents,), (pictures,))


def _vae_ports(model: Model) -> tuple[Port, Port]:
    channels, height, width = model.latent_shape
    dtype = model.vae.dtype
    return Port("pictures", dtype, (model.side, model.side, 3)), Port("latents", dtype, (height, width, channels))


_MAKERS: Mapping[str, Callable[[Model], Network]] = {
    UNET: _unet,
    TEXT_ENCODER: _text_encoder,
    VAE_ENCODER: _vae_encoder,
    VAE_DECODER: _vae_decoder,
}


class ExportedUNet(nn.Module):
    """A UNet with adapters.

    Args:
        unet: a diffusers UNet2DConditionModel; it stays as it is, and shares its weights.
        adapters: whose gates are columns of an input, in this order.
    """

    def __init__(self, unet: nn.Module, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.gates = _Gates(len(adapters))
        self.unet = _with_plain_attention(with_shared_weights(unet))
        changes = [adapter.changes for adapter in adapters]
        for name, module in list(linear_maps(self.unet)):
            low_ranks = [by_name.get(name) for by_name in changes]
            if any(low_ranks):
                _replace(self.unet, name, _GatedMap(module, low_ranks, self.gates))
        embeddings = [adapter.guidance for adapter in adapters]
        self.has_scales = any(embeddings)
        if self.has_scales:
            inner = cast(Any, self.unet)
            inner.time_embedding = _GuidedTimeEmbedding(inner.time_embedding, embeddings, self.gates)

    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor, *rows: Tensor) -> Tensor:
        """The prediction of each row.

        Args:
            sample: [rows, h, w, in_channels].
            timesteps: float32 [rows].
            context: [rows, tokens, width].
            rows: where there are adapters float32 [rows, adapters], how far each counts; and where one of them takes
                them the guidance scales, float32 [rows, 2].

        Returns:
            [rows, h, w, out_channels].
        """
        self.gates.set(sample.dtype, *rows)
        try:
            pictures = sample.permute(0, 3, 1, 2)
            prediction: Tensor = self.unet(pictures, timesteps, encoder_hidden_states=context, return_dict=False)[0]
            return prediction.permute(0, 2, 3, 1).contiguous()
        finally:
            self.gates.set(sample.dtype)


class _Gates:
    """The gates of the rows that run now, in the shapes in which maps multiply by them."""

    def __init__(self, num_adapters: int) -> None:
        self._num_adapters = num_adapters
        self.scales: Tensor | None = None  # [rows, 2]
        self._gates: Tensor | None = None  # [rows, adapters]
        self._ready: dict[tuple[Sequence[int], int], Tensor] = {}

    def set(self, dtype: torch.dtype, gates: Tensor | None = None, scales: Tensor | None = None) -> None:
        """Those of the next forward pass; none: forgets those of the last."""
        self._gates = None if gates is None else gates.to(dtype)
        self.scales = None if scales is None else scales.clamp(min=_LEAST_SCALE)
        self._ready.clear()

    def column(self, adapter: int) -> Tensor:
        """Of one adapter, [rows, 1]."""
        assert self._gates is not None
        return self._gates[:, adapter : adapter + 1]

    def of(self, owners: Sequence[int], dims: int, channel_dim: int) -> Tensor:
        """The gate of each rank's owner, to be multiplied with a tensor of so many axes: [rows, …, ranks, …].

        One owner alone gives a single column, which counts for all its ranks.
        """
        key = (owners, dims)
        if key not in self._ready:
            assert self._gates is not None
            different = sorted(set(owners))
            if len(different) == 1:
                gates = self.column(different[0])
            else:
                gates = self._gates.index_select(1, torch.tensor(owners))
            shape = [1] * dims
            shape[0], shape[channel_dim] = gates.shape
            self._ready[key] = gates.reshape(shape)
        return self._ready[key]


class _GatedMap(nn.Module):
    """A linear map or convolution with the changes of all adapters as one pair of products.

    Args:
        base: the map.
        low_ranks: the change of each adapter; None: it has none.
        gates: of the rows.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, low_ranks: Sequence[LowRank | None], gates: _Gates) -> None:
        super().__init__()
        self.base = base
        self.gates = gates
        present = [(number, item) for number, item in enumerate(low_ranks) if item is not None]
        self.down = nn.Parameter(torch.cat([item.down.weight.detach() for _, item in present]), requires_grad=False)
        self.up = nn.Parameter(torch.cat([item.up.weight.detach() for _, item in present], dim=1), requires_grad=False)
        self.owners = tuple(number for number, item in present for _ in range(len(item.down.weight)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        if isinstance(self.base, nn.Linear):
            hidden = functional.linear(x, self.down) * self.gates.of(self.owners, x.dim(), x.dim() - 1)
            return result + functional.linear(hidden, self.up)
        hidden = functional.conv2d(x, self.down, None, self.base.stride, cast(Any, self.base.padding))
        return result + functional.conv2d(hidden * self.gates.of(self.owners, 4, 1), self.up)


class _GuidedTimeEmbedding(nn.Module):
    """The timestep's embedding, to which each adapter adds that of the guidance scales, as far as it counts."""

    def __init__(self, base: nn.Module, embeddings: Sequence[GuidanceEmbedding | None], gates: _Gates) -> None:
        super().__init__()
        self.base = base
        self.numbers = [number for number, item in enumerate(embeddings) if item is not None]
        self.embeddings = nn.ModuleList([item for item in embeddings if item is not None])
        self.gates = gates

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        result: Tensor = self.base(sample, condition)
        for number, embedding in zip(self.numbers, self.embeddings, strict=True):
            assert self.gates.scales is not None
            result = result + self.gates.column(number) * embedding(self.gates.scales)
        return result


class ExportedTextEncoder(nn.Module):
    """The states that a CLIP text encoder gives, of tokens that attend to those before them.

    Args:
        encoder: a transformers CLIPTextModel.
        num_tokens: of an instruction.
    """

    def __init__(self, encoder: Any, num_tokens: int) -> None:
        super().__init__()
        inner = getattr(encoder, "text_model", encoder)  # where older releases of transformers have it
        self.vocabulary = int(encoder.config.vocab_size)
        self.embeddings, self.layers, self.norm = inner.embeddings, inner.encoder.layers, inner.final_layer_norm
        future = torch.full((num_tokens, num_tokens), torch.finfo(encoder.dtype).min, dtype=encoder.dtype).triu(1)
        self.register_buffer("future", future)

    def forward(self, tokens: Tensor) -> Tensor:
        """[n, tokens, width] of int32 [n, tokens]."""
        embeddings = cast(Any, self.embeddings)
        positions = embeddings.position_embedding.weight[: tokens.shape[1]]
        x: Tensor = embeddings.token_embedding(tokens) + positions
        for layer in cast(Any, self.layers):
            x = x + self._attend(layer.self_attn, layer.layer_norm1(x))
            x = x + layer.mlp(layer.layer_norm2(x))
        result: Tensor = cast(Any, self.norm)(x)
        return result

    def _attend(self, attention: Any, x: Tensor) -> Tensor:
        heads = int(attention.num_heads)
        q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        found: Tensor = attention.out_proj(attend(q, k, v, heads, cast(Tensor, self.future)))
        return found


class ExportedEncoder(nn.Module):
    """The mean of the latents of pictures.

    Args:
        vae: a diffusers AutoencoderKL or AutoencoderTiny.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = _with_plain_attention(with_shared_weights(vae))
        self.channels = int(vae.config.latent_channels)

    def forward(self, pictures: Tensor) -> Tensor:
        """Latents [n, h, w, channels], not scaled, of pictures [n, H, W, 3], -1 to 1."""
        vae = cast(Any, self.vae)
        moments: Tensor = vae.encoder(pictures.permute(0, 3, 1, 2))
        if getattr(vae, "quant_conv", None) is not None:
            moments = vae.quant_conv(moments)
        return moments[:, : self.channels].permute(0, 2, 3, 1).contiguous()


class ExportedDecoder(nn.Module):
    """Pictures of latents as a sampler leaves them.

    Args:
        vae: a diffusers AutoencoderKL or AutoencoderTiny.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = _with_plain_attention(with_shared_weights(vae))
        self.factor = 1.0 / float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures [n, H, W, 3], about -1 to 1, of latents [n, h, w, channels]."""
        vae = cast(Any, self.vae)
        x = latents.permute(0, 3, 1, 2) * self.factor
        if self.shift:
            x = x + self.shift
        if getattr(vae, "post_quant_conv", None) is not None:
            x = vae.post_quant_conv(x)
        pictures: Tensor = vae.decoder(x)
        return pictures.permute(0, 2, 3, 1).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention of [n, tokens, width] each as two products and a softmax, which builders know for what they are.

    Args:
        q: queries.
        k: keys.
        v: values.
        heads: that share the width.
        mask: added to the scores, [tokens of q, tokens of k].
    """
    scores = (_by_head(q, heads) * (q.shape[2] // heads) ** -0.5) @ _by_head(k, heads).transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    found: Tensor = scores.softmax(dim=-1) @ _by_head(v, heads)
    return found.transpose(1, 2).reshape(q.shape)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[n, heads, tokens, width of a head]"""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


class _PlainAttention:
    """Diffusers' attention by `attend`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # diffusers passes it on  # noqa: ARG002
    ) -> Tensor:
        norms = (attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
        if attention_mask is not None or any(norm is not None and norm is not False for norm in norms):
            raise ValueError("has attention with a mask or norms of its own, which is not exported")
        is_picture = hidden_states.dim() == 4
        x = hidden_states.flatten(2).transpose(1, 2) if is_picture else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        source = x if encoder_hidden_states is None else encoder_hidden_states
        found: Tensor = attend(attn.to_q(x), attn.to_k(source), attn.to_v(source), int(attn.heads))
        found = attn.to_out[0](found)
        if is_picture:
            found = found.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            found = found + hidden_states
        if attn.rescale_output_factor != 1:
            found = found / float(attn.rescale_output_factor)
        return found


def _with_plain_attention(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if hasattr(part, "set_processor") and hasattr(part, "to_q"):
            cast(Any, part).set_processor(_PlainAttention())
    return module


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
