"""Device memory of all jobs, made once: nothing is allocated for a job."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from steploom_common.guidance import Branch, branch_weights
from steploom_engine_worker.sampler import Table
from steploom_kernels.guidance_step import NUM_COEFFICIENTS

NO_ADAPTER = -1


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

    def put_table(self, slot: int, table: Table) -> None:
        """A job's course."""
        steps = len(table.timesteps)
        self.timesteps[slot, :steps] = torch.from_numpy(table.timesteps)
        self.coefficients[slot, :steps] = torch.from_numpy(table.coefficients)
        self.initial_scale[slot] = table.initial_scale

    def put_guidance(
        self, slot: int, guidance_scale: float, image_guidance_scale: float, adapter: int, is_distilled: bool
    ) -> None:
        """A job's scales and adapter, and the branches of its rows: one, where the adapter knows guidance itself."""
        weights = {Branch.FULL: 1.0} if is_distilled else branch_weights(guidance_scale, image_guidance_scale)
        self.adapters[slot] = adapter
        self.adapter_numbers[slot] = adapter
        self.gates[slot] = float(adapter != NO_ADAPTER)
        self.scales[slot] = torch.tensor([guidance_scale, image_guidance_scale])
        self.weights[slot] = torch.tensor([weights.get(branch, 0.0) for branch in Branch])
        self._branches[slot] = tuple(weights)

    def rows(self, slots: Sequence[int]) -> tuple[list[int], list[int], list[list[int]]]:
        """The UNet rows of a tick.

        Returns:
            The job (index into `slots`) and the branch of each row; and for each job the row of each branch, its first
            row standing for those that are not computed.
        """
        row_jobs: list[int] = []
        row_branches: list[int] = []
        job_rows: list[list[int]] = []
        for job, slot in enumerate(slots):
            first = len(row_jobs)
            where = {branch: first + index for index, branch in enumerate(self._branches[slot])}
            job_rows.append([where.get(branch, first) for branch in Branch])
            row_jobs += [job] * len(where)
            row_branches += [int(branch) for branch in where]
        return row_jobs, row_branches, job_rows


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
