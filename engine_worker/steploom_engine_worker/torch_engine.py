"""The engine on torch: an InstructPix2Pix (arXiv 2211.09800) whose jobs each are at their own step."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steploom_common.settings import ConfigError
from steploom_engine_worker.adapter import AdaptedUNet, load_adapter, merged_unet
from steploom_engine_worker.adapter_files import AdapterFiles, read_adapter
from steploom_engine_worker.adapter_manifest import adapter_digest, read_adapter_manifest
from steploom_engine_worker.adapter_shelf import Shelf
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.description import model_info
from steploom_engine_worker.engine import (
    AdapterVersion,
    Costs,
    Done,
    HostMemory,
    Job,
    MemoryUse,
    ModelInfo,
    Pending,
    Pixels,
    ReadAdapter,
)
from steploom_engine_worker.lane import wait_for_device
from steploom_engine_worker.loadable import adapter_folder, base_weights, check_unchanged
from steploom_engine_worker.model import Model, load_model
from steploom_engine_worker.model_files import model_root
from steploom_engine_worker.orders import Orders
from steploom_engine_worker.preview import fit_latent_colours, latent_colours
from steploom_engine_worker.slots import Slots, adapter_segments
from steploom_kernels.gather_rows import gather_rows
from steploom_kernels.guidance_step import guidance_step
from steploom_kernels.philox_noise import philox_noise
from steploom_kernels.pixels_in import pixels_in
from steploom_kernels.pixels_out import pixels_out


def load_torch_engine(config: WorkerConfig) -> TorchEngine:
    """The engine that the settings describe. Sets torch's thread count for the calling thread.

    Raises:
        ModelError: the model directory is wrong.
        ConfigError: torch cannot use the device, or not with the type.
    """
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    device, dtype = device_of(config), getattr(torch, config.dtype)
    if dtype is torch.float16 and device.type == "cpu":
        raise ConfigError("worker.dtype", "is float16, must be float32 or bfloat16 on a CPU")
    model = load_model(model_root(config.model), dtype)
    return TorchEngine(
        model, config.num_slots, config.max_steps, device, dtype, config.merge_adapters, config.spare_adapters
    )


def device_of(config: WorkerConfig) -> torch.device:
    """The device that the settings name.

    Raises:
        ConfigError: torch cannot use it.
        RuntimeError: somebody else has its memory, which is no fault of the setting.
    """
    try:
        return usable_device(config.device)
    except ValueError as error:
        if error.__context__ is not None and "out of memory" in str(error.__context__):
            raise error.__context__ from None
        raise ConfigError("worker.device", f"is {config.device!r}, {error}") from None


def usable_device(name: str) -> torch.device:
    """The device of this name, with its number where devices of its kind have one.

    Raises:
        ValueError: torch cannot use it; the message says why.
    """
    try:
        return torch.empty(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"which torch cannot use: {str(error).splitlines()[0]}") from None


def weights_bytes(modules: Iterable[nn.Module]) -> int:
    """Memory of their weights, which several of them may share."""
    storages = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class TorchEngine:
    """See `engine.Engine`. Rows are computed exactly as many as the jobs need: a bucket is not padded."""

    _num_spare = 0  # slots beyond those of jobs

    def __init__(
        self,
        model: Model,
        num_slots: int,
        max_steps: int,
        device: torch.device,
        dtype: torch.dtype,
        merge_adapters: bool = True,
        spare_adapters: int = 0,
    ) -> None:
        self._networks = model
        self._num_slots = num_slots
        self._max_steps = min(max_steps, model.schedule.num_train_timesteps)
        self._model = model_info(model, self._max_steps)
        self._shelf = Shelf(model.adapters, spare_adapters)
        self._orders = Orders(model, self._max_steps, self._shelf)
        self._merges_adapters = merge_adapters
        self._device = device
        self._dtype = dtype
        self._instructions = [""] * num_slots
        for network in (model.unet, model.vae, model.text_encoder):
            network.to(device)
        for network in (model.unet, model.vae):
            network.to(memory_format=torch.channels_last)
        width = int(model.text_encoder.config.hidden_size)
        text_shape = (model.num_tokens, width)
        all_slots = num_slots + self._num_spare
        self.slots = Slots(all_slots, self._max_steps, model.latent_shape, text_shape, model.side, device, dtype)
        for item in model.adapters:
            item.network.to(device, memory_format=torch.channels_last)
        self._scaling_factor = float(model.vae.config.scaling_factor)
        self._build_networks(model, merge_adapters)
        self._fill_shared()

    def _build_networks(self, model: Model, merge_adapters: bool) -> None:
        self._unet = AdaptedUNet(model.unet, [item.network for item in model.adapters], merge_adapters)

    @torch.inference_mode()
    def _fill_shared(self) -> None:
        self.slots.text[-1] = self._encode_text([""])[0]
        self._colour_map = fit_latent_colours(
            lambda pictures: self._encode_pictures(pictures.to(self._device, self._dtype)).cpu() * self._scaling_factor,
            self._networks.side,
        )

    @property
    def name(self) -> str:
        return "torch"

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def max_pending(self) -> int:
        return 0

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def known_costs(self) -> Costs | None:
        return None

    @property
    def memory(self) -> MemoryUse:
        is_cuda = self._device.type == "cuda"
        free, total = torch.cuda.mem_get_info(self._device) if is_cuda else (0, 0)
        return MemoryUse(total, free, self.slots.num_bytes, weights_bytes(self._modules()))

    def _modules(self) -> Iterator[nn.Module]:
        """All networks, some perhaps in others."""
        networks = self._networks
        yield from (item for item in (networks.vae, networks.text_encoder, self._unet) if item is not None)

    @property
    def progress(self) -> tuple[int, int]:
        return 0, 0

    def prepare(self) -> Costs | None:
        return None

    @property
    def model(self) -> ModelInfo:
        return self._model

    def read_adapter(self, name: str) -> ReadAdapter:
        root = self._networks.root
        folder = adapter_folder(root, name)
        digest = adapter_digest(folder)
        base = base_weights(root, self._networks.base_digest)
        manifest = read_adapter_manifest(folder, base)
        version = AdapterVersion(name, digest, manifest.traits)
        if self._shelf.holds(version):
            return ReadAdapter(version, manifest)
        number = self._shelf.place()
        network = self._loaded(number, read_adapter(folder, base))
        check_unchanged(folder, digest)
        return ReadAdapter(version, manifest, number, network)

    def _loaded(self, number: int, files: AdapterFiles) -> Any:
        """What `_take` needs of an adapter; on a thread beside that of the stages."""
        del number
        unet = self._networks.unet
        network = load_adapter(unet, files).to(self._device, self._dtype)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network, merged_unet(unet, network) if self._merges_adapters else None

    def put_adapter(self, adapter: ReadAdapter) -> None:
        if self._shelf.holds(adapter.version):
            self._shelf.renew(adapter.version)
        else:
            self._shelf.check(adapter.number)
            self._take(adapter.number, adapter.network)
            self._shelf.put(adapter.number, adapter.version, adapter.manifest)
        self._model = dataclasses.replace(self._model, versions=self._shelf.versions)

    def _take(self, number: int, network: Any) -> None:
        """Makes the rows of a number those of an adapter that was `_loaded`.

        Raises:
            AdapterRefused: there is no memory for it; nothing has changed.
            Exception: the device cannot go on.
        """
        self._unet.put(number, *network)

    def drop_adapter(self, name: str, digest: str) -> None:
        number = self._shelf.drop(name, digest)
        if number is not None:
            self._leave(number)
            self._model = dataclasses.replace(self._model, versions=self._shelf.versions)

    def _leave(self, number: int) -> None:
        """Forgets the adapter of a number."""
        self._unet.drop(number)

    @torch.inference_mode()
    def admit(self, slot: int, job: Job) -> None:
        self.slots.put_order(slot, self._orders.order(job), self._order_memory())
        self._put_pixels(slot, job.pixels)
        self._instructions[slot] = job.instruction

    def _order_memory(self) -> Tensor | None:
        """Where the host stages an order."""
        return None

    def _put_pixels(self, slot: int, pixels: Pixels) -> None:
        self.slots.pixels[slot] = torch.from_numpy(pixels.copy())

    @torch.inference_mode()
    def encode(self, slots: Sequence[int]) -> Done | Pending:
        index = self._index(slots)
        image_latents = self._encode_pictures(pixels_in(self.slots.pixels[index], self._dtype))
        text = self._encode_text([self._instructions[slot] for slot in slots])
        failures = {
            **_not_finite(image_latents, slots, "the VAE's encoder"),
            **_not_finite(text, slots, "the text encoder"),
        }
        self.slots.image_latents[index] = image_latents
        self.slots.text[index] = text
        shape = self._model.latent_shape
        noise = philox_noise(self.slots.seeds[index], torch.zeros_like(index), math.prod(shape))
        noise *= self.slots.initial_scale[index, None]
        self.slots.latents[index] = noise.view(-1, *shape)
        self.slots.history[index] = 0.0
        return Done(failures=failures)

    @torch.inference_mode()
    def denoise(self, slots: Sequence[int], steps: Sequence[int], previewed: Sequence[int] = ()) -> Done | Pending:
        # the rows of an adapter must stand together
        order = sorted(range(len(slots)), key=lambda job: self.slots.adapters[slots[job]])
        slots, steps = [slots[job] for job in order], [steps[job] for job in order]
        row_jobs, row_branches, job_rows = self.slots.rows(slots)
        index, step = self._index(slots), self._index(steps)
        jobs = self._index(row_jobs)
        sample, text = gather_rows(
            self.slots.latents, self.slots.image_latents, self.slots.text, index[jobs], self._index(row_branches)
        )
        times = self.slots.timesteps[index, step][jobs]
        self._unet.gates.segments = adapter_segments([self.slots.adapters[slots[job]] for job in row_jobs])
        self._unet.gates.scales = self.slots.scales[index][jobs]
        prediction = self._unet(sample, times, text)
        guidance_step(
            prediction,
            torch.tensor(job_rows, device=self._device),
            self.slots.weights[index],
            self.slots.coefficients[index, step],
            index,
            self.slots.latents,
            self.slots.history,
        )
        failures = _not_finite(prediction, [slots[job] for job in row_jobs], "the UNet")
        estimates = {slot: self.slots.history[slot].to("cpu", copy=True) for slot in previewed}
        return Done(failures=failures, previews=self._previews(estimates))

    @torch.inference_mode()
    def decode(self, slots: Sequence[int]) -> Done | Pending:
        image = self._decode_latents(self.slots.latents[self._index(slots)])
        failures = _not_finite(image, slots, "the VAE's decoder")
        return Done(list(pixels_out(image).cpu().numpy()), failures)

    def _previews(self, estimates: Mapping[int, Tensor]) -> dict[int, Callable[[], Pixels]]:
        """Of the finished latents of jobs, by slot, as they are estimated on the way; they lie on the host."""
        return {slot: partial(self._preview, estimate) for slot, estimate in estimates.items()}

    @torch.inference_mode()
    def _preview(self, estimate: Tensor) -> Pixels:
        pixels: Pixels = pixels_out(latent_colours(estimate, self._colour_map))[0].numpy()
        return pixels

    def release(self, slot: int) -> None:
        self._instructions[slot] = ""

    def share(self, memory: HostMemory) -> None:
        """Nothing: pictures are copied before `admit` returns."""

    def unshare(self, memory: HostMemory) -> None:
        """Nothing."""

    def check(self) -> None:
        if self._device.type == "cuda":
            wait_for_device(self._device)

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _encode_pictures(self, pictures: Tensor) -> Tensor:
        """The latents of pictures, not scaled: the mode where the VAE gives a distribution."""
        encoded = self._networks.vae.encode(pictures)
        latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures [n, 3, side, side], about -1 to 1, of latents as the sampler leaves them."""
        vae = self._networks.vae
        latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        latents = latents.to(self._dtype).contiguous(memory_format=torch.channels_last)
        image: Tensor = vae.decode(latents, return_dict=False)[0]
        return image

    def _encode_text(self, instructions: list[str]) -> Tensor:
        tokens = self._tokenise(instructions)
        mask = self._place(tokens.attention_mask) if self._text_has_mask else None
        return self._text_states(self._place(tokens.input_ids), mask)

    @property
    def _text_has_mask(self) -> bool:
        return bool(getattr(self._networks.text_encoder.config, "use_attention_mask", False))

    def _tokenise(self, instructions: list[str]) -> Any:
        """Tokens and masks, int64 [jobs, tokens] each, on the host."""
        return self._networks.tokenizer(
            instructions,
            padding="max_length",
            max_length=self._networks.num_tokens,
            truncation=True,
            return_tensors="pt",
        )

    def _text_states(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[jobs, tokens, width] of tokens on the device."""
        text: Tensor = self._networks.text_encoder(tokens, attention_mask=mask)[0]
        return text

    def _place(self, tokens: Tensor) -> Tensor:
        """Tokens [jobs, tokens] of the host on the device."""
        return tokens.to(self._device)


def _not_finite(values: Tensor, slots: Sequence[int], source: str) -> dict[int, str]:
    """The slots of which a network gave values that are not finite: their jobs must end, and not spread.

    Args:
        values: [n, ...].
        slots: of each of the n.
        source: the network.
    """
    are_finite = torch.isfinite(values).flatten(1).all(dim=1).tolist()
    reason = f"{source} gave values that are not finite"
    return {slot: reason for slot, is_finite in zip(slots, are_finite, strict=True) if not is_finite}
