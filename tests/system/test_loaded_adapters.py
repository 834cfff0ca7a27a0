"""Adapters are loaded, loaded anew and unloaded under a steady load: no request fails, every picture is right."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from steploom.aio import Client
from steploom.errors import NotFound
from steploom.types import EditResult
from steploom_engine_worker.adapter_manifest import DESCRIPTION, FOLDER, WEIGHTS
from steploom_engine_worker.model_files import embedded_model
from steploom_engine_worker.tiny_model import write_tiny_model
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

StartStack = Callable[[Tables], Stack]

PATIENCE_S = 120.0
STEPS = 3
FAKE = {"engine": "fake", "slots": 8, "fake": {"denoise_s": 0.01, "adapters": ["few-step"]}}
REAL = {
    "engine": "torch", "threads": 1, "slots": 8, "warmup_repeats": 1,
    "denoise_buckets": [1, 3, 6], "encode_buckets": [1], "decode_buckets": [1],
}  # fmt: skip


class House:
    """A system over a model directory of its own, and calls to it."""

    def __init__(self, stack: Stack, root: Path, model: str) -> None:
        self.stack, self.root, self.model = stack, root, model

    def folder(self, name: str) -> Path:
        return self.root / FOLDER / name

    async def call(self, kind: str, name: str) -> None:
        """Loads or unloads an adapter; of no name the model itself."""
        full = f"{self.model}.adapters.{name}" if name else self.model
        message = getattr(pb, f"RepositoryModel{kind}Request")(model_name=full)
        async with grpc.aio.insecure_channel(self.stack.gateway) as channel:
            stub = GRPCInferenceServiceStub(channel)
            await getattr(stub, f"RepositoryModel{kind}")(message, timeout=PATIENCE_S)

    async def refused(self, kind: str, name: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(kind, name)
        return caught.value.code(), caught.value.details() or ""

    async def state(self, name: str) -> str:
        async with grpc.aio.insecure_channel(self.stack.gateway) as channel:
            index = await GRPCInferenceServiceStub(channel).RepositoryIndex(pb.RepositoryIndexRequest())
        states = {row.name: row.state for row in index.models}
        return states.get(f"{self.model}.adapters.{name}", "")

    async def edit(self, client: Client, adapter: str, seed: int = 1) -> EditResult:
        steps = {"steps": STEPS, "seed": seed, "timeout": PATIENCE_S}
        return await client.edit(portrait(), "put on sunglasses", adapter=adapter, **steps)  # type: ignore[arg-type]


class Load:
    """Edits of one adapter without a pause, so many at a time; each is kept, and none may fail."""

    def __init__(self, house: House, client: Client, adapter: str) -> None:
        self._house, self._client, self._adapter = house, client, adapter
        self._is_over = False
        self.pictures: list[np.ndarray] = []  # as they came
        self._task = asyncio.gather(*(self._one_after_the_other() for _ in range(3)))

    async def more(self, count: int) -> None:
        """Returns when so many more have come."""
        target = len(self.pictures) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.pictures) < target and not self._task.done():  # noqa: ASYNC110  tasks of our own
                await asyncio.sleep(0.02)
        if self._task.done():
            self._task.result()

    async def end(self) -> list[np.ndarray]:
        self._is_over = True
        await self._task
        return self.pictures

    async def _one_after_the_other(self) -> None:
        while not self._is_over:
            result = await self._house.edit(self._client, self._adapter)
            assert result.adapter == ("" if self._adapter == "none" else self._adapter)
            self.pictures.append(result.array.astype(int))


def is_like(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for rounding: ticks of other sizes sum in another order."""
    return bool(np.abs(one - other).max() <= 2)


def sorts(pictures: list[np.ndarray], *known: np.ndarray) -> list[int]:
    """Which of the known pictures each is."""
    found = [[number for number, item in enumerate(known) if is_like(picture, item)] for picture in pictures]
    assert all(len(numbers) == 1 for numbers in found), found
    return [numbers[0] for numbers in found]


@pytest.fixture(scope="module")
def fake(start_stack: StartStack, tmp_path_factory: pytest.TempPathFactory) -> House:
    """Two workers without a network over a folder of adapters."""
    root = tmp_path_factory.mktemp("fake")
    worker = {**FAKE, "model": str(root)}
    tables = {"worker": worker, "up": {"workers": 2, "min_backoff_s": 0.1}, "gateway": {"remote_model_control": True}}
    return House(start_stack(tables), root, "fake")


@pytest.fixture(scope="module")
def real(start_stack: StartStack, tmp_path_factory: pytest.TempPathFactory) -> House:
    """The embedded model."""
    root = tmp_path_factory.mktemp("real") / "avatar-edit"
    shutil.copytree(embedded_model(), root)
    tables = {"worker": {**REAL, "model": str(root)}, "gateway": {"remote_model_control": True}}
    return House(start_stack(tables), root, "avatar-edit")


@asynccontextmanager
async def loads(house: House, client: Client, *adapters: str) -> AsyncIterator[list[Load]]:
    """Each has drawn before the block and draws after it."""
    running = [Load(house, client, adapter) for adapter in adapters]
    try:
        for load in running:
            await load.more(2)
        yield running
        for load in running:
            await load.more(2)
    finally:
        await asyncio.gather(*(load.end() for load in running))


@pytest.fixture(scope="module")
def tiny(start_stack: StartStack, tmp_path_factory: pytest.TempPathFactory) -> House:
    """A model of random weights, of which one layer is easily changed."""
    root = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    tables = {"worker": {**REAL, "model": str(root)}, "gateway": {"remote_model_control": True}}
    return House(start_stack(tables), root, "tiny")


def write(folder: Path, weights: str) -> None:
    """Files of an adapter as the fake engine reads them; put in place at once."""
    made = folder.with_name(f".{folder.name}")
    made.mkdir(parents=True)
    (made / DESCRIPTION).write_text(json.dumps({"format": 1, "traits": {"max_steps": 10}}))
    (made / WEIGHTS).write_text(weights)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


async def test_two_workers_change_together_and_one_that_is_killed_comes_back_with_it(fake: House) -> None:
    async with Client(fake.stack.gateway) as client:
        assert (await fake.refused("Load", "late"))[0] is grpc.StatusCode.NOT_FOUND
        async with loads(fake, client, "none", "few-step") as others:
            write(fake.folder("late"), "1")
            await fake.call("Load", "late")
            first = (await fake.edit(client, "late")).array.astype(int)
            async with loads(fake, client, "late") as (late,):
                write(fake.folder("late"), "2")
                await fake.call("Load", "late")
                second = (await fake.edit(client, "late")).array.astype(int)
                assert not is_like(first, second)
                assert fake.stack.kill_service("worker-0")
                await late.more(20)
            drawn = sorts(late.pictures, first, second)
            assert drawn[0] == 0
            assert drawn[-20:] == [1] * 20
            await asyncio.to_thread(
                fake.stack.wait_until, lambda status: all(item.is_up for item in status.workers), PATIENCE_S
            )
            assert is_like((await fake.edit(client, "late")).array.astype(int), second)
            await fake.call("Unload", "late")
            with pytest.raises(NotFound, match="there is: few-step"):
                await fake.edit(client, "late")
            assert await fake.state("late") in ("UNLOADING", "UNAVAILABLE")
        assert not any(number for load in others for number in sorts(load.pictures, load.pictures[0]))
    assert fake.stack.status().failed == 0


def change(file: Path, ending: str, factor: float) -> None:
    """Weighs tensors of such names otherwise; the file is put in place at once."""
    tensors = load_file(file)
    scaled = {
        name: (tensor * tensor.dtype.type(factor) if name.endswith(ending) else tensor)
        for name, tensor in tensors.items()
    }
    assert any(name.endswith(ending) for name in tensors)
    new = file.with_name("new")
    save_file(scaled, new)
    new.rename(file)


async def test_the_embedded_model_s_adapter_under_another_name(real: House) -> None:
    shutil.copytree(real.folder("few-step"), real.folder("late"))
    async with Client(real.stack.gateway) as client:
        own = (await real.edit(client, "few-step")).array.astype(int)
        with pytest.raises(NotFound):
            await real.edit(client, "late")
        async with loads(real, client, "few-step", "none") as (few_step, plain):
            await real.call("Load", "late")
            assert await real.state("late") == "READY"
            async with loads(real, client, "late") as (late,):
                change(real.folder("late") / WEIGHTS, "lora_B.weight", 0.5)
                await real.call("Load", "late")
                changed = (await real.edit(client, "late")).array.astype(int)
                (real.folder("late") / WEIGHTS).write_bytes(b"no weights")
                code, words = await real.refused("Load", "late")
                assert (code, "no complete safetensors file" in words) == (grpc.StatusCode.FAILED_PRECONDITION, True)
                assert is_like((await real.edit(client, "late")).array.astype(int), changed)
            drawn = sorts(late.pictures, own, changed)  # the same weights under another name draw the same
            assert (drawn[0], drawn[-1]) == (0, 1)
            await real.call("Unload", "late")
            with pytest.raises(NotFound, match="there is: few-step"):
                await real.edit(client, "late")
        assert not any(sorts(few_step.pictures, own))
        assert not any(sorts(plain.pictures, plain.pictures[0]))
    assert real.stack.status().failed == 0
    assert "Traceback" not in real.stack.log


async def test_the_model_itself_is_loaded_anew_from_changed_weights(tiny: House) -> None:
    async with Client(tiny.stack.gateway) as client:
        old = (await tiny.edit(client, "none")).array.astype(int)
        async with loads(tiny, client, "none") as (load,):
            change(tiny.root / "unet" / "diffusion_pytorch_model.safetensors", "conv_out.weight", 3.0)
            await tiny.call("Load", "")
            new = (await tiny.edit(client, "none")).array.astype(int)
            assert not is_like(old, new)
            await load.more(6)
            drawn = sorts(load.pictures, old, new)
            assert (drawn[0], drawn[-6:]) == (0, [1] * 6)
        assert sorts(load.pictures, old, new)[-1] == 1
    status = tiny.stack.status()
    assert (status.failed, status.expired, list(status.refused.values())) == (0, 0, [])
