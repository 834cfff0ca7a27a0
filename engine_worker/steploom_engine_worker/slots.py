"""Device memory of all jobs, made once: nothing is allocated for a job."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from steploom_common.guidance import Branch
from steploom_engine_worker.orders import Order
from steploom_engine_worker.rows import NO_ADAPTER, TickRows, tick_rows
from steploom_kernels.guidance_step import NUM_COEFFICIENTS
from steploom_kernels.philox_noise import as_int64


class Slots:
    """Arrays indexed by slot. State is float32 whatever the networks compute in; conditions are of the networks' type.

    Args:
        num_slots: jobs at once.
        max_steps: steps of the longest job.
        latent_shape: channels, height, width.
        text_shape: tokens, width.
        side: pixels of a picture.
        device: where.
        dtype: of the conditions.
    """

    def __init__(
        self,
        num_slots: int,
        max_steps: int,
        latent_shape: tuple[int, int, int],
        text_shape: tuple[int, int],
        side: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.pixels = zeros(num_slots, side, side, 3, dtype=torch.uint8)
        self.latents = zeros(num_slots, *latent_shape)
        self.history = zeros(num_slots, *latent_shape)  # the estimate of the finished latents
        # one more than slots: the last stands for the empty picture, and for the empty instruction
        self.image_latents = zeros(num_slots + 1, *latent_shape, dtype=dtype)
        self.text = zeros(num_slots + 1, *text_shape, dtype=dtype)
        self.timesteps = zeros(num_slots, max_steps)
        self.coefficients = zeros(num_slots, max_steps, NUM_COEFFICIENTS)
        self.weights = zeros(num_slots, len(Branch))
        self.scales = zeros(num_slots, 2)  # text and picture guidance
        self.initial_scale = zeros(num_slots)
        self.seeds = zeros(num_slots, dtype=torch.int64)
        self.adapter_numbers = torch.full((num_slots,), NO_ADAPTER, dtype=torch.int32, device=device)
        self.gates = zeros(num_slots)  # how far the adapter counts
        self._branches: list[tuple[Branch, ...]] = [()] * num_slots
        self.adapters: list[int] = [NO_ADAPTER] * num_slots  # the host's copy: numbers in the model

    @property
    def num_bytes(self) -> int:
        """Memory of all arrays."""
        return sum(item.nbytes for item in self.exported().values())

    def exported(self) -> dict[str, Tensor]:
        """All arrays by their names, for runtimes other than torch: contiguous, each at one address for good.

        Nothing is copied on the way: `data_ptr()` is what TensorRT's `set_tensor_address` takes; `__dlpack__()` gives a
        capsule for `from_dlpack` of numpy, CuPy or torch, and what comes from there goes back by `torch.from_dlpack`
        (https://dmlc.github.io/dlpack/latest). An array knows nothing of order: who reads or writes one does it in the
        lane whose turn it is (see `lane`), and gives that lane's stream to `__dlpack__`.
        """
        return {name: item for name, item in vars(self).items() if isinstance(item, Tensor)}

    @property
    def order_size(self) -> int:
        """Numbers that `put_order` stages at most."""
        return (1 + NUM_COEFFICIENTS) * self.timesteps.shape[1] + len(Branch) + 2

    def put_order(self, slot: int, order: Order, staged: Tensor | None = None) -> None:
        """A job's course, scales and adapter, the branches of its rows, and its seed.

        Args:
            slot: of the job.
            order: what it asks for.
            staged: float32 [order_size] of the host, from which a device copies by itself, and which stays as it is
                until it has. None: memory of its own.
        """
        table = order.table
        steps = len(table.timesteps)
        parts = (
            (self.timesteps[slot, :steps], table.timesteps),
            (self.coefficients[slot, :steps], table.coefficients.reshape(-1)),
            (self.scales[slot], [order.guidance_scale, order.image_guidance_scale]),
            (self.weights[slot], [order.weights.get(branch, 0.0) for branch in Branch]),
        )
        staged = torch.empty(self.order_size) if staged is None else staged
        end = 0
        for place, values in parts:
            start, end = end, end + place.numel()
            staged.numpy()[start:end] = values
            place.copy_(staged[start:end].view(place.shape), non_blocking=True)
        # not by assignment, which goes through memory that the device would have to be waited for
        self.initial_scale[slot].fill_(table.initial_scale)
        self.adapter_numbers[slot].fill_(order.adapter)
        self.gates[slot].fill_(float(order.adapter != NO_ADAPTER))
        self.seeds[slot].fill_(int(as_int64([order.seed])[0]))
        self.adapters[slot] = order.adapter
        self._branches[slot] = tuple(order.weights)

    def rows(self, slots: Sequence[int]) -> TickRows:
        """The UNet rows of a tick: see `rows.tick_rows`."""
        return tick_rows([self._branches[slot] for slot in slots])


def adapter_segments(row_adapters: Sequence[int]) -> list[tuple[int, slice]]:
    """The range of rows of each adapter, for rows that are in the order of their adapters' numbers."""
    segments = []
    start = 0
    for number, rows in groupby(row_adapters):
        stop = start + len(list(rows))
        if number != NO_ADAPTER:
            segments.append((number, slice(start, stop)))
        start = stop
    return segments
