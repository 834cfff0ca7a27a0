"""Health, reflection, draining, and the end of the service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from gateway_house import House, arenas, eventually, opened, request, status_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from steploom_common.rpc import BindError, Shutdown
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.config import GatewayConfig
from steploom_gateway.fake_batcher import FakeBatcher, serving_model
from steploom_gateway.server import SERVICE_NAME, Gateway

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(house: House, service: str = "") -> Any:
    stub = health_pb2_grpc.HealthStub(house.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_follows_the_batcher(house: House, service: str) -> None:
    watch = health_pb2_grpc.HealthStub(house.channel).Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == SERVING
    house.batcher.is_worker_up = False
    assert (await watch.read()).status == NOT_SERVING
    assert await health_of(house, service) == NOT_SERVING
    house.batcher.is_worker_up = True
    assert (await watch.read()).status == SERVING
    house.batcher.is_draining = True
    assert (await watch.read()).status == NOT_SERVING
    house.batcher.is_draining = False
    assert (await watch.read()).status == SERVING
    await house.batcher.stop()
    assert (await watch.read()).status == NOT_SERVING
    await house.batcher.start()
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_health_of_an_unknown_service(house: House) -> None:
    assert (await status_of(health_of(house, "nobody"))).code() is grpc.StatusCode.NOT_FOUND


async def test_no_batcher_is_not_serving(tmp_path: Path) -> None:
    async with opened(tmp_path, has_worker=False) as house:
        assert await health_of(house) == NOT_SERVING


async def test_reflection_names_the_services(house: House) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names
    call.cancel()


async def test_drain_refuses_new_edits_and_finishes_open_ones(house: House) -> None:
    house.batcher.play(hold_at="started")
    call = house.stub.Edit(request())
    await house.batcher.reached.wait()
    drain = asyncio.create_task(house.gateway.drain(Shutdown()))
    assert await eventually(lambda: repr(house.gateway.service).endswith("draining=True)"))
    error = await status_of(house.stub.Edit(request()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
    assert await health_of(house) == NOT_SERVING
    assert not drain.done()
    house.batcher.resume.set()
    await call
    await drain
    house.batcher.is_worker_up = False
    house.batcher.is_worker_up = True
    assert await health_of(house) == NOT_SERVING


async def test_calls_that_come_with_the_end_are_refused_and_not_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        calls = [asyncio.create_task(status_of(house.stub.Edit(request()))) for _ in range(200)]
        await asyncio.sleep(0)  # they are sent, and none has been looked at
        await house.gateway.drain(Shutdown())
        await house.gateway.close()
        statuses = {error.code() for error in await asyncio.gather(*calls)}
        assert statuses == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("is_forced", [False, True])
async def test_what_outlives_the_grace_is_cut_off_with_push_back(tmp_path: Path, is_forced: bool) -> None:
    async with opened(tmp_path, drain_s=60.0 if is_forced else 0.05) as house:
        house.batcher.play(hold_at="stepped")
        calls: list[Any] = [house.stub.Edit(request()), consume(house.stub.EditStream(request()))]
        ends = [asyncio.create_task(status_of(call)) for call in calls]
        assert await eventually(lambda: house.batcher.num_held == 2)
        shutdown = Shutdown()
        shutdown.signal()
        drain = asyncio.create_task(house.gateway.drain(shutdown))
        if is_forced:
            shutdown.signal()
        await asyncio.wait_for(drain, 30)
        for error in await asyncio.gather(*ends):
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
        assert await eventually(lambda: house.batcher.num_cancelled == 2)


async def consume(call: Any) -> None:
    async for _ in call:
        pass


async def test_close_alone_ends_open_calls(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with opened(tmp_path) as house:
        house.batcher.play(hold_at="stepped")
        end = asyncio.create_task(status_of(house.stub.Edit(request())))
        await house.batcher.reached.wait()
        assert len(arenas(tmp_path)) == 1
        await house.gateway.close()
        assert (await end).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert not arenas(tmp_path)
    assert await eventually(lambda: asyncio.all_tasks() <= before)


@pytest.mark.parametrize("turns", range(5))
async def test_the_looks_at_the_batcher_end_even_where_one_is_about_to_begin(tmp_path: Path, turns: int) -> None:
    batcher = FakeBatcher(f"unix:{tmp_path}/batcher.sock", tmp_path, serving_model())
    await batcher.start()
    client = BatcherClient(batcher.address, 60, on_change)
    assert await eventually(lambda: client.is_serving)
    client.look_now()
    for _ in range(turns):
        await asyncio.sleep(0)
    done, _ = await asyncio.wait({asyncio.create_task(client.close())}, timeout=30)
    assert done
    await batcher.stop()


async def on_change(is_serving: bool) -> None:
    pass


async def test_a_taken_port_is_a_bind_error(house: House, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{house.gateway.port}"
    cases: list[dict[str, Any]] = [{"listen": taken}, {"listen": "127.0.0.1:0", "metrics_listen": taken}]
    for settings in cases:
        second = Gateway(GatewayConfig(**{"batcher": house.batcher.address, **settings}), tmp_path)
        try:
            with pytest.raises(BindError, match=taken):
                await second.start()
        finally:
            await second.close()


async def test_without_shared_memory_pixels_travel_in_messages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, arena_dir=tmp_path / "missing") as house:
        for _ in range(2):
            await house.stub.Edit(request())
        assert house.batcher.requests[-1].pixels.HasField("inline")
    assert sum("no shared memory" in record.message for record in caplog.records) == 1


async def test_a_larger_model_gets_a_larger_arena(house: House) -> None:
    await house.stub.Edit(request())
    assert house.batcher.model
    house.batcher.model = type(house.batcher.model)("bigger", 64, 48, 50)
    assert await eventually(lambda: house.gateway.batcher.catalogue.model.name == "bigger")  # type: ignore[union-attr]
    answer = await house.stub.Edit(request())
    assert (answer.height, answer.width) == (64, 48)
    assert house.batcher.requests[-1].pixels.HasField("region")
