"""Callers that go away, read slowly or not at all: nobody else notices, and nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cable import Cable, laid
from gateway_house import arenas, eventually, request

from steploom_batcher.config import BatcherConfig
from steploom_batcher.fake_worker import fake_model, fake_ready, flat_costs
from steploom_batcher.fake_worker_service import FakeWorkerService, serve_fake_worker
from steploom_batcher.server import BatcherServer
from steploom_batcher.types import Stage, Tick
from steploom_gateway.config import GatewayConfig
from steploom_gateway.server import Gateway
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1 import image_pb2_grpc

SLOTS = 4
OTHERS = {"idle": 0, "load": 6}  # requests beside the one at fault
HELD_S = 0.2  # that a stage takes in which a caller goes away
BRISK_S = 0.002
STAGES = {"encode": Stage.ENCODE, "denoise": Stage.DENOISE, "decode": Stage.DECODE}
SMALL, LARGE = 8, 1000  # pixels of the model's side; the large picture is more than a connection takes unread
RAW = pb.IMAGE_FORMAT_RAW


@dataclass
class House:
    """Gateway, batcher and a worker that computes nothing, in this process; and a cable to the gateway."""

    gateway: Gateway
    batcher: BatcherServer
    worker: FakeWorkerService
    cable: Cable
    near: image_pb2_grpc.ImageServiceAsyncStub  # past the cable
    far: image_pb2_grpc.ImageServiceAsyncStub  # through it

    def has_ticked(self, stage: Stage) -> bool:
        """The worker has been sent a tick of this stage."""
        assert self.worker.worker
        return any(isinstance(command, Tick) and command.stage is stage for command in self.worker.worker.history)

    def is_clean(self) -> bool:
        """Nothing is open, lent, queued or in a slot."""
        workers = self.batcher.driver.statistics().workers.values()
        loans = self.gateway.loans
        return (
            self.gateway.service.num_open == loans.num_used == loans.num_settling == self.batcher.driver.num_jobs == 0
            and all(worker.slots_used == worker.ticks_in_flight == 0 for worker in workers)
            and self.worker.worker is not None
            and not self.worker.worker.slots
        )


@asynccontextmanager
async def opened(folder: Path, slow: Stage | None = None, side: int = SMALL, **settings: Any) -> AsyncIterator[House]:
    """A house whose worker takes its time for one stage; nothing may be left when it closes."""
    before = asyncio.all_tasks()
    costs = {**flat_costs(BRISK_S, BRISK_S / 20, BRISK_S)}
    if slow is not None:
        costs[slow] = dict.fromkeys(costs[slow], HELD_S)
    service = FakeWorkerService(fake_ready(costs, SLOTS, fake_model(height=side, width=side)))
    worker = await serve_fake_worker(f"unix:{folder}/w.sock", service)
    batcher = BatcherServer(BatcherConfig(), f"unix:{folder}/b.sock", [f"unix:{folder}/w.sock"])
    await batcher.start()
    config = GatewayConfig(
        listen="127.0.0.1:0", metrics_listen="", batcher=f"unix:{folder}/b.sock", poll_s=0.05, settle_s=0.1, **settings
    )
    gateway = Gateway(config, folder)
    await gateway.start()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    options += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024)]  # that a caller takes unasked
    async with (
        laid(gateway.port) as cable,
        grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}", options) as near,
        grpc.aio.insecure_channel(f"127.0.0.1:{cable.port}", options) as far,
    ):
        house = House(
            gateway, batcher, service, cable, *(image_pb2_grpc.ImageServiceStub(channel) for channel in (near, far))
        )
        assert await eventually(lambda: gateway.batcher.is_serving)
        await far.channel_ready()
        yield house
        assert await eventually(house.is_clean), house
        assert (await house.near.Edit(request(steps=1))).timings.ticks == 3  # and there is service
    await gateway.close()
    await batcher.stop()
    await worker.stop(None)
    assert not arenas(folder)
    assert await eventually(lambda: asyncio.all_tasks() <= before), asyncio.all_tasks() - before


def begun(stub: image_pb2_grpc.ImageServiceAsyncStub, method: str, **fields: Any) -> asyncio.Task[str]:
    """A request under way; gives the status with which it ends, as its caller sees it."""
    return asyncio.create_task(_status(getattr(stub, method)(request(**{"steps": 3, **fields})), method))


async def _status(call: Any, method: str) -> str:
    try:
        if method == "Edit":
            await call
        else:
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


@pytest.mark.parametrize("load", OTHERS)
@pytest.mark.parametrize("method", ["Edit", "EditStream"])
@pytest.mark.parametrize("stage", ["queue", *STAGES])
async def test_caller_goes_away(tmp_path: Path, stage: str, method: str, load: str) -> None:
    async with opened(tmp_path, STAGES.get(stage, Stage.DENOISE)) as house:
        num_before = SLOTS if stage == "queue" else 0  # that hold all slots
        others = [begun(house.near, "Edit") for _ in range(num_before)]
        if num_before:
            assert await eventually(lambda: house.has_ticked(Stage.DENOISE))
        lost = begun(house.far, method)
        others += [begun(house.near, "EditStream") for _ in range(OTHERS[load])]
        if stage == "queue":
            assert await eventually(lambda: house.batcher.driver.num_jobs > SLOTS)
        else:
            assert await eventually(lambda: house.has_ticked(STAGES[stage]))
        house.cable.cut()
        assert (await lost).startswith("UNAVAILABLE")
        assert await asyncio.gather(*others) == ["OK"] * len(others)


@pytest.mark.parametrize("load", OTHERS)
@pytest.mark.parametrize("method", ["Edit", "EditStream"])
async def test_caller_goes_away_in_the_answer(
    tmp_path: Path, method: str, load: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that is half answered is no error of ours."""
    async with opened(tmp_path, side=LARGE) as house:
        call: Any = getattr(house.far, method)(request(steps=3, output_format=RAW))
        assert await eventually(lambda: house.has_ticked(Stage.ENCODE))
        if method == "Edit":  # what comes of a stream stays where it is until it is asked for
            house.cable.is_open.clear()
        others = [begun(house.near, "Edit", output_format=RAW) for _ in range(OTHERS[load])]
        assert await asyncio.gather(*others) == ["OK"] * len(others)
        assert await eventually(lambda: house.batcher.driver.num_jobs == house.gateway.loans.num_used == 0)
        await asyncio.sleep(HELD_S)  # for the answer to be on its way
        house.cable.cut()
        assert (await _status(call, method)).startswith("UNAVAILABLE")
    ours = [record for record in caplog.records if record.name.startswith("steploom")]
    assert not [record for record in ours if record.levelname == "ERROR"]


@pytest.mark.parametrize("load", OTHERS)
@pytest.mark.parametrize("where", ["caller", "connection"])
async def test_caller_reads_nothing(tmp_path: Path, where: str, load: str) -> None:
    """Its call ends, whether it does not ask for what has come or takes nothing off its connection."""
    async with opened(tmp_path, side=LARGE, unread_s=0.5) as house:
        call: Any = house.far.EditStream(request(steps=3, output_format=RAW))
        assert await eventually(lambda: house.has_ticked(Stage.ENCODE))
        if where == "connection":
            house.cable.is_open.clear()
        others = [begun(house.near, "Edit") for _ in range(OTHERS[load])]
        assert await asyncio.gather(*others) == ["OK"] * len(others)
        assert await eventually(lambda: house.batcher.driver.statistics().finished == 1 + len(others))
        assert await eventually(house.is_clean)
        house.cable.is_open.set()
        assert await _status(call, "EditStream") == "CANCELLED: an answer was left unread for 0.5 s"


@pytest.mark.parametrize("load", OTHERS)
@pytest.mark.parametrize("method", ["Edit", "EditStream"])
async def test_caller_reads_slowly(tmp_path: Path, method: str, load: str) -> None:
    async with opened(tmp_path, side=LARGE) as house:
        house.cable.answer_s = 0.001
        slow = begun(house.far, method, output_format=RAW)
        others = [begun(house.near, "Edit") for _ in range(OTHERS[load])]
        assert await asyncio.gather(*others) == ["OK"] * len(others)
        assert await slow == "OK"
