"""A folder of engines that the fakes run: what `steploom build-engine` would write, without a builder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steploom_engine_worker.tensorrt.fake.trt import plan_bytes
from steploom_engine_worker.tensorrt.host import CONSTANTS, FORMAT, TOKENIZER
from steploom_engine_worker.tensorrt.networks import TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER
from steploom_engine_worker.tensorrt.plan_store import Plan, PlanStore, TensorSpec, add_file
from steploom_kernels.launch_recipe import MANIFEST, Argument, File, Kernel, Manifest

_WORDS = ("<pad>", "<unk>", "make", "the", "hair", "blond", "hat", "a", "red", "put", "on", "sunglasses", "warm", "up")


@dataclass(frozen=True)
class FakePlans:
    """What engines a folder is to hold; the shapes are those of a tiny model."""

    model_digest: str
    side: int = 64  # pixels
    latent_side: int = 8
    channels: int = 4
    text_shape: tuple[int, int] = (16, 32)  # tokens, width
    adapters: tuple[str, ...] = ()
    unet_buckets: Sequence[int] = (1, 3, 6, 12)
    encode_buckets: Sequence[int] = (1, 4)
    decode_buckets: Sequence[int] = (1, 4)
    is_shared: bool = False  # one plan a network, with a profile a bucket
    flavour: str = "tensorrt"
    version: str = "10.9.0"
    capability: tuple[int, int] = (9, 0)

    def tensors(self, network: str) -> tuple[TensorSpec, ...]:
        """Of a network."""
        half = "float16"
        latents: tuple[int, ...] = (-1, self.latent_side, self.latent_side, self.channels)
        pictures, context = (-1, self.side, self.side, 3), (-1, *self.text_shape)
        given: dict[str, tuple[str, tuple[int, ...]]]
        made: tuple[str, tuple[int, ...]]
        if network == TEXT_ENCODER:
            given, made = {"tokens": ("int32", (-1, self.text_shape[0]))}, ("context", context)
        elif network == VAE_ENCODER:
            given, made = {"pictures": (half, pictures)}, ("latents", latents)
        elif network == VAE_DECODER:
            given, made = {"latents": (half, latents)}, ("pictures", pictures)
        else:
            given = {
                "sample": (half, (*latents[:3], 2 * self.channels)),
                "timesteps": ("float32", (-1,)),
                "context": (half, context),
            }
            if self.adapters:
                given |= {"gates": ("float32", (-1, len(self.adapters))), "scales": ("float32", (-1, 2))}
            made = "prediction", latents
        inputs = [TensorSpec(name, dtype, shape, True) for name, (dtype, shape) in given.items()]
        return (*inputs, TensorSpec(made[0], half, made[1], False))

    def write(self, folder: Path) -> PlanStore:
        """Puts all of it into a folder."""
        store = PlanStore(folder, self.model_digest, "fp16", self.adapters)
        for network, buckets in (
            (TEXT_ENCODER, self.encode_buckets),
            (VAE_ENCODER, self.encode_buckets),
            (UNET, self.unet_buckets),
            (VAE_DECODER, self.decode_buckets),
        ):
            for own in [tuple(buckets)] if self.is_shared else [(bucket,) for bucket in buckets]:
                store = store.with_plan(self._plan(folder, network, own))
        store.write()
        write_fake_host(folder, self.text_shape[0], self.channels)
        write_fake_kernels(store.kernels, self.capability)
        return store

    def _plan(self, folder: Path, network: str, buckets: tuple[int, ...]) -> Plan:
        tensors = self.tensors(network)
        content = plan_bytes(network, buckets, [(item.name, item.dtype, item.shape, item.is_input) for item in tensors])
        file = add_file(folder, content)
        return Plan(
            network=network,
            buckets=buckets,
            file=file,
            num_bytes=len(content),
            tensors=tensors,
            flavour=self.flavour,
            version=self.version,
            capability=self.capability,
            key=file,
        )


def write_fake_host(folder: Path, num_tokens: int, channels: int) -> None:
    """Constants, and a tokenizer that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / TOKENIZER))
    colours = [[float(channel == colour) for colour in range(3)] for channel in range(channels + 1)]
    constants = {"format": FORMAT, "num_tokens": num_tokens, "pad_id": 0, "pad_token": "<pad>", "colour_map": colours}
    (folder / CONSTANTS).write_text(json.dumps(constants))


def write_fake_kernels(folder: Path, capability: tuple[int, int]) -> None:
    """What an export would write, of the very variants that it would compile; the cubins are for the fake driver."""
    from steploom_kernels.aot import HIDDEN, grid_names
    from steploom_kernels.operations import all_variants

    folder.mkdir(parents=True, exist_ok=True)
    kernels = [_kernel(folder, variant, capability, HIDDEN, grid_names(variant)) for variant in all_variants()]
    (folder / MANIFEST).write_text(Manifest("fake", {}, tuple(kernels)).to_json())


def _kernel(
    folder: Path, variant: Any, capability: tuple[int, int], hidden: tuple[str, ...], names: Iterable[str]
) -> Kernel:
    entry = getattr(variant.kernel, "__name__", None) or variant.kernel.fn.__name__
    target = f"sm_{capability[0]}{capability[1]}"
    arguments = [(name, kind) for name, kind in variant.signature.items() if kind != "constexpr"]
    image = json.dumps({"kernel": entry, "arguments": arguments, "constants": dict(variant.constants)}).encode()
    file = File(f"{variant.name}.{target}.cubin", len(image), hashlib.sha256(image).hexdigest())
    (folder / file.name).write_bytes(image)
    return Kernel(
        name=variant.name,
        target=target,
        entry=entry,
        cubin=file,
        ptx=file,
        ptx_version="0",
        arguments=tuple(Argument(name, kind, name in variant.aligned) for name, kind in arguments),
        hidden=hidden,
        constants=dict(variant.constants),
        grid=variant.grid,
        sizes=tuple(sorted(set(names) - set(variant.signature))),
        threads=32 * variant.num_warps,
        shared_bytes=0,
        registers=None,
        spilled_bytes=None,
    )
