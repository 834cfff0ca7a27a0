"""The parts of the torch-free engine: device, arrays, runtime, kernels, what the host keeps, and what is imported."""

from __future__ import annotations

import ast
import gc
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shadow_modules import HEAVY, shadows
from tensorrt_house import house_of

from steploom_engine_worker.errors import ModelError
from steploom_engine_worker.export.host import write_host
from steploom_engine_worker.model import load_model
from steploom_engine_worker.model_files import embedded_model
from steploom_engine_worker.preview import latent_colours
from steploom_engine_worker.tensorrt import dlpack
from steploom_engine_worker.tensorrt.arrays import allocate, part
from steploom_engine_worker.tensorrt.device import CudaError, Device, NoCuda, OutOfDeviceMemory
from steploom_engine_worker.tensorrt.fake.driver import Code, FakeDriver
from steploom_engine_worker.tensorrt.fake.kernels import KERNELS, normal_values
from steploom_engine_worker.tensorrt.fake.plans import FakePlans
from steploom_engine_worker.tensorrt.fake.trt import FakeTensorRT, plan_bytes
from steploom_engine_worker.tensorrt.host import read_host
from steploom_engine_worker.tensorrt.kernels import Kernels, kernel_names
from steploom_engine_worker.tensorrt.machine import device_index
from steploom_engine_worker.tensorrt.runtime import Runtime, Scratch, TensorRTError
from steploom_kernels.launch_recipe import RecipeError
from steploom_kernels.operations import all_variants
from steploom_kernels.philox_noise import as_int64, philox_noise_reference
from steploom_kernels.pixels_out import pixels_out

PATIENCE_S = 60.0


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def device(driver: FakeDriver) -> Device:
    return Device(driver)


def copies(device: Device, which: str) -> None:
    """A copy to the device, from it or on it, until it is done."""
    stream, memory, host = device.stream(), device.allocate(16), np.zeros(8, np.uint8)
    if which == "in":
        stream.copy_in(memory.address, host)
    elif which == "out":
        stream.copy_out(host, memory.address)
    else:
        stream.copy(memory.address, memory.address + 8, 8)
    stream.wait()


CALLS: dict[str, Callable[[Device], object]] = {
    "cuMemAlloc": lambda device: device.allocate(8),
    "cuMemsetD8Async": lambda device: device.allocate(8),
    "cuMemHostAlloc": lambda device: device.pinned((2,), np.float32),
    "cuStreamCreate": lambda device: device.stream(),
    "cuStreamSynchronize": lambda device: device.stream().wait(),
    "cuEventCreate": lambda device: device.stream().mark(),
    "cuEventRecord": lambda device: device.stream().mark(),
    "cuEventSynchronize": lambda device: device.stream().mark().wait(),
    "cuStreamWaitEvent": lambda device: device.stream().follow(device.stream().mark()),
    "cuEventElapsedTime": lambda device: (mark := device.stream().mark()).seconds_since(mark),
    "cuMemcpyHtoDAsync": lambda device: copies(device, "in"),
    "cuMemcpyDtoHAsync": lambda device: copies(device, "out"),
    "cuMemcpyDtoDAsync": lambda device: copies(device, "on"),
    "cuStreamBeginCapture": lambda device: device.record(device.stream(), lambda: None),
    "cuStreamEndCapture": lambda device: device.record(device.stream(), lambda: None),
    "cuGraphInstantiate": lambda device: device.record(device.stream(), lambda: None),
    "cuGraphLaunch": lambda device: device.record(stream := device.stream(), lambda: None).launch(stream),
    "cuMemHostRegister": lambda device: device.register(4096, 8),
    "cuMemGetInfo": lambda device: device.memory,
    "cuCtxSynchronize": lambda device: device.synchronise(),
    "cuDeviceGetCount": lambda device: Device(device._driver),
    "cuDevicePrimaryCtxRetain": lambda device: Device(device._driver),
    "cuCtxSetCurrent": lambda device: Device(device._driver),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_answer_of_the_driver_is_looked_at(driver: FakeDriver, device: Device, call: str) -> None:
    CALLS[call](device)
    driver.fail(call, Code.CUDA_ERROR_INVALID_HANDLE)
    with pytest.raises(CudaError, match=rf"CUDA error 400 \(CUDA_ERROR_INVALID_HANDLE\) in {call}: invalid handle"):
        CALLS[call](device)
    CALLS[call](device)  # it was one call's


def test_memory_that_is_not_there_is_an_error_of_its_own(driver: FakeDriver, device: Device) -> None:
    with pytest.raises(OutOfDeviceMemory):
        device.allocate(1 << 31)
    driver.fail("cuStreamCreate", Code.CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(CudaError) as caught:
        device.stream()
    assert not isinstance(caught.value, OutOfDeviceMemory)  # what the driver left undone nobody knows


def test_a_device_that_is_not_there(driver: FakeDriver) -> None:
    with pytest.raises(NoCuda, match="there is no device 1: CUDA sees 1 on this machine"):
        Device(driver, 1)
    assert [device_index(name) for name in ("cuda", "cuda:2", "cpu")] == [0, 2, 0]


def test_what_a_recording_raises_comes_through_and_its_stream_goes_on(device: Device) -> None:
    stream, memory = device.stream(), device.allocate(8)

    def fail() -> None:
        stream.fill(memory.address, 1, 8)
        raise KeyError("x")

    with pytest.raises(KeyError):
        device.record(stream, fail)
    stream.fill(memory.address, 2, 8)
    out = np.zeros(8, np.uint8)
    stream.copy_out(out, memory.address)
    stream.wait()
    assert out.tolist() == [2] * 8


def test_waiting_inside_of_a_recording_is_an_error(device: Device) -> None:
    stream = device.stream()
    with pytest.raises(CudaError, match="CAPTURE_UNSUPPORTED"):
        device.record(stream, stream.wait)


def test_who_waits_for_the_device_waits_until_nobody_records(device: Device) -> None:
    """CUDA makes it an error, and no graph of what was recorded."""
    stream, memory = device.stream(), device.allocate(8)
    problems: list[Exception] = []
    has_begun = threading.Event()

    def wait() -> None:
        has_begun.set()
        try:
            device.synchronise()
        except Exception as problem:
            problems.append(problem)

    other = threading.Thread(target=wait)

    def run() -> None:
        other.start()
        assert has_begun.wait(PATIENCE_S)
        other.join(0.2)
        stream.fill(memory.address, 1, 8)

    device.record(stream, run).launch(stream)
    other.join(PATIENCE_S)
    assert not other.is_alive()
    assert problems == []


def test_memory_is_not_given_back_while_its_thread_records(driver: FakeDriver, device: Device) -> None:
    stream = device.stream()
    held = [device.allocate(8)]
    freed = []

    def run() -> None:
        held.clear()
        freed.append("cuMemFree" in driver.calls)

    device.record(stream, run)
    assert freed == [False]
    assert "cuMemFree" in driver.calls


def test_a_recording_is_done_again_each_time_it_is_asked_for(driver: FakeDriver, device: Device) -> None:
    stream, counter = device.stream(), allocate(device, (2,), "int32")
    other = allocate(device, (2,), "int32")

    def run() -> None:
        stream.copy(other.address, counter.address, 8)

    graph = device.record(stream, run)
    for value in (3, 4):
        stream.copy_in(counter.address, np.full(2, value, np.int32))
        graph.launch(stream)
        out = np.zeros(2, np.int32)
        stream.copy_out(out, other.address)
        stream.wait()
        assert out.tolist() == [value] * 2
    assert driver.calls.count("cuStreamEndCapture") == 1


def test_arrays_go_to_other_libraries_and_come_back_without_a_copy(driver: FakeDriver, device: Device) -> None:
    array = allocate(device, (3, 4), "float32")
    assert array.__dlpack_device__() == (dlpack.CUDA, 0)
    borrowed = dlpack.borrow(array)
    assert (borrowed.address, borrowed.shape, borrowed.dtype) == (array.address, (3, 4), "float32")
    assert borrowed.device == (dlpack.CUDA, 0)
    memory = weakref.ref(array.memory)
    del array
    gc.collect()
    assert memory() is not None  # whoever borrowed it keeps it
    del borrowed
    gc.collect()
    assert memory() is None
    assert driver.used_bytes == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "int64", "uint8"])
def test_capsules_are_what_numpy_and_torch_read(dtype: str) -> None:
    values = np.arange(6).astype(dtype).reshape(2, 3)
    lent = {*dlpack._lent}

    class OnHost:
        def __dlpack__(self, **_: Any) -> Any:
            return dlpack.export(values.ctypes.data, values.shape, dtype, (dlpack.CPU, 0), values)

        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

    assert np.array_equal(np.from_dlpack(OnHost()), values)
    tensor = torch.utils.dlpack.from_dlpack(OnHost())
    assert tensor.data_ptr() == values.ctypes.data
    assert np.array_equal(tensor.numpy(), values)
    del tensor
    gc.collect()
    assert {*dlpack._lent} <= lent


def test_half_floats_of_torch_are_known_and_odd_strides_are_refused() -> None:
    tensor = torch.zeros(2, 3, dtype=torch.bfloat16)
    borrowed = dlpack.borrow(tensor)
    assert (borrowed.dtype, borrowed.address) == ("bfloat16", tensor.data_ptr())
    with pytest.raises(ValueError, match="is not contiguous"):
        dlpack.borrow(tensor.t())
    with pytest.raises(TypeError, match="list has no __dlpack__"):
        dlpack.borrow([1.0])


def test_what_a_network_is_bound_to_must_fit(driver: FakeDriver, device: Device) -> None:
    trt, stream = FakeTensorRT(driver), device.stream()
    plans = FakePlans("")
    tensors = [(item.name, item.dtype, item.shape, item.is_input) for item in plans.tensors("vae_decoder")]
    network = Runtime(trt, device).network(plan_bytes("vae_decoder", [2], tensors), "the decoder")
    execution = network.execution(0, {"latents": (2, 8, 8, 4)}, stream, Scratch(device))
    good = allocate(device, (2, 8, 8, 4), "float16")
    with pytest.raises(ValueError, match="the decoder has no memory for latents, pictures"):
        execution.run()
    for name, array, words in (
        ("noise", good, "has no tensor noise; it has latents, pictures"),
        (
            "latents",
            allocate(device, (1, 8, 8, 4), "float16"),
            r"is float16 \[1, 8, 8, 4\], must be float16 \[2, 8, 8, 4\]",
        ),
        ("latents", allocate(device, (2, 8, 8, 4), "float32"), "is float32"),
        ("latents", np.zeros((2, 8, 8, 4), np.float16), "is not on device 0"),
        ("latents", part(allocate(device, (4, 8, 8, 4), "float16"), 16, good.shape, "float16"), "no multiple of 256"),
    ):
        with pytest.raises(ValueError, match=words):
            execution.bind(name, array)
    execution.bind("latents", good)
    execution.bind("pictures", allocate(device, (2, 64, 64, 3), "float16"))
    execution.run()
    stream.wait()


def test_executions_of_a_lane_share_memory_and_old_memory_stays(device: Device) -> None:
    scratch = Scratch(device)
    assert scratch.at_least(0) is None
    large = scratch.at_least(100)
    assert scratch.at_least(50) is large
    larger = scratch.at_least(200)
    assert larger is not large
    assert scratch.num_bytes == 300


def test_the_logger_of_a_real_tensorrt_is_heard(device: Device) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for _ in range(2):  # it listens to the first logger of a process alone
        with pytest.raises(
            TensorRTError, match=r"the plan of the unet cannot be read by tensorrt_rtx .*: .*[Ss]erializ"
        ):
            Runtime(trt, device).network(b"no plan" * 100, "the unet")


def test_every_kernel_that_is_launched_is_exported_and_has_its_fake(device: Device, tmp_path: Path) -> None:
    names = {variant.name for variant in all_variants()}
    for half in ("fp16", "bf16", "fp32"):
        assert {*kernel_names(half)} <= names
    FakePlans("").write(tmp_path)
    kernels = Kernels(device, tmp_path / "kernels", "float16")
    assert {kernel.entry for kernel, _ in kernels._kernels.values()} == {*KERNELS}
    with pytest.raises(RecipeError, match="was exported for sm_90, not for sm_80"):
        Kernels(Device(FakeDriver(capability=(8, 0))), tmp_path / "kernels", "float16")


def test_the_fakes_noise_is_the_kernels() -> None:
    for seed, offset in ((0, 0), (2**63 + 11, 5), (2**64 - 1, 2**33)):
        expected = philox_noise_reference(as_int64([seed]), as_int64([offset]), 1001)[0].numpy()
        np.testing.assert_array_equal(normal_values(int(as_int64([seed])[0]), offset, 1001), expected)


@pytest.mark.parametrize("which", ["tiny", "embedded"])
def test_the_host_reads_words_as_the_model_does(tiny_model_dir: Path, tmp_path: Path, which: str) -> None:
    model = load_model(tiny_model_dir if which == "tiny" else embedded_model())
    written = write_host(tmp_path, model)
    host = read_host(tmp_path)
    sentences = ["make the hair blond", "", "머리를 금발로", "PUT on   sunglasses!", "cat's \n hat " * 50]
    expected = model.tokenizer(sentences, padding="max_length", max_length=model.num_tokens, truncation=True).input_ids
    assert host.tokens(sentences).tolist() == expected == written.tokens(sentences).tolist()
    assert host.tokens(sentences).dtype == np.int32


def test_the_hosts_previews_are_torchs(tiny_model_dir: Path, tmp_path: Path) -> None:
    host = write_host(tmp_path, load_model(tiny_model_dir))
    estimate = torch.randn(4, 8, 8)
    expected = pixels_out(latent_colours(estimate, torch.from_numpy(host.colour_map)))[0].numpy()
    found = host.preview(estimate.numpy())
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.std() > 1.0
    assert host.preview(np.full((4, 8, 8), np.nan, np.float32)).shape == (8, 8, 3)


def test_a_tokenizer_that_reads_otherwise_is_refused(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_model_dir)
    write_host(tmp_path, model)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    table["normalizer"] = None  # capitals and spaces as they come
    swapped = SimpleNamespace(to_str=lambda: json.dumps(table))
    monkeypatch.setattr("steploom_engine_worker.export.host._fast", lambda _: swapped)
    with pytest.raises(ModelError, match="otherwise than what was written of it"):
        write_host(tmp_path, model)


LOAD = """
import json, sys
from steploom_engine_worker.config import WorkerConfig
from steploom_engine_worker.launch import build_engine, check_machine
config = WorkerConfig(engine="tensorrt", model=sys.argv[1], slots=2)
check_machine(config)
engine, costs = build_engine(config)
files = [module.__file__ for name, module in sys.modules.items() if name.startswith("steploom")]
print(json.dumps([engine.name, sorted(name for name in sys.modules if "." not in name), files]))
"""


def test_an_engine_is_built_without_torch_of_modules_that_older_pythons_read(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    root = tmp_path / "model"
    house_of(tiny_model_dir, tmp_path / "engines")
    root.symlink_to(tiny_model_dir)
    environment = dict(shadows(tmp_path / "modules"))
    code = LOAD.replace("slots=2", f"slots=2, engines={str(tmp_path / 'engines')!r}")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(root)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    name, modules, files = json.loads(done.stdout.splitlines()[-1])
    assert name == "tensorrt"
    assert {*HEAVY, "tomllib"} & {*modules} == set()
    assert "numpy" in modules
    assert len(files) > 30
    for file in (Path(file) for file in files if file):
        ast.parse(file.read_text(), feature_version=(3, 10))
