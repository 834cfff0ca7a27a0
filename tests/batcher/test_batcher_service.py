"""The Batcher service over real sockets, with a fake worker in the same process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steploom_batcher.config import BatcherConfig, TierConfig
from steploom_batcher.fake_worker import fake_model, fake_ready, flat_costs
from steploom_batcher.fake_worker_service import FakeWorkerService, serve_fake_worker
from steploom_batcher.messages import AdapterVersion, Admit, Model
from steploom_batcher.server import BatcherServer
from steploom_batcher.types import Stage
from steploom_common.adapter import AdapterTraits
from steploom_protos.batcher.v1 import batcher_pb2 as pb
from steploom_protos.batcher.v1 import batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

COSTS = flat_costs(0.001, 0.0005, 0.001)
CRAWL_S = 0.05  # a tick of a worker that crawls: a long job lives until it is cancelled, which takes two ticks at most


class System:
    """A batcher, a fake worker, and a stub to ask it with."""

    def __init__(self, folder: Path, config: BatcherConfig, model: Model | None = None) -> None:
        self.worker_address = f"unix:{folder}/w.sock"
        self.address = f"unix:{folder}/b.sock"
        self.worker_service = FakeWorkerService(fake_ready(COSTS, model=model))
        self.server = BatcherServer(config, self.address, [self.worker_address])
        self.driver = self.server.driver

    async def start(self) -> None:
        self.worker_server = await serve_fake_worker(self.worker_address, self.worker_service)
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = batcher_pb2_grpc.BatcherStub(self.channel)
        await eventually(lambda: self.driver.can_serve)

    def crawl(self, tick_s: float = CRAWL_S) -> None:
        """Ticks that begin from now on take so long each, whatever is in them."""
        assert self.worker_service.worker is not None
        self.worker_service.worker.costs = {stage: dict.fromkeys(table, tick_s) for stage, table in COSTS.items()}

    def hurry(self) -> None:
        """Ticks take their own time again."""
        assert self.worker_service.worker is not None
        self.worker_service.worker.costs = COSTS

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop()
        await self.worker_server.stop(None)


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
def config() -> BatcherConfig:
    return BatcherConfig(
        tiers={
            "free": TierConfig(steps=3, deadline_s=600),
            "pro": TierConfig(steps=35, deadline_s=600),
            "auto": TierConfig(steps=4, adapter="auto"),
            "student": TierConfig(steps=4, adapter="student"),
            "lost": TierConfig(steps=4, adapter="lost"),
        },
        min_backoff_s=0.02,
        max_backoff_s=0.05,
    )


@pytest.fixture
async def system(tmp_path: Path, config: BatcherConfig) -> AsyncIterator[System]:
    made = System(tmp_path, config)
    await made.start()
    yield made
    await made.stop()


def request(job_id: str = "a", **changes: object) -> pb.SubmitRequest:
    pixels = worker_pb2.Pixels(height=4, width=4, inline=bytes(48))
    fields = {"job_id": job_id, "tier": "free", "instruction": "smile", "pixels": pixels, "seed": 2**63 + 1, **changes}
    return pb.SubmitRequest(**fields)  # type: ignore[arg-type]


async def submit(system: System, **changes: object) -> pb.JobEvent:
    """The last event."""
    return [event async for event in system.stub.Submit(request(**changes))][-1]  # type: ignore[arg-type]


async def status_of(call: grpc.aio.UnaryStreamCall[pb.SubmitRequest, pb.JobEvent]) -> grpc.StatusCode:
    while await call.read() is not grpc.aio.EOF:
        pass
    return await call.code()


async def assert_nothing_left(system: System) -> None:
    await eventually(lambda: system.driver.num_jobs == 0)
    await eventually(lambda: system.worker_service.worker is None or not system.worker_service.worker.slots)
    assert all(worker.slots_used == 0 for worker in system.driver.statistics().workers.values())


async def test_a_job_goes_through(system: System) -> None:
    events = [event async for event in system.stub.Submit(request(preview_every=2))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "admitted"
    assert kinds[-1] == "finished"
    assert events[0].admitted.steps == 3
    assert (events[0].admitted.tier, events[0].admitted.model) == ("free", "fake")
    assert events[-1].finished.pixels.inline.startswith(f"{2**63 + 1}:smile:".encode())
    assert events[-1].finished.timings.ticks == 5
    await assert_nothing_left(system)


async def test_a_picture_in_shared_memory_stays_there(system: System) -> None:
    region = worker_pb2.Region(path="/dev/shm/steploom-arena-1", offset=96, size=48)
    pixels = worker_pb2.Pixels(height=4, width=4, region=region)
    finished = (await submit(system, pixels=pixels, output=region)).finished
    assert finished.pixels.region == region


async def test_defaults_are_those_of_tier_and_model(system: System) -> None:
    await submit(system)
    worker = system.worker_service.worker
    assert worker is not None
    admit = worker.history[0]
    assert isinstance(admit, Admit)
    assert admit.payload.guidance_scale == 7.5
    assert admit.payload.image_guidance_scale == 1.5
    assert admit.payload.sampler == 1
    assert admit.payload.adapter == ""
    await submit(system, guidance_scale=1.0, image_guidance_scale=1.0, adapter="student", sampler=3, steps=4)
    admit = next(item for item in worker.history[1:] if isinstance(item, Admit))
    assert (admit.payload.adapter, admit.payload.sampler, admit.payload.steps) == ("student", 3, 4)
    assert system.driver.statistics().denoise_rows == 3 * 3 + 4 * 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"tier": "gold"}, grpc.StatusCode.NOT_FOUND, "free, pro, auto, student, lost"),
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "there is: fake"),
        ({"adapter": "other"}, grpc.StatusCode.NOT_FOUND, "there is: student"),
        ({"adapter": "auto"}, grpc.StatusCode.NOT_FOUND, "there is: student"),
        ({"tier": "lost"}, grpc.StatusCode.NOT_FOUND, "adapter 'lost' does not exist; there is: student"),
        ({"tier": "student", "adapter": "other"}, grpc.StatusCode.NOT_FOUND, "adapter 'other'"),
        (
            {"tier": "student", "steps": 5},
            grpc.StatusCode.INVALID_ARGUMENT,
            "is 5, must be 1 to 4 with adapter student",
        ),
        ({"tier": "pro", "adapter": "student"}, grpc.StatusCode.INVALID_ARGUMENT, "steps: is 35, must be 1 to 4"),
        (
            {"adapter": "student", "image_guidance_scale": 3.5},
            grpc.StatusCode.INVALID_ARGUMENT,
            "is 3.5, must be 1 to 3",
        ),
        ({"steps": 101}, grpc.StatusCode.INVALID_ARGUMENT, "steps: is 101, must be at most 100"),
        ({"sampler": 77}, grpc.StatusCode.INVALID_ARGUMENT, "sampler: 77 does not exist"),
        ({"job_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "job_id"),
        ({"pixels": worker_pb2.Pixels(height=4, width=5)}, grpc.StatusCode.UNAVAILABLE, "is 4x5, must be 4x4"),
        ({"pixels": worker_pb2.Pixels(height=4, width=4)}, grpc.StatusCode.INVALID_ARGUMENT, "has 0 bytes"),
        ({"deadline_unix_s": 1.0}, grpc.StatusCode.DEADLINE_EXCEEDED, "predicted"),
    ],
)
async def test_what_cannot_run_is_refused(
    system: System, changes: dict[str, object], code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system, **changes)
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("changes", "adapter", "rows"),
    [
        ({"tier": "free"}, "", 9),
        ({"tier": "free", "adapter": "none"}, "", 9),
        ({"tier": "free", "adapter": "student"}, "student", 3),
        ({"tier": "student"}, "student", 4),
        ({"tier": "student", "adapter": "none"}, "", 12),
        ({"tier": "auto"}, "student", 4),
        ({"tier": "auto", "steps": 5}, "", 15),
        ({"tier": "auto", "guidance_scale": 10.0, "image_guidance_scale": 3.0}, "student", 4),
        ({"tier": "auto", "guidance_scale": 10.5}, "", 12),
        ({"tier": "auto", "adapter": "none"}, "", 12),
    ],
)
async def test_a_job_has_the_rows_of_its_adapter(
    system: System, changes: dict[str, object], adapter: str, rows: int
) -> None:
    events = [event async for event in system.stub.Submit(request(**changes))]  # type: ignore[arg-type]
    assert events[0].admitted.adapter == adapter
    assert system.worker_service.worker is not None
    admit = system.worker_service.worker.history[0]
    assert isinstance(admit, Admit)
    assert admit.payload.adapter == adapter
    assert system.driver.statistics().denoise_rows == rows


async def test_bounds_of_an_adapter_are_told_field_by_field(system: System) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system, adapter="student", steps=101, guidance_scale=10.5, image_guidance_scale=1.0)
    packed = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    bad = error_details_pb2.BadRequest()
    status_pb2.Status.FromString(packed).details[0].Unpack(bad)
    assert [row.field for row in bad.field_violations] == ["steps", "guidance_scale"]


async def test_a_model_without_adapters_serves_every_tier_that_names_none(
    tmp_path: Path, config: BatcherConfig
) -> None:
    system = System(tmp_path, config, replace(fake_model(), adapters={}))
    await system.start()
    assert (await submit(system, tier="auto")).HasField("finished")
    assert system.driver.statistics().denoise_rows == 12
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system, tier="student")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await system.stop()


async def test_an_id_that_lives_is_refused(system: System) -> None:
    system.crawl()
    first = system.stub.Submit(request(steps=90))
    await first.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await system.stub.Cancel(pb.CancelRequest(job_id="a"))
    await submit(system)


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.01, 0.05])
async def test_a_call_that_is_cancelled_frees_its_slot(system: System, after_s: float) -> None:
    call = system.stub.Submit(request(steps=90))
    await call.read()
    await asyncio.sleep(after_s)
    system.crawl()  # the job does not end before the cancel has come
    call.cancel()
    await system.stub.Cancel(pb.CancelRequest(job_id="a"))
    assert not system.driver.has_job("a")
    await assert_nothing_left(system)
    await eventually(lambda: system.driver.statistics().cancelled == 1)


async def test_cancel_ends_an_open_call_once_no_worker_holds_the_job(system: System) -> None:
    system.crawl()
    call = system.stub.Submit(request(steps=90))
    await call.read()
    answer = await system.stub.Cancel(pb.CancelRequest(job_id="a"))
    assert answer.was_alive
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await status_of(call)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert not (await system.stub.Cancel(pb.CancelRequest(job_id="a"))).was_alive


async def test_a_caller_whose_channel_closes_is_gone(system: System) -> None:
    system.crawl()
    async with grpc.aio.insecure_channel(system.address) as channel:
        stub = batcher_pb2_grpc.BatcherStub(channel)
        calls = [stub.Submit(request(f"j{number}", steps=90)) for number in range(30)]
        await asyncio.gather(*(call.read() for call in calls))
        assert system.driver.num_jobs == 30
    await assert_nothing_left(system)


async def test_two_hundred_cancelled_calls_under_load_leave_nothing(system: System) -> None:
    before = len(asyncio.all_tasks())
    load = [asyncio.create_task(submit(system, job_id=f"load{number}", steps=20)) for number in range(20)]

    async def cancelled(number: int) -> None:
        call = system.stub.Submit(request(f"j{number}", steps=60))
        if number % 3:
            await call.read()
        await asyncio.sleep(number % 10 * 0.002)
        call.cancel()
        if number % 2:
            await system.stub.Cancel(pb.CancelRequest(job_id=f"j{number}"))

    await asyncio.gather(*(cancelled(number) for number in range(200)))
    ends = await asyncio.gather(*load)
    assert all(event.HasField("finished") for event in ends)
    await assert_nothing_left(system)
    await eventually(lambda: len(asyncio.all_tasks()) <= before + 2)  # the calls' own ends


async def test_a_poisoned_job_fails_alone(system: System, caplog: pytest.LogCaptureFixture) -> None:
    assert system.worker_service.worker is not None
    system.worker_service.worker.poison.add("bad")
    good = [submit(system, job_id=f"j{number}") for number in range(5)]
    results = await asyncio.gather(submit(system, job_id="bad"), *good, return_exceptions=True)
    error = results[0]
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.INTERNAL
    error_id = (error.details() or "").rsplit(" ", 1)[1]
    assert any(error_id in line and "a poisoned job" in line for line in caplog.messages)
    assert all(isinstance(result, pb.JobEvent) for result in results[1:])


async def test_a_job_whose_values_go_bad_fails_alone(system: System, caplog: pytest.LogCaptureFixture) -> None:
    assert system.worker_service.worker is not None
    system.worker_service.worker.overflow["bad"] = Stage.DENOISE, 1
    good = [submit(system, job_id=f"j{number}") for number in range(5)]
    results = await asyncio.gather(submit(system, job_id="bad"), *good, return_exceptions=True)
    error = results[0]
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code() is grpc.StatusCode.INTERNAL
    error_id = (error.details() or "").rsplit(" ", 1)[1]
    assert any(error_id in line and "values that are not finite" in line for line in caplog.messages)
    assert all(isinstance(result, pb.JobEvent) for result in results[1:])
    assert system.worker_service.num_streams == 1


async def test_jobs_survive_the_death_of_their_worker(system: System) -> None:
    calls = [asyncio.create_task(submit(system, job_id=f"j{number}", steps=80, seed=number)) for number in range(6)]
    await eventually(lambda: system.driver.statistics().ticks.get("denoise", 0) > 5)
    await system.worker_server.stop(None)
    await eventually(lambda: not system.driver.can_serve)
    system.worker_server = await serve_fake_worker(system.worker_address, system.worker_service)
    for number, event in enumerate(await asyncio.gather(*calls)):
        assert event.finished.pixels.inline.startswith(f"{number}:smile".encode())
    assert system.worker_service.num_streams == 2
    await assert_nothing_left(system)


async def test_a_request_without_a_model_gets_the_one_that_is_served_now(system: System) -> None:
    """Not the one that was served first; and a gateway that has not heard of it yet is told to try again."""
    await system.worker_server.stop(None)
    await eventually(lambda: not system.driver.can_serve)
    system.worker_service = FakeWorkerService(fake_ready(COSTS, model=fake_model("next", 6, 6)))
    system.worker_server = await serve_fake_worker(system.worker_address, system.worker_service)
    await eventually(lambda: system.driver.can_serve)
    assert (await system.stub.Status(pb.StatusRequest())).model.name == "next"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    event = await submit(system, pixels=worker_pb2.Pixels(height=6, width=6, inline=bytes(108)))
    assert event.HasField("finished")


async def test_a_deadline_that_passes_ends_the_job(system: System) -> None:
    system.crawl(0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system, steps=50, deadline_unix_s=time.time() + 0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await assert_nothing_left(system)


async def test_status_adds_up(system: System) -> None:
    await asyncio.gather(*(submit(system, job_id=f"j{number}") for number in range(10)))
    await system.stub.Cancel(pb.CancelRequest(job_id="none"))
    with pytest.raises(grpc.aio.AioRpcError):
        await submit(system, deadline_unix_s=1.0)
    system.crawl()
    running = system.stub.Submit(request("long", tier="pro", steps=100))
    await running.read()
    status = await system.stub.Status(pb.StatusRequest())
    assert status.model.name == "fake"
    assert (status.submitted, status.finished, dict(status.refused)) == (12, 10, {"deadline": 1})
    assert (status.failed, status.cancelled, status.expired) == (0, 0, 0)
    assert [(tier.name, tier.queued, tier.running) for tier in status.tiers][:2] == [("free", 0, 0), ("pro", 0, 1)]
    assert all(tier.weight > 0 for tier in status.tiers)
    assert [adapter.name for adapter in status.model.adapters] == ["student"]
    (worker,) = status.workers
    assert (worker.address, worker.is_up, worker.slots, worker.slots_used) == (system.worker_address, True, 16, 1)
    assert worker.engine == "fake"
    assert {(Stage(cost.stage), cost.bucket) for cost in worker.costs} == {
        (stage, bucket) for stage, table in COSTS.items() for bucket in table
    }
    assert all(cost.seconds > 0 for cost in worker.costs)
    assert status.rows >= 90
    assert status.ticks > 0
    assert status.batcher_cpu_s > 0
    assert status.policy == "step"
    running.cancel()


async def test_adapters_come_and_go(system: System) -> None:
    """Through sockets: what is offered, what a job draws with, and the words of what cannot be."""
    load, unload, folder = system.stub.LoadAdapter, system.stub.UnloadAdapter, system.worker_service.folder

    async def states() -> dict[str, str]:
        found = (await system.stub.Status(pb.StatusRequest())).adapters
        return {item.name: pb.AdapterState.Name(item.state).removeprefix("ADAPTER_STATE_") for item in found}

    async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value.code(), caught.value.details() or ""

    assert await refused(load(pb.AdapterRequest(name="late"))) == (grpc.StatusCode.NOT_FOUND, "there is none")
    for digest in ("1", "2"):
        folder["late"] = (AdapterVersion("late", digest, AdapterTraits()), 0.0)
        await load(pb.AdapterRequest(model="fake", name="late"))
        drawn = (await submit(system, adapter="late")).finished.pixels.inline
        assert f"smile:{digest}".encode() in drawn
    folder["late"] = ("adapter.safetensors: is missing", 0.0)
    code, words = await refused(load(pb.AdapterRequest(name="late")))
    assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION, "adapter.safetensors: is missing")
    assert await states() == {"student": "READY", "late": "READY"}
    status = await system.stub.Status(pb.StatusRequest())
    assert [adapter.name for adapter in status.model.adapters] == ["student", "late"]
    system.crawl(0.2)
    running = asyncio.create_task(submit(system, adapter="late"))
    await eventually(lambda: system.driver.num_jobs == 1)
    await unload(pb.AdapterRequest(name="late"))
    assert await states() == {"student": "READY", "late": "UNLOADING"}
    assert await refused(submit(system, job_id="b", adapter="late")) == (
        grpc.StatusCode.NOT_FOUND, "adapter 'late' does not exist; there is: student",
    )  # fmt: skip
    assert b"smile:2" in (await running).finished.pixels.inline
    worker = system.worker_service.worker
    assert worker
    await eventually(lambda: [item.name for item in worker.versions] == ["student"])
    assert await states() == {"student": "READY", "late": "UNAVAILABLE"}
    code, words = await refused(unload(pb.AdapterRequest(name="odd")))
    assert (code, words) == (grpc.StatusCode.NOT_FOUND, "adapter 'odd' does not exist; there is: student")
    code, words = await refused(load(pb.AdapterRequest(model="odd", name="late")))
    assert (code, words) == (grpc.StatusCode.NOT_FOUND, "model 'odd' does not exist; there is: fake")


async def test_recent_ticks_show_what_every_job_had_of_the_device(system: System) -> None:
    await asyncio.gather(submit(system, job_id="a"), submit(system, job_id="b"))
    answer = await system.stub.Ticks(pb.TicksRequest())
    assert (answer.last, answer.lost) == (len(answer.ticks), 0)
    assert {tick.worker for tick in answer.ticks} == {system.worker_address}
    assert all(tick.status == worker_pb2.TICK_STATUS_OK and tick.seconds > 0 for tick in answer.ticks)
    assert all(sum(part.rows for part in tick.parts) == tick.rows <= tick.bucket for tick in answer.ticks)
    for job in "ab":
        mine = [(tick.stage, part.step) for tick in answer.ticks for part in tick.parts if part.job_id == job]
        assert mine == [
            (worker_pb2.STAGE_ENCODE, 0),
            *((worker_pb2.STAGE_DENOISE, step) for step in (1, 2, 3)),
            (worker_pb2.STAGE_DECODE, 0),
        ]
    starts = [tick.start_unix_s for tick in answer.ticks]
    assert starts == sorted(starts)
    await submit(system, job_id="c")
    later = await system.stub.Ticks(pb.TicksRequest(after=answer.last))
    assert len(later.ticks) == later.last - answer.last == 5


async def test_drain_waits_for_the_last_job_and_refuses_new_ones(system: System) -> None:
    health = health_pb2_grpc.HealthStub(system.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    system.crawl()
    running = asyncio.create_task(submit(system, steps=100))
    await eventually(lambda: system.driver.num_jobs == 1)
    drain = asyncio.ensure_future(system.stub.Drain(pb.DrainRequest()))
    await eventually(lambda: system.driver.is_draining)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(system, job_id="late")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "1000"
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not drain.done()
    system.hurry()
    assert (await drain).unfinished == 0
    assert (await running).HasField("finished")
    assert (await system.stub.Status(pb.StatusRequest())).is_draining


async def test_drain_answers_before_its_own_deadline(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steploom_batcher.service._ANSWER_S", 59.7)  # so the answer has a minute to arrive
    system.crawl(1.0)
    running = system.stub.Submit(request(steps=100))
    await running.read()
    assert (await system.stub.Drain(pb.DrainRequest(), timeout=60.0)).unfinished == 1


async def test_without_a_worker_there_is_nothing_to_submit_to(tmp_path: Path, config: BatcherConfig) -> None:
    address = f"unix:{tmp_path}/b.sock"
    server = BatcherServer(config, address, [f"unix:{tmp_path}/nobody.sock"])
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = batcher_pb2_grpc.BatcherStub(channel)
        call = stub.Submit(request())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status_of(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: "UNAVAILABLE" in server.links[0].last_error)
        status = await stub.Status(pb.StatusRequest())
        assert not status.HasField("model")
        assert "UNAVAILABLE" in status.workers[0].last_error
    await server.stop()
