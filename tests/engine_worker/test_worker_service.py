"""The service over a real Unix socket, with the fake engine in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom_common.arena import Arena
from steploom_common.rpc import BindError, Shutdown
from steploom_engine_worker.commands import TickDone, TickStatus
from steploom_engine_worker.config import FakeConfig, WorkerConfig
from steploom_engine_worker.engine import Job
from steploom_engine_worker.errors import FatalEngineError
from steploom_engine_worker.fake_engine import draw
from steploom_engine_worker.launch import build_engine
from steploom_engine_worker.server import SERVICE, WorkerServer
from steploom_engine_worker.service import report_tick
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

SIDE = 16
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ENCODE, DENOISE, DECODE = worker_pb2.STAGE_ENCODE, worker_pb2.STAGE_DENOISE, worker_pb2.STAGE_DECODE
PATIENCE_S = 60.0  # for what comes soon unless the machine stalls
OK, FAILED, SKIPPED = worker_pb2.TICK_STATUS_OK, worker_pb2.TICK_STATUS_FAILED, worker_pb2.TICK_STATUS_SKIPPED


class Running:
    """A server on its loop, with a channel to it."""

    def __init__(self, address: str, server: WorkerServer, shutdown: Shutdown, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.server = server
        self.shutdown = shutdown
        self.channel = channel
        self.task = asyncio.create_task(server.run(shutdown))

    def drive(self) -> Any:
        return worker_pb2_grpc.WorkerStub(self.channel).Drive(wait_for_ready=True)

    async def health(self, service: str = SERVICE) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
        return int(reply.status)

    async def wait_free(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.server.worker.is_idle:  # noqa: ASYNC110 - the other side is a thread
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(folder: Path, drain_s: float = 10 * PATIENCE_S, **fake: Any) -> AsyncIterator[Running]:
    address = f"unix:{folder}/worker.sock"
    config = WorkerConfig(engine="fake", slots=4, fake=FakeConfig(height=SIDE, width=SIDE, **fake))
    server = WorkerServer(address, "w-1", lambda: build_engine(config), drain_s)
    async with grpc.aio.insecure_channel(address) as channel:
        this = Running(address, server, Shutdown(), channel)
        try:
            yield this
        finally:
            this.shutdown.signal()
            this.shutdown.signal()
            await asyncio.gather(this.task, return_exceptions=True)


def admit(slot: int, **changes: Any) -> worker_pb2.Command:
    values = {
        "job_id": f"job-{slot}",
        "slot": slot,
        "instruction": "x",
        "pixels": worker_pb2.Pixels(height=SIDE, width=SIDE, inline=PIXELS.tobytes()),
        "steps": 2,
        "guidance_scale": 7.5,
        "image_guidance_scale": 1.5,
        "seed": 2**64 - 1,
    }
    return worker_pb2.Command(admit=worker_pb2.Admit(**{**values, **changes}))


def tick(number: int, stage: Any, slots: list[int], steps: tuple[int, ...] = ()) -> worker_pb2.Command:
    return worker_pb2.Command(tick=worker_pb2.Tick(tick_id=number, stage=stage, slots=slots, steps=steps))


async def send(call: Any, *commands: worker_pb2.Command) -> list[worker_pb2.TickDone]:
    """Writes the commands, then reads an answer for each tick among them."""
    for command in commands:
        await call.write(command)
    answers = [command for command in commands if command.HasField("tick")]
    return [(await call.read()).tick_done for _ in answers]


async def test_the_first_answer_says_what_the_worker_is(tmp_path: Path) -> None:
    async with running(tmp_path, denoise_s=0.5) as this:
        ready = (await this.drive().read()).ready
        assert (ready.worker_id, ready.engine, ready.device, ready.slots) == ("w-1", "fake", "none", 4)
        assert (ready.model.height, ready.model.width, list(ready.model.latent_shape)) == (SIDE, SIDE, [4, 2, 2])
        assert {(cost.stage, cost.bucket): cost.seconds for cost in ready.costs}[DENOISE, 3] == 0.5
        assert await this.health() == await this.health("") == health_pb2.HealthCheckResponse.SERVING


async def test_the_first_answer_says_what_each_adapter_was_trained_for(tmp_path: Path) -> None:
    async with running(tmp_path, adapters=("fast", "faster")) as this:
        model = (await this.drive().read()).ready.model
        assert [adapter.name for adapter in model.adapters] == ["fast", "faster"]
        fast = model.adapters[0]
        assert (fast.max_steps, fast.is_guidance_distilled) == (4, True)
        assert (fast.min_guidance_scale, fast.max_guidance_scale) == (1.0, 30.0)
        assert (fast.min_image_guidance_scale, fast.max_image_guidance_scale) == (1.0, 10.0)


async def test_runs_jobs_in_order(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        done = await send(
            call,
            admit(0),
            admit(3, steps=1),
            tick(10, ENCODE, [0, 3]),
            tick(11, DENOISE, [0, 3], (0, 0)),
            tick(12, DECODE, [3]),
            tick(13, DENOISE, [0], (1,)),
            tick(14, DECODE, [0]),
        )
        assert [(item.tick_id, item.status) for item in done] == [(10, OK), (11, OK), (12, OK), (13, OK), (14, OK)]
        pixels = done[-1].pixels[0]
        assert (pixels.slot, pixels.pixels.height, pixels.pixels.width) == (0, SIDE, SIDE)
        expected = draw(Job("x", PIXELS, 2, 7.5, 1.5, 2**64 - 1), 2)
        assert pixels.pixels.inline == expected.tobytes()


async def test_streams_that_have_ended_leave_nothing_in_the_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        for _ in range(20):
            call = this.drive()
            await call.read()
            assert (await send(call, admit(0), tick(1, ENCODE, [0])))[0].status == OK
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            await this.wait_free()
        # each would hold the reports that nobody read
        assert (
            len(vars(this.server.worker.ended)["_done_callbacks"]) < 5
        )  # each would hold the reports that nobody read


async def test_a_second_stream_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        first = this.drive()
        await first.read()
        second = this.drive()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await second.read()
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert (await send(first, admit(0), tick(1, ENCODE, [0])))[0].status == OK


async def test_a_broken_stream_frees_every_slot(tmp_path: Path) -> None:
    async with running(tmp_path, denoise_s=0.2) as this:
        first = this.drive()
        await first.read()
        await send(first, *(admit(slot) for slot in range(4)), tick(1, ENCODE, [0, 1, 2, 3]))
        for number in range(2, 5):
            await first.write(tick(number, DENOISE, [number - 1], (0,)))
        first.cancel()
        await this.wait_free()
        second = this.drive()
        assert (await second.read()).HasField("ready")
        assert (await send(second, tick(9, DENOISE, [0], (0,))))[0].status == SKIPPED
        done = await send(second, *(admit(slot, steps=1) for slot in range(4)), tick(10, ENCODE, [0, 1, 2, 3]))
        assert done[0].status == OK


async def test_a_stream_that_ends_in_order_frees_every_slot_too(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        await send(call, admit(0), tick(1, ENCODE, [0]))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await this.wait_free()


async def test_poison_fails_its_tick_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        done = await send(
            call,
            admit(0),
            admit(1, instruction="poison"),
            tick(1, ENCODE, [0, 1]),
            tick(2, DENOISE, [0, 1], (0, 0)),
            tick(3, DENOISE, [0, 1], (1, 1)),
            tick(4, DENOISE, [1], (0,)),
            tick(5, DENOISE, [0], (0,)),
        )
        assert [item.status for item in done] == [OK, FAILED, SKIPPED, FAILED, OK]
        assert "poison" in done[1].error


def test_an_ok_tick_names_the_jobs_that_cannot_go_on() -> None:
    done = report_tick(TickDone(1, TickStatus.OK, failures={3: "not finite", 0: "none"})).tick_done
    assert done.status == OK
    assert {item.slot: item.error for item in done.failures} == {0: "none", 3: "not finite"}
    assert not report_tick(TickDone(2, TickStatus.OK)).tick_done.failures


async def test_pictures_travel_through_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steploom_engine_worker.server.default_directory", lambda runtime: runtime)
    arena = Arena(tmp_path, SIDE * SIDE * 3, 1)
    block = arena.borrow()
    assert block is not None
    arena.write(block.input, PIXELS)
    places = (block.input, block.output)
    regions = [worker_pb2.Region(path=item.path, offset=item.offset, size=item.size) for item in places]
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        job = admit(0, pixels=worker_pb2.Pixels(height=SIDE, width=SIDE, region=regions[0]), output=regions[1])
        course = [tick(1, ENCODE, [0]), tick(2, DENOISE, [0], (0,)), tick(3, DENOISE, [0], (1,)), tick(4, DECODE, [0])]
        done = await send(call, job, *course)
        assert done[-1].pixels[0].pixels.region == regions[1]
    expected = draw(Job("x", PIXELS, 2, 7.5, 1.5, 2**64 - 1), 2)
    np.testing.assert_array_equal(arena.read(block.output, SIDE, SIDE), expected)
    arena.close()


@pytest.mark.parametrize("command", [worker_pb2.Command(), tick(1, 99, [0])], ids=["empty", "unknown stage"])
async def test_a_command_that_means_nothing_ends_the_stream(tmp_path: Path, command: worker_pb2.Command) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        await call.write(command)
        assert await call.read() is grpc.aio.EOF
        assert (await this.drive().read()).HasField("ready")


async def test_running_out_of_memory_breaks_the_stream_and_ends_the_server(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        await send(call, admit(0, instruction="exhaust"), tick(1, ENCODE, [0]))
        await call.write(tick(2, DENOISE, [0], (0,)))
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await call.read()
        assert broken.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        with pytest.raises(FatalEngineError):
            await this.task


async def test_a_device_that_is_lost_while_the_worker_drains_ends_it_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        await send(call, admit(0, instruction="exhaust"), tick(1, ENCODE, [0]))
        this.shutdown.signal()
        while await this.health() != health_pb2.HealthCheckResponse.NOT_SERVING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await call.write(tick(2, DENOISE, [0], (0,)))
        with pytest.raises(FatalEngineError):
            await asyncio.wait_for(this.task, PATIENCE_S)


async def test_drains_before_it_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        await send(call, admit(0, steps=1), tick(1, ENCODE, [0]))
        this.shutdown.signal()
        while await this.health() != health_pb2.HealthCheckResponse.NOT_SERVING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await call.read()).HasField("leaving")
        done = await send(call, tick(2, DENOISE, [0], (0,)), tick(3, DECODE, [0]))
        assert [item.status for item in done] == [OK, OK]
        await call.write(worker_pb2.Command(release=worker_pb2.Release(slot=0)))
        assert await asyncio.wait_for(this.task, PATIENCE_S) is True


async def test_it_stays_until_the_batcher_hangs_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batcher has sent before it hears is drawn, though no slot held a job when the signal came."""
    monkeypatch.setattr("steploom_engine_worker.server._HANG_UP_S", 10 * PATIENCE_S)
    async with running(tmp_path) as this:
        call = this.drive()
        await call.read()
        this.shutdown.signal()
        assert (await call.read()).HasField("leaving")
        ticks = tick(1, ENCODE, [0]), tick(2, DENOISE, [0], (0,)), tick(3, DECODE, [0])
        assert [item.status for item in await send(call, admit(0, steps=1), *ticks)] == [OK, OK, OK]
        await call.write(worker_pb2.Command(release=worker_pb2.Release(slot=0)))
        await this.wait_free()
        late = this.drive()
        with pytest.raises(grpc.aio.AioRpcError, match="the worker is about to end"):
            await late.read()
        assert not this.task.done()
        await call.done_writing()
        assert await asyncio.wait_for(this.task, PATIENCE_S) is True


async def test_a_drain_ends_at_its_bound(tmp_path: Path) -> None:
    async with running(tmp_path, drain_s=0.2) as this:
        call = this.drive()
        await call.read()
        await send(call, admit(0), tick(1, ENCODE, [0]))
        this.shutdown.signal()
        assert await asyncio.wait_for(this.task, PATIENCE_S) is True


async def test_a_folder_that_cannot_hold_a_socket_is_an_error(tmp_path: Path) -> None:
    server = WorkerServer(
        f"unix:{tmp_path}/{'x' * 200}.sock", "w", lambda: build_engine(WorkerConfig(engine="fake")), 1
    )
    with pytest.raises(BindError, match="cannot listen"):
        await server.run(Shutdown())
