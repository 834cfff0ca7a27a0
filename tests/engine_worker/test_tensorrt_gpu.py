"""The torch-free engine on a GPU: its kernels, copies and graphs around plain networks, and around real plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorrt_house import MAX_STEPS, done, expected, plans_for
from torch_networks import TorchDriver, TorchNetworks

from steploom_common.arena import Arena, ArenaViews
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.description import Description, describe
from steploom_engine_worker.engine import Job, Pixels
from steploom_engine_worker.model import load_model
from steploom_engine_worker.tensorrt.device import CudaError, Device, load_driver
from steploom_engine_worker.tensorrt.engine import TensorRTEngine
from steploom_engine_worker.tensorrt.fake.driver import FakeDriver
from steploom_engine_worker.tensorrt.fake.trt import FakeTensorRT
from steploom_engine_worker.tensorrt.flavour import Flavour, NoTensorRT, find_flavour
from steploom_engine_worker.tensorrt.kernels import kernel_names
from steploom_engine_worker.tensorrt.load import build_tensorrt_engine, load_tensorrt_engine
from steploom_engine_worker.tensorrt.machine import Finders
from steploom_engine_worker.torch_engine import TorchEngine
from steploom_kernels.aot import export
from steploom_kernels.operations import all_variants

TOLERANCE = 4e-3  # of latents: float16 rounds what the networks take and give
MIXES = [("",), ("few-step", "few-step"), ("", "few-step", "style")]

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="runs on a GPU")

MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def model(adapted_dir: Path) -> Description:
    return describe(adapted_dir)


@pytest.fixture(scope="module")
def device() -> Device:
    pytest.importorskip("cuda.bindings.driver")
    return Device(load_driver())


@pytest.fixture(scope="module")
def folder(model: Description, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain networks as plans, and our kernels as they are compiled for this GPU."""
    folder = tmp_path_factory.mktemp("engines")
    capability = torch.cuda.get_device_capability()
    plans_for(model, capability=capability).write(folder)
    wanted = {*kernel_names("fp16")}
    variants = [variant for variant in all_variants() if variant.name in wanted]
    export(variants, [10 * capability[0] + capability[1]], folder / "kernels", lambda _: None)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path, adapted_dir: Path, device: Device) -> TensorRTEngine:
    trt = FakeTensorRT(TorchDriver(), fill=TorchNetworks())
    finders = Finders(load_driver, lambda _: Flavour("tensorrt", "10.9.0", trt))
    config = WorkerConfig(
        engine="tensorrt", model=str(adapted_dir), engines=str(folder), slots=5, max_steps=MAX_STEPS, record_all=True
    )
    engine = load_tensorrt_engine(config, finders)
    assert engine.progress == (8, 8)
    return engine


def state(engine: TensorRTEngine, name: str) -> torch.Tensor:
    """An array of the slots as torch sees it: the very memory."""
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(engine.slots.exported()[name])
    return tensor


def draw(engine: Any, jobs: Sequence[Job]) -> tuple[list[np.ndarray[Any, Any]], list[Pixels]]:
    """Final latents and pictures of jobs that share every tick that they can; nothing is waited for until the end."""
    slots = [engine.num_slots - 1 - number for number in range(len(jobs))]
    for slot, job in zip(slots, jobs, strict=True):
        engine.admit(slot, job)
    ticks = [engine.encode(slots)]
    for step in range(max(job.steps for job in jobs)):
        left = [slot for slot, job in zip(slots, jobs, strict=True) if step < job.steps]
        ticks.append(engine.denoise(left, [step] * len(left)))
    ticks.append(engine.decode(slots))
    pictures = [pixels.copy() for pixels in [done(tick) for tick in ticks][-1].pictures]
    engine.check()
    return [state(engine, "latents")[slot].cpu().numpy() for slot in slots], pictures


def test_the_plain_networks_are_the_fakes(adapted_dir: Path, tmp_path: Path, make_job: MakeJob) -> None:
    """What runs on a GPU below computes what it is held against."""
    from tensorrt_house import draw as draw_on_fakes
    from tensorrt_house import house_of

    house = house_of(adapted_dir, tmp_path)
    networks = TorchNetworks()

    def fill(network: str, given: Any, out: Any) -> None:
        networks(network, {name: torch.from_numpy(value) for name, value in given.items()}, torch.from_numpy(out))

    jobs = [make_job(adapter=name, seed=number, steps=2) for number, name in enumerate(MIXES[2])]
    latents = draw_on_fakes(house.engine(), jobs)[0]
    house.driver = FakeDriver()
    house.trt = FakeTensorRT(house.driver, fill=fill)
    for found, wanted in zip(draw_on_fakes(house.engine(), jobs)[0], latents, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@on_a_gpu
def test_memory_streams_and_events(device: Device) -> None:
    from steploom_engine_worker.tensorrt.arrays import allocate

    stream, other = device.stream(), device.stream()
    array = allocate(device, (1 << 20,), "float32")
    given, found = device.pinned((1 << 20,), np.float32), device.pinned((1 << 20,), np.float32)
    given[:] = np.arange(1 << 20)
    start = stream.mark()
    stream.copy_in(array.address, given)
    end = stream.mark()
    other.follow(end)
    other.copy_out(found, array.address)
    other.wait()
    assert np.array_equal(found, given)
    end.wait()
    assert end.seconds_since(start) > 0.0
    assert torch.equal(torch.utils.dlpack.from_dlpack(array).cpu(), torch.from_numpy(given.copy()))
    free, total = device.memory
    assert 0 < free < total
    assert device.capability == torch.cuda.get_device_capability()


@on_a_gpu
def test_a_call_that_fails_says_so(device: Device) -> None:
    stream = device.stream()
    with pytest.raises(CudaError, match=r"CUDA error 1 \(CUDA_ERROR_INVALID_VALUE\) in cuMemHostRegister: \w+"):
        device.register(0, 16)
    with pytest.raises(CudaError, match="STREAM_CAPTURE"):
        device.record(stream, stream.wait)
    device.synchronise()


@on_a_gpu
@pytest.mark.parametrize("adapters", MIXES)
def test_draws_what_the_networks_make_of_each_job_alone(
    folder: Path, model: Description, engine: TensorRTEngine, make_job: MakeJob, adapters: tuple[str, ...]
) -> None:
    jobs = [
        make_job(picture=number, seed=2**63 + number, adapter=name, steps=2 + number % 2, guidance_scale=1.5 + number)
        for number, name in enumerate(adapters)
    ]
    for job, found, picture in zip(jobs, *draw(engine, jobs), strict=True):
        wanted, pixels = expected(model, folder, job)
        np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        assert np.abs(picture.astype(int) - pixels).max() <= 1


@on_a_gpu
def test_a_job_that_overflows_fails_alone(engine: TensorRTEngine, make_job: MakeJob) -> None:
    for slot in (0, 4):
        engine.admit(slot, make_job(steps=1))
    done(engine.encode([4, 0]))
    engine.check()
    state(engine, "latents")[0] = torch.nan
    torch.cuda.synchronize()
    assert engine.denoise([4, 0], [0, 0]).wait().failures == {0: "the UNet gave values that are not finite"}
    assert engine.decode([4, 0]).wait().failures == {0: "the VAE's decoder gave values that are not finite"}


@on_a_gpu
def test_pictures_are_read_where_a_gateway_shares_them(
    engine: TensorRTEngine, make_job: MakeJob, tmp_path: Path
) -> None:
    wanted = draw(engine, [make_job()])[1][0]
    side = engine.model.height
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    arena, views = Arena(folder, side * side * 3, 2), ArenaViews(folder, engine.share, engine.unshare)
    block = arena.borrow()
    assert block is not None
    arena.write(block.input, make_job().pixels)
    pixels = views.picture(block.input, side, side)
    assert np.array_equal(draw(engine, [make_job(pixels=pixels)])[1][0], wanted)
    views.close()
    arena.close()


@on_a_gpu
def test_no_memory_is_taken_once_it_is_warm(engine: TensorRTEngine, make_job: MakeJob) -> None:
    draw(engine, [make_job(seed=number) for number in range(4)])
    before = engine.memory.free
    for number in range(8):
        draw(engine, [make_job(seed=number + each) for each in range(4)])
    assert engine.memory.free == before


@on_a_gpu
def test_real_plans_draw_what_torch_draws(adapted_dir: Path, tmp_path: Path, make_job: MakeJob) -> None:
    """Where a TensorRT is installed that builds for this GPU."""
    from steploom_engine_worker.export.engines import Request, build_engines

    capability = torch.cuda.get_device_capability()
    try:
        flavour = find_flavour()
    except NoTensorRT as missing:
        pytest.skip(str(missing))
    if flavour.cannot_target(capability):
        pytest.skip(flavour.cannot_target(capability))
    reporter: Any = _Quiet()
    request = Request(adapted_dir, tmp_path, capability, unet_buckets=(3, 6), encode_buckets=(2,), decode_buckets=(2,))
    build_engines(request, flavour, reporter)
    config = WorkerConfig(
        engine="tensorrt", model=str(adapted_dir), engines=str(tmp_path), slots=4, max_steps=MAX_STEPS
    )
    engine, costs = build_tensorrt_engine(config)
    assert all(seconds > 0 for seconds in costs.values())
    plain = TorchEngine(load_model(adapted_dir), 4, MAX_STEPS, torch.device("cpu"), torch.float32)
    for name in ("", "few-step"):
        jobs = [make_job(adapter=name, steps=3)]
        found = draw(engine, jobs)[1][0]
        plain.admit(0, jobs[0])
        done(plain.encode([0]))
        for step in range(3):
            done(plain.denoise([0], [step]))
        wanted = done(plain.decode([0])).pictures[0]
        assert np.abs(found.astype(int) - wanted).mean() < 2.0


class _Quiet:
    """Hears of a build, and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self  # a watcher too
