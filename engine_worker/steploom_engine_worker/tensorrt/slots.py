"""Device memory of all jobs for engines without torch, made once: nothing is allocated for a job.

The arrays are those of the torch engine's slots, by the same names. What a job brings along is written into memory that
is its slot's own, and copied from there in the order of a stream: a slot's next job waits for its last one anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steploom_common.guidance import Branch
from steploom_engine_worker.engine import Pixels
from steploom_engine_worker.orders import Order
from steploom_engine_worker.rows import NO_ADAPTER, TickRows, tick_rows
from steploom_engine_worker.tensorrt.arrays import ITEM_BYTES, DeviceArray, allocate
from steploom_engine_worker.tensorrt.device import Device, Stream

NUM_COEFFICIENTS = 6  # of a step; see steploom_kernels.guidance_step


class Slots:
    """Arrays indexed by slot. State is float32 whatever the networks compute in; conditions are of the networks' type.

    Args:
        device: where.
        num_slots: jobs at once.
        max_steps: steps of the longest job.
        latent_shape: channels, height, width.
        text_shape: tokens, width.
        side: pixels of a picture.
        dtype: of the conditions: float16, bfloat16 or float32.
    """

    def __init__(
        self,
        device: Device,
        num_slots: int,
        max_steps: int,
        latent_shape: tuple[int, int, int],
        text_shape: tuple[int, int],
        side: int,
        dtype: str,
    ) -> None:
        self.num_pixels = latent_shape[1] * latent_shape[2]  # of latents
        shapes = _shapes(num_slots, max_steps, latent_shape, text_shape, side, dtype)
        arrays = {name: allocate(device, *shape) for name, shape in shapes.items()}
        self.pixels = arrays["pixels"]
        self.latents = arrays["latents"]
        self.history = arrays["history"]  # the estimate of the finished latents
        self.image_latents = arrays["image_latents"]
        self.text = arrays["text"]
        self.timesteps = arrays["timesteps"]
        self.coefficients = arrays["coefficients"]
        self.weights = arrays["weights"]
        self.scales = arrays["scales"]  # text and picture guidance
        self.initial_scale = arrays["initial_scale"]
        self.seeds = arrays["seeds"]
        self.adapter_numbers = arrays["adapter_numbers"]
        self.gates = arrays["gates"]  # how far the adapter counts
        self.adapters: list[int] = [NO_ADAPTER] * num_slots  # the host's copy: numbers in the model
        self._branches: list[tuple[Branch, ...]] = [()] * num_slots
        self._staged = {name: device.pinned(item.shape, item.dtype) for name, item in self._brought().items()}

    def __repr__(self) -> str:
        return f"Slots({len(self.adapters)}, {self.num_bytes} bytes)"

    def _brought(self) -> dict[str, DeviceArray]:
        """What a job brings along."""
        names = (
            "pixels", "timesteps", "coefficients", "weights", "scales", "initial_scale", "seeds", "adapter_numbers",
            "gates",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(item.num_bytes for item in self.exported().values())

    def exported(self) -> dict[str, DeviceArray]:
        """All arrays by their names, for other libraries: each at one address for good."""
        return {name: item for name, item in vars(self).items() if isinstance(item, DeviceArray)}

    def put_order(self, slot: int, order: Order, stream: Stream) -> None:
        """A job's course, scales and adapter, the branches of its rows, and its seed."""
        steps = len(order.table.timesteps)
        self.adapters[slot] = order.adapter
        self._branches[slot] = tuple(order.weights)
        self._put(slot, "timesteps", order.table.timesteps, stream, steps)
        self._put(slot, "coefficients", order.table.coefficients, stream, steps)
        self._put(slot, "initial_scale", order.table.initial_scale, stream)
        self._put(slot, "weights", [order.weights.get(branch, 0.0) for branch in Branch], stream)
        self._put(slot, "scales", [order.guidance_scale, order.image_guidance_scale], stream)
        self._put(slot, "seeds", np.array(order.seed, np.uint64).view(np.int64), stream)
        self._put(slot, "adapter_numbers", order.adapter, stream)
        self._put(slot, "gates", float(order.adapter != NO_ADAPTER), stream)

    def put_pixels(self, slot: int, pixels: Pixels, stream: Stream) -> None:
        """A job's picture, which the host may forget at once."""
        self._put(slot, "pixels", pixels, stream)

    def _put(self, slot: int, name: str, values: Any, stream: Stream, count: int | None = None) -> None:
        """Writes the item of a slot, or the first of its values."""
        array, staged = getattr(self, name), self._staged[name]
        item: NDArray[Any] = staged[slot : slot + 1].reshape(-1) if count is None else staged[slot, :count].reshape(-1)
        item[:] = np.asarray(values).reshape(-1)
        stream.copy_in(array.address + slot * array.stride * ITEM_BYTES[array.dtype], item)

    def rows(self, slots: Sequence[int]) -> TickRows:
        """The UNet rows of a tick: see `rows.tick_rows`."""
        return tick_rows([self._branches[slot] for slot in slots])


def slot_bytes(
    max_steps: int, latent_shape: tuple[int, int, int], text_shape: tuple[int, int], side: int, dtype: str
) -> int:
    """Device memory that one more slot takes; for arguments see `Slots`."""
    one, two = (
        sum(math.prod(shape) * ITEM_BYTES[kind] for shape, kind in shapes.values())
        for shapes in (_shapes(count, max_steps, latent_shape, text_shape, side, dtype) for count in (1, 2))
    )
    return two - one


def _shapes(
    num_slots: int,
    max_steps: int,
    latent_shape: tuple[int, int, int],
    text_shape: tuple[int, int],
    side: int,
    dtype: str,
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Of each array shape and type."""
    single = "float32"
    return {
        "pixels": ((num_slots, side, side, 3), "uint8"),
        "latents": ((num_slots, *latent_shape), single),
        "history": ((num_slots, *latent_shape), single),
        # one more than slots: the last stands for the empty picture, and for the empty instruction
        "image_latents": ((num_slots + 1, *latent_shape), dtype),
        "text": ((num_slots + 1, *text_shape), dtype),
        "timesteps": ((num_slots, max_steps), single),
        "coefficients": ((num_slots, max_steps, NUM_COEFFICIENTS), single),
        "weights": ((num_slots, len(Branch)), single),
        "scales": ((num_slots, 2), single),
        "initial_scale": ((num_slots,), single),
        "seeds": ((num_slots,), "int64"),
        "adapter_numbers": ((num_slots,), "int32"),
        "gates": ((num_slots,), single),
    }
