"""The fake's networks in torch, on a GPU: real kernels, streams and graphs around networks that need no TensorRT.

Nothing is allocated while they run, since a graph may be recorded that torch does not know of: what they need on the
way is made when a network first runs, before it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steploom_engine_worker.tensorrt import dlpack

_TYPES = {np.float16: "float16", np.float32: "float32", np.int32: "int32"}


class TorchDriver:
    """What `FakeTensorRT` asks of a driver, on the GPU that is there."""

    def __init__(self, index: int = 0) -> None:
        self._index = index

    def enqueue(self, stream: int, run: Callable[[], None]) -> None:
        """Puts what torch does into a stream."""
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)), torch.inference_mode():  # type: ignore[no-untyped-call]
            run()

    def array_at(self, address: int, dtype: Any, *shape: int) -> Tensor:
        """Device memory as a tensor."""
        return self._tensor(address, _TYPES[dtype], shape)

    def bytes_at(self, address: int, num_bytes: int) -> Tensor:
        """The same as bytes."""
        return self._tensor(address, "uint8", (num_bytes,))

    def _tensor(self, address: int, dtype: str, shape: tuple[int, ...]) -> Tensor:
        device = dlpack.CUDA, self._index
        tensor: Tensor = torch.utils.dlpack.from_dlpack(dlpack.export(address, shape, dtype, device, None))
        return tensor


class TorchNetworks:
    """Fills a network's output; see `fake.trt.compute` for what each is."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, str], Tensor] = {}

    def __call__(self, network: str, given: Mapping[str, Tensor], out: Tensor) -> None:
        """Of tensors on any device."""
        self._network, self._rows, self._device = network, len(out), out.device
        getattr(self, f"_{network}")(given, out)

    def _memory(self, name: str, *shape: int) -> Tensor:
        """Float32 memory of its own, the same for every run."""
        key = self._network, self._rows, name
        if key not in self._kept:
            self._kept[key] = torch.zeros(shape, device=self._device)
        return self._kept[key]

    def _constant(self, name: str, values: Tensor) -> Tensor:
        is_new = (self._network, self._rows, name) not in self._kept
        memory = self._memory(name, *values.shape)
        return memory.copy_(values) if is_new else memory

    def _unet(self, given: Mapping[str, Tensor], out: Tensor) -> None:
        rows, height, width, channels = out.shape
        tokens, states = given["context"].shape[1:]
        whole = self._memory("sample", rows, height, width, 2 * channels).copy_(given["sample"])
        context = self._memory("context", rows, tokens * states).copy_(given["context"].flatten(1))
        shift = self._memory("shift", rows)
        torch.div(given["timesteps"], 300.0, out=shift)
        shift.sin_()
        mean = self._memory("mean", rows)
        torch.mean(context, dim=1, out=mean)
        shift.add_(mean)
        if "gates" in given and given["gates"].shape[1]:
            shift.add_(self._gated(given, rows))
        made = self._memory("made", rows, height, width, channels)
        torch.mul(whole[..., :channels], 0.8, out=made)
        made.add_(whole[..., channels:], alpha=-0.3)
        made.add_(shift[:, None, None, None], alpha=0.1)
        out.copy_(made)

    def _gated(self, given: Mapping[str, Tensor], rows: int) -> Tensor:
        count = given["gates"].shape[1]
        strengths = self._constant("strengths", torch.arange(1, count + 1, dtype=torch.float32))
        weighted = self._memory("weighted", rows, count)
        torch.mul(given["gates"], strengths, out=weighted)
        gate, scale = self._memory("gate", rows), self._memory("scale", rows)
        torch.sum(weighted, dim=1, out=gate)
        torch.add(given["scales"][:, 0], given["scales"][:, 1], out=scale)
        return gate.mul_(scale.log_())

    def _text_encoder(self, given: Mapping[str, Tensor], out: Tensor) -> None:
        jobs, tokens, width = out.shape
        speeds = self._constant("speeds", 1.0 + torch.arange(width, dtype=torch.float32) / width)
        words = self._memory("words", jobs, tokens, 1).copy_(given["tokens"][..., None]).add_(1.0)
        states = self._memory("states", jobs, tokens, width)
        torch.mul(words, speeds, out=states)
        out.copy_(states.sin_())

    def _vae_encoder(self, given: Mapping[str, Tensor], out: Tensor) -> None:
        jobs, side = out.shape[:2]
        factor = given["pictures"].shape[1] // side
        pictures = self._memory("pictures", jobs, side, factor, side, factor, 3)
        pictures.copy_(given["pictures"].view(pictures.shape))
        means, grey = self._memory("means", jobs, side, side, 3), self._memory("grey", jobs, side, side)
        torch.mean(pictures, dim=(2, 4), out=means)
        torch.mean(means, dim=-1, out=grey)
        out[..., :3].copy_(means)
        out[..., 3].copy_(grey)

    def _vae_decoder(self, given: Mapping[str, Tensor], out: Tensor) -> None:
        jobs, side = given["latents"].shape[:2]
        factor = out.shape[1] // side
        colours = self._memory("colours", jobs, side, side, 3).copy_(given["latents"][..., :3]).tanh_()
        out.view(jobs, side, factor, side, factor, 3).copy_(colours[:, :, None, :, None, :])
