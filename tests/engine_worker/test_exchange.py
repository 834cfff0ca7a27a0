"""Arrays of the engine in other runtimes' hands, through DLPack: the same memory, not a copy of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from steploom_engine_worker.engine import Job
from steploom_engine_worker.graph_engine import Buckets, GraphEngine
from steploom_engine_worker.model import load_model
from steploom_engine_worker.slots import Slots
from steploom_kernels.pixels_out import pixels_out, pixels_out_reference

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="numpy"),
    pytest.param(
        torch.device("cuda"), id="cupy", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")
    ),
]


def elsewhere(tensor: Tensor) -> Any:
    """The tensor as numpy's array, or CuPy's."""
    if tensor.device.type == "cpu":
        return np.from_dlpack(tensor)
    return pytest.importorskip("cupy").from_dlpack(tensor)


def address(array: Any) -> int:
    """Of numpy's array, or CuPy's."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def assert_shared(tensor: Tensor) -> None:
    """There and back it has the same address, shape and strides."""
    there = elsewhere(tensor)
    back = from_dlpack(there)
    assert address(there) == tensor.data_ptr() == back.data_ptr()
    assert (back.shape, back.stride(), back.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_every_array_of_the_slots_is_shared_by_its_address(device: torch.device) -> None:
    slots = Slots(3, 5, (4, 8, 8), (16, 32), 64, device, torch.float16)
    exported = slots.exported()
    assert {"latents", "history", "image_latents", "text", "pixels", "timesteps", "coefficients"} <= set(exported)
    assert sum(item.nbytes for item in exported.values()) == slots.num_bytes
    for item in exported.values():
        assert item.is_contiguous()
        assert_shared(item)
    there = elsewhere(exported["latents"])
    slots.latents[1] = 7.0
    assert float(there[1].min()) == float(there.max()) == 7.0


def test_what_stages_take_and_give_is_shared_and_slots_stay(adapted_dir: Path, make_job: Callable[..., Job]) -> None:
    engine = GraphEngine(load_model(adapted_dir), 2, 8, CPU, torch.float32, Buckets((1,), (3,), (1,)))
    for step in engine._steps.values():
        assert_shared(step._sample)  # what the UNet takes; its memory is channels last
        assert_shared(step.are_finite)
    for _, decode in engine._decodes.values():
        assert_shared(decode.pictures)
    before = {name: item.data_ptr() for name, item in engine.slots.exported().items()}
    latents = np.from_dlpack(engine.slots.exported()["latents"])
    for slot in (0, 1):
        engine.admit(slot, make_job(seed=slot))
        engine.encode([slot]).wait()
        engine.denoise([slot], [0]).wait()
        picture = engine.decode([slot]).wait().pictures[0]
        assert latents[slot].any()  # seen without asking torch
        assert from_dlpack(picture).data_ptr() == picture.ctypes.data
        engine.release(slot)
    assert {name: item.data_ptr() for name, item in engine.slots.exported().items()} == before


@pytest.mark.parametrize("device", DEVICES)
def test_a_kernel_reads_and_writes_arrays_of_another_runtime(device: torch.device) -> None:
    image = torch.randn(2, 3, 8, 8, device=device)
    expected = pixels_out_reference(image)
    given = from_dlpack(elsewhere(image))
    into = torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device=device)
    pixels_out(given, from_dlpack(elsewhere(into)))
    assert torch.equal(into, expected)
