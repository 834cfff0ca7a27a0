"""What a worker without torch needs of a model beside its engines: see `tensorrt.host`, which reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.model import Model
from steploom_engine_worker.preview import fit_latent_colours
from steploom_engine_worker.tensorrt.host import CONSTANTS, FORMAT, TOKENIZER, Host, read_host
from steploom_engine_worker.tensorrt.plan_store import write_whole

# In two scripts, with what tokenizers treat in different ways: nothing at all, signs, numbers, capitals, and too much.
_SENTENCES = (
    "",
    "Make the hair blond!",
    "what's  this? 3 hats\nand a cat",
    "머리를 금발로 바꿔 줘",
    "a very long " * 100,
)


def write_host(folder: Path, model: Model) -> Host:
    """Writes tokenizer and constants of a model into a folder, each whole or not at all; and reads them back.

    Raises:
        ModelError: the tokenizer is of a kind that needs its own library, or reads otherwise what was written.
    """
    tokenizer = model.tokenizer
    if tokenizer.pad_token_id is None:
        raise ModelError(Path(tokenizer.name_or_path), "has no pad_token, with which instructions are filled up")
    table = {
        "format": FORMAT,
        "num_tokens": model.num_tokens,
        "pad_id": tokenizer.pad_token_id,
        "pad_token": tokenizer.pad_token,
        "colour_map": _colour_map(model).tolist(),
    }
    write_whole(folder / TOKENIZER, _fast(tokenizer).to_str().encode())
    write_whole(folder / CONSTANTS, (json.dumps(table, indent=1) + "\n").encode())
    host = read_host(folder)
    _check_tokens(host, model)
    return host


def _fast(tokenizer: Any) -> Any:
    """A tokenizer of the library that both read; one in plain Python is made anew in it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return backend
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    try:
        return convert_slow_tokenizer(tokenizer)
    except ValueError as error:
        raise ModelError(Path(tokenizer.name_or_path), f"cannot be used without its library: {error}") from None


def _check_tokens(host: Host, model: Model) -> None:
    for sentence in _SENTENCES:
        wanted = model.tokenizer(
            [sentence], padding="max_length", max_length=model.num_tokens, truncation=True
        ).input_ids
        if host.tokens([sentence]).tolist() != wanted:
            raise ModelError(
                Path(model.tokenizer.name_or_path), f"reads {sentence[:40]!r} otherwise than what was written of it"
            )


@torch.inference_mode()
def _colour_map(model: Model) -> Tensor:
    """Of the sampler's latents; on the CPU, in the type of the VAE."""
    vae = model.vae
    weight = next(vae.parameters())

    def encode(pictures: Tensor) -> Tensor:
        encoded = vae.encode(pictures.to(weight.device, weight.dtype))
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents.cpu() * float(vae.config.scaling_factor)

    return fit_latent_colours(encode, model.side)
