"""How large the inputs of a UNet's maps get, seen on jobs of its own: what their scales in e4m3 are made of.

The jobs are soft spots of colour, noise and plain grey, drawn by the model alone and with each of its adapters, along
all noise levels. They look like no user's pictures, and need not: most inputs come from a normalisation, a scale has
room to spare, and what lies beyond it saturates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from steploom_common.adapter import AdapterTraits
from steploom_engine_worker.engine import Job, Pixels
from steploom_engine_worker.model import Model
from steploom_engine_worker.preview import colour_spots
from steploom_engine_worker.torch_engine import TorchEngine
from steploom_kernels.fp8 import LARGEST

MARGIN = 4.0  # of what was seen, at least; the embedded model is off by 1.4 % at this and at 32 times this
STEPS = 20

# Maps whose inputs are made in a pass that can quantise them: the first of each product of such an input.
_SITES = (".attn1.to_q", ".attn2.to_q", ".ff.net.0.proj", ".ff.net.2")
_INSTRUCTIONS = ("", "make it a watercolour", "turn the background into a forest at night", "add a red hat")


def input_scales(model: Model, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The scales of the inputs that `FusedUNet` can take in e4m3, by the names of the maps.

    Args:
        model: it runs as it is, on the device, and stays as it is.
        device: where.
        dtype: of its networks.

    Raises:
        ValueError: an input is not finite.
    """
    return {name: scale_for(seen) for name, seen in largest_inputs(model, device, dtype).items()}


def scale_for(largest: float) -> float:
    """A power of two, which rounds nothing, by which values have room above the largest that was seen.

    Raises:
        ValueError: the largest is not finite.
    """
    if not math.isfinite(largest):
        raise ValueError("the model's own jobs give values that are not finite")
    return 2.0 ** math.ceil(math.log2(MARGIN * largest / LARGEST)) if largest else 1.0


def largest_inputs(model: Model, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The largest absolute value of each such input over the jobs of the calibration."""
    adapters: dict[str, AdapterTraits] = {"": AdapterTraits()}
    adapters |= {item.name: item.manifest.traits for item in model.adapters}
    pictures = _pictures(model.side)
    observer = Observer(model, len(pictures), STEPS, device, dtype, merge_adapters=False)
    for name, traits in adapters.items():
        scale = _within(model.defaults.guidance_scale, traits.min_guidance_scale, traits.max_guidance_scale)
        image_scale = _within(
            model.defaults.image_guidance_scale, traits.min_image_guidance_scale, traits.max_image_guidance_scale
        )
        steps = min(STEPS, traits.max_steps, observer.model.max_steps)
        jobs = [
            Job(text, pixels, steps, scale, image_scale, seed=number, adapter=name)
            for number, (text, pixels) in enumerate(zip(_INSTRUCTIONS, pictures, strict=True))
        ]
        observer.draw(jobs)
    return observer.largest


class Watch:
    """Remembers the largest inputs of a UNet's maps that can be in e4m3.

    Args:
        unet: one of diffusers', with or without adapters, on its device.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._seen: dict[str, Tensor] = {}
        self._hooks = []
        device = next(unet.parameters()).device
        for name, module in unet.named_modules():
            if name.endswith(_SITES):
                self._seen[name] = torch.zeros((), device=device)
                self._hooks.append(module.register_forward_pre_hook(partial(self._see, name)))

    @property
    def largest(self) -> dict[str, float]:
        """Absolute values, by the names of the maps."""
        return {name: float(seen) for name, seen in self._seen.items()}

    def end(self) -> None:
        """Leaves the UNet as it was."""
        for hook in self._hooks:
            hook.remove()

    def _see(self, name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        torch.maximum(self._seen[name], inputs[0].abs().amax().float(), out=self._seen[name])


class Observer(TorchEngine):
    """An engine that tells how large inputs were."""

    def _build_networks(self, model: Model, merge_adapters: bool) -> None:
        super()._build_networks(model, merge_adapters)
        self._watch = Watch(self._unet.unet)  # whose maps are a copy, over the same weights

    @property
    def largest(self) -> dict[str, float]:
        """Absolute values of all jobs so far, by the names of the maps."""
        return self._watch.largest

    def draw(self, jobs: Sequence[Job]) -> None:
        """All steps of jobs of one step count, at most one for each slot."""
        slots = list(range(len(jobs)))
        for slot, job in enumerate(jobs):
            self.admit(slot, job)
        self.encode(slots).wait()
        for step in range(jobs[0].steps):
            self.denoise(slots, [step] * len(slots)).wait()
        for slot in slots:
            self.release(slot)


def _pictures(side: int) -> list[Pixels]:
    spots = ((colour_spots(side) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return [*spots.numpy(), noise, np.full((side, side, 3), 128, np.uint8)]


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
