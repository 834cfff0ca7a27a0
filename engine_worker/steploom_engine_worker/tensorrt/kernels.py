"""Our Triton kernels without Triton: cubins that lie beside the plans, launched in the order of a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steploom_engine_worker.tensorrt.arrays import DeviceArray
from steploom_engine_worker.tensorrt.device import Device, Function, Stream
from steploom_kernels.launch_recipe import Kernel, read_manifest

_MANY_ROWS = 8  # above these a program of `gather_text` copies more
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


def kernel_names(half: str) -> tuple[str, ...]:
    """The exported kernels that an engine launches.

    Args:
        half: type of the networks' edges as kernels are named: fp16, bf16 or fp32.
    """
    return (
        f"gather_samples_{half}",
        f"gather_text_{half}_1024",
        f"gather_text_{half}_4096",
        f"step_slots_{half}",
        f"start_slots_{half}",
        f"put_text_{half}",
        f"gather_latents_{half}",
        f"are_finite_{half}",
        f"pixels_in_{half}",
        f"pixels_out_{half}_channels_last",
    )


class Kernels:
    """The kernels of one type on one device, all loaded.

    Args:
        device: where.
        folder: of the cubins and their manifest.
        dtype: of the networks' edges: float16, bfloat16 or float32.

    Raises:
        RecipeError: the folder is not that of an export for this device and these sources.
        CudaError: a cubin cannot be loaded.
    """

    def __init__(self, device: Device, folder: Path, dtype: str) -> None:
        manifest = read_manifest(folder)
        self._half = _TYPES[dtype]
        self._kernels: dict[str, tuple[Kernel, Function]] = {}
        for name in kernel_names(self._half):
            kernel = manifest.kernel(name, device.capability)
            self._kernels[name] = kernel, device.function(kernel.image(folder), kernel)

    def __repr__(self) -> str:
        return f"Kernels({', '.join(self._kernels)})"

    def _launch(self, name: str, stream: Stream, **values: Any) -> None:
        kernel, function = self._kernels[name]
        addresses = {key: value.address if isinstance(value, DeviceArray) else value for key, value in values.items()}
        stream.launch(function, kernel.launch(addresses))

    def gather_tick(
        self,
        stream: Stream,
        slots: Any,
        row_slots: DeviceArray,
        row_branches: DeviceArray,
        row_steps: DeviceArray,
        out: Any,
    ) -> None:
        """`steploom_kernels.gather_rows.gather_tick`.

        Args:
            stream: where it goes.
            slots: a `slots.Slots`.
            row_slots: int32 [rows], -1 for padding; so are branches and steps.
            row_branches: see there.
            row_steps: see there.
            out: what the UNet reads: a `tick.Rows`.
        """
        rows, num_slots, pixels = row_slots.shape[0], slots.latents.shape[0], slots.num_pixels
        self._launch(
            f"gather_samples_{self._half}", stream, sample=out.sample, out_timesteps=out.timesteps,
            out_adapters=out.adapters, out_gates=out.gates, out_scales=out.scales, latents=slots.latents,
            image_latents=slots.image_latents, timesteps=slots.timesteps, adapters=slots.adapter_numbers,
            gates=slots.gates, scales=slots.scales, row_slots=row_slots, row_branches=row_branches,
            row_steps=row_steps, num_slots=num_slots, pixels=pixels, max_steps=slots.timesteps.shape[1], rows=rows,
        )  # fmt: skip
        block = 1024 if rows <= _MANY_ROWS else 4096
        self._launch(
            f"gather_text_{self._half}_{block}", stream, context=out.context, text=slots.text, row_slots=row_slots,
            row_branches=row_branches, num_slots=num_slots, count=slots.text.stride, rows=rows,
        )  # fmt: skip

    def step_slots(
        self,
        stream: Stream,
        prediction: DeviceArray,
        job_rows: DeviceArray,
        job_slots: DeviceArray,
        job_steps: DeviceArray,
        slots: Any,
    ) -> None:
        """`steploom_kernels.guidance_step.step_slots`, of int32 [jobs, 3] and [jobs]."""
        self._launch(
            f"step_slots_{self._half}", stream, latents=slots.latents, history=slots.history, prediction=prediction,
            job_rows=job_rows, job_slots=job_slots, job_steps=job_steps, weights=slots.weights,
            coefficients=slots.coefficients, seeds=slots.seeds, pixels=slots.num_pixels,
            max_steps=slots.coefficients.shape[1], jobs=job_slots.shape[0],
        )  # fmt: skip

    def start_slots(self, stream: Stream, encoded: DeviceArray, job_slots: DeviceArray, slots: Any) -> None:
        """`steploom_kernels.slot_edges.start_slots`."""
        self._launch(
            f"start_slots_{self._half}", stream, latents=slots.latents, history=slots.history,
            image_latents=slots.image_latents, encoded=encoded, job_slots=job_slots, seeds=slots.seeds,
            initial_scales=slots.initial_scale, pixels=slots.num_pixels, jobs=job_slots.shape[0],
        )  # fmt: skip

    def put_text(self, stream: Stream, states: DeviceArray, job_slots: DeviceArray, slots: Any) -> None:
        """`steploom_kernels.slot_edges.put_text`."""
        name, count, jobs = f"put_text_{self._half}", slots.text.stride, job_slots.shape[0]
        self._launch(name, stream, text=slots.text, states=states, job_slots=job_slots, count=count, jobs=jobs)

    def gather_latents(self, stream: Stream, slots: Any, job_slots: DeviceArray, out: DeviceArray) -> None:
        """`steploom_kernels.slot_edges.gather_latents`."""
        self._launch(
            f"gather_latents_{self._half}", stream, out=out, latents=slots.latents, job_slots=job_slots,
            pixels=slots.num_pixels, jobs=job_slots.shape[0],
        )  # fmt: skip

    def are_finite(self, stream: Stream, values: DeviceArray, out: DeviceArray) -> None:
        """`steploom_kernels.are_finite.are_finite`, of whatever is in a row of `values`; a flag is a byte."""
        name = f"are_finite_{self._half}"
        self._launch(name, stream, out=out, values=values, count=values.stride, rows=values.shape[0])

    def pixels_in(self, stream: Stream, slots: Any, job_slots: DeviceArray, out: DeviceArray) -> None:
        """`steploom_kernels.pixels_in.pixels_in`, by slot."""
        name, batch, count = f"pixels_in_{self._half}", job_slots.shape[0], slots.pixels.stride
        self._launch(name, stream, out=out, pixels=slots.pixels, slots=job_slots, count=count, batch=batch)

    def pixels_out(self, stream: Stream, image: DeviceArray, out: DeviceArray) -> None:
        """`steploom_kernels.pixels_out.pixels_out`, of pictures [n, h, w, 3]."""
        pixels, batch = image.shape[1] * image.shape[2], image.shape[0]
        self._launch(f"pixels_out_{self._half}_channels_last", stream, out=out, image=image, pixels=pixels, batch=batch)
