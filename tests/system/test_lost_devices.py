"""A worker whose device is lost, or has no memory left, under a real supervisor, batcher and gateway.

The engine is the one for GPUs, on a CPU; its faults are the exceptions that torch raises.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import faulty_worker
import numpy as np
import pytest

from steploom.aio import Client
from steploom.config import UpConfig
from steploom.plan import Plan, ServiceSpec
from steploom.service import ServiceFailed
from steploom.supervisor import Supervisor
from steploom.types import EditResult
from steploom_common.rpc import Shutdown
from steploom_engine_worker.tiny_model import write_tiny_model
from steploom_loadtest.pictures import portrait
from steploom_loadtest.stack import Stack, Tables, to_toml

JOBS = 4
PATIENCE_S = 240.0
FATAL = "worker-0 ended with exit code 3"
UP = UpConfig(min_backoff_s=0.1, max_backoff_s=0.5, start_tries=2)


class Worker:
    """A worker process whose device fails on command, and its supervisor."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.address = f"unix:{folder}/worker.sock"
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.lines: list[str] = []
        self._caplog = caplog
        small = {"denoise_buckets": [3, 12], "encode_buckets": [1, 4], "decode_buckets": [1, 4], "slots": 8}
        table = {"model": str(write_tiny_model(folder / "tiny")), "max_steps": 12, "warmup_repeats": 1, **small}
        config = folder / "worker.toml"
        config.write_text(to_toml({"worker": table}))
        command = (faulty_worker.__file__, str(self.faults), "--config", str(config), "--listen", self.address)
        spec = ServiceSpec("worker-0", self.address, command)
        plan = Plan(((spec,),), "", "", (self.address,))
        self.supervisor = Supervisor(plan, UP, lambda _, line: self.lines.append(line))

    @property
    def deaths(self) -> int:
        """How often it has ended because its device could not go on."""
        return sum(record.getMessage().startswith(FATAL) for record in self._caplog.records)

    def fail(self, place: str, fault: str) -> None:
        """The next time that it comes by `place`."""
        (self.faults / f".{place}").write_text(fault)
        (self.faults / f".{place}").rename(self.faults / place)  # never seen half written

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Runs within the block, from when it is ready."""
        shutdown, ready = Shutdown(), asyncio.Event()
        task = asyncio.create_task(self.supervisor.run(shutdown, lambda _: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert ready.is_set(), self.lines
            yield
        finally:
            waiting.cancel()
            shutdown.signal()
            await asyncio.wait_for(task, PATIENCE_S)


@pytest.fixture
def worker(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    caplog.set_level("INFO")
    monkeypatch.setenv("PYTHONPATH", faulty_worker.python_path())
    with tempfile.TemporaryDirectory(prefix="steploom-test-") as folder:  # a socket's path has a bound
        yield Worker(Path(folder), caplog)


async def edit_all(client: Client) -> list[EditResult]:
    edits = (
        client.edit(portrait(), "make the hair blond", seed=seed, steps=4 + seed, tier="free", timeout=PATIENCE_S)
        for seed in range(JOBS)
    )
    return list(await asyncio.gather(*edits))


def largest_difference(some: list[EditResult], others: list[EditResult]) -> int:
    pairs = zip(some, others, strict=True)
    return max(int(np.abs(one.array.astype(int) - other.array.astype(int)).max()) for one, other in pairs)


async def test_no_job_is_lost_with_a_device(worker: Worker, start_stack: Callable[[Tables], Stack]) -> None:
    async with worker.up():
        stack = await asyncio.to_thread(start_stack, {"batcher": {"workers": [worker.address]}})
        async with Client(stack.gateway) as client:
            undisturbed, asked = await edit_all(client), JOBS
            faults = [("launch", "in Triton", 1), ("wait", "illegal address", 1), ("encode-of-several", "memory", 0)]
            for place, fault, costs in faults:
                before = worker.deaths
                worker.fail(place, fault)
                while (worker.faults / place).exists():  # which jobs share a tick is not ours to say
                    drawn = await edit_all(client)
                    asked += JOBS
                    # in other batches than before, and so with other roundings: by one level of 255 at most
                    assert largest_difference(drawn, undisturbed) <= 1
                assert worker.deaths == before + costs, worker.lines
        status = await asyncio.to_thread(stack.status)
        assert (status.submitted, status.finished, status.failed) == (asked, asked, 0)


async def test_a_device_that_never_has_memory_is_given_up_with_its_words(worker: Worker) -> None:
    worker.fail("record", "memory always")
    with pytest.raises(ServiceFailed, match="it failed 2 times without coming up, last with exit code 3") as failure:
        await worker.supervisor.run(Shutdown(), lambda _: None)
    assert "the engine cannot go on: CUDA out of memory" in str(failure.value)
