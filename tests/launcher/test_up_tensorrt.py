"""`steploom up --engine tensorrt`: what it says where something is missing, and that it serves without torch."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shadow_modules import HEAVY, shadows
from tensorrt_house import house_of

from steploom import Client
from steploom.exit_codes import ExitCode
from steploom.health import check
from steploom.runtime import RuntimeDir
from steploom_engine_worker.errors import EXIT_FATAL
from steploom_engine_worker.tiny_model import write_tiny_model

PATIENCE_S = 120.0
UP = (sys.executable, "-P", "-m", "steploom", "up", "--engine", "tensorrt", "--metrics-listen", "127.0.0.1:0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with engines in it, for an H100 and TensorRT 10.9."""
    root = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    house_of(root, root / "engines")
    return root


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:  # short: a socket's path has at most 107 bytes
        yield Path(name)


def up(folder: Path, model: Path, environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was said, of an `up` that ends by itself."""
    command = [*UP, "--model", str(model), "--listen", "127.0.0.1:0", "--runtime-dir", str(folder / "run"), *arguments]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"version": None}, ["no TensorRT can be used", "tensorrt is not installed", "pip install"]),
        ({"version": "8.5.3"}, ["tensorrt 8.5.3 is too old, must be 8.6 or later", "pip install"]),
        ({"has_cuda": False}, ["cuda-python cannot be imported", "pip install cuda-python"]),
        ({"num_devices": 0}, ["CUDA finds no GPU it can use: no device (CUDA_ERROR_NO_DEVICE)"]),
        ({"version": "8.6.0"}, ["was built by tensorrt 10.9.0, here is tensorrt 8.6.0", "steploom build-engine"]),
        ({"capability": (8, 0)}, ["was built for compute capability 9.0, this GPU has 8.0", "steploom build-engine"]),
    ],
)
def test_a_machine_that_cannot_is_told_what_to_install_and_starts_nothing(
    folder: Path, model: Path, machine: dict[str, Any], words: list[str]
) -> None:
    code, said = up(folder, model, shadows(folder / "modules", **machine))
    assert code == ExitCode.USAGE
    assert said.startswith("steploom: worker.engine: is 'tensorrt', but ")
    assert [word for word in words if word not in said] == []
    assert "Traceback" not in said
    assert "starting" not in said
    assert [path.name for path in (folder / "run").iterdir()] == ["lock"]


def test_without_engines_it_names_the_command_that_builds_them(folder: Path, tmp_path: Path) -> None:
    code, said = up(folder, write_tiny_model(tmp_path / "tiny"), shadows(folder / "modules"))
    assert code == ExitCode.USAGE
    assert f"{tmp_path}/tiny/engines: holds no engines; build it again with `steploom build-engine`" in said


def test_another_device_than_there_is(folder: Path, model: Path) -> None:
    config = folder / "steploom.toml"
    config.write_text('[worker]\ndevice = "cuda:3"\n')
    code, said = up(folder, model, shadows(folder / "modules"), "--config", str(config))
    assert code == ExitCode.USAGE
    assert "there is no device 3: CUDA sees 1 on this machine" in said


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("manifest.json", b"{", "cannot be read as JSON"),
        ("host.json", b"{}", "does not hold a model's constants"),
        ("tokenizer.json", b"[]", "cannot be read"),
        ("kernels/kernels.json", b"{}", "not a manifest of kernels"),
        ("kernels/step_slots_fp16.sm_90.cubin", b"", "exported were"),
    ],
)
def test_a_damaged_file_of_the_engines_ends_it_with_a_reason(
    folder: Path, model: Path, tmp_path: Path, file: str, content: bytes, words: str
) -> None:
    engines = tmp_path / "engines"
    house_of(model, engines)
    (engines / file).write_bytes(content)
    config = folder / "steploom.toml"
    config.write_text(f'[worker]\nengines = "{engines}"\n')
    code, said = up(folder, model, shadows(folder / "modules"), "--config", str(config))
    assert code == ExitCode.USAGE
    assert words in said
    assert "steploom build-engine" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("what", [["--check"], ["--listen", "127.0.0.1:0"]])
@pytest.mark.parametrize("call", ["cuDevicePrimaryCtxRetain", "cuStreamCreate"])
def test_a_device_that_somebody_else_has_is_no_fault_of_the_settings(
    folder: Path, model: Path, what: list[str], call: str
) -> None:
    """The supervisor starts such a worker again."""
    environment = shadows(folder / "modules", faults={call: 2})
    command = [sys.executable, "-P", "-m", "steploom_engine_worker", "--engine", "tensorrt", "--model", str(model)]
    done = subprocess.run([*command, *what], env=dict(environment), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == EXIT_FATAL
    assert f"CUDA error 2 (CUDA_ERROR_OUT_OF_MEMORY) in {call}: out of memory" in done.stderr


def test_it_serves_and_no_process_loads_torch(folder: Path, model: Path) -> None:
    environment = shadows(folder / "modules")
    for name in HEAVY:  # so that this test can fail
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {name}"], env=dict(environment), capture_output=True
        )
        assert done.returncode == 1
    runtime = RuntimeDir(folder / "run")
    command = [*UP, "--model", str(model), "--listen", "127.0.0.1:0", "--runtime-dir", str(runtime.path)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=dict(environment), stderr=log, stdout=log)
    try:
        address = _ready(runtime, process)
        pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        with Client(address) as client:
            results = [client.edit(Image.fromarray(pixels), "make the hair blond", steps=3, seed=7) for _ in range(2)]
        images = [np.asarray(result.image) for result in results]
        assert images[0].shape == (64, 64, 3)
        assert np.array_equal(images[0], images[1])
        assert images[0].std() > 1.0
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    said = (folder / "log").read_text()
    assert code == 0, said
    assert "tensorrt 10.9.0, Fake GPU" in said


def _ready(runtime: RuntimeDir, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        services = runtime.read_services()
        if services is not None and check(services.gateway) == "SERVING":
            return services.gateway
        time.sleep(0.05)
    raise AssertionError("it does not come up")
