"""What callers of plain models get when something is wrong: with their request, with the model, or with its host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gateway_house import eventually, status_of
from served_plain import PlainHouse, identity_request, opened_plain

from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.fake_host import DEADLY, INVALID, POISON, identity_config
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb

Batching = config_pb.ModelDynamicBatching
Policy = config_pb.ModelQueuePolicy


@pytest.fixture(params=["gateway", "batcher"])
async def plain(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[PlainHouse]:
    async with opened_plain(tmp_path, plain=PlainConfig(queue=request.param)) as house:
        yield house


async def held(house: PlainHouse, *requests: pb.ModelInferRequest, **options: Any) -> list[asyncio.Future[Any]]:
    """The first request runs and is held at the host; the others wait behind it."""
    house.host.may_run.clear()
    calls: list[asyncio.Future[Any]] = []
    for number, request in enumerate((identity_request(b"first"), *requests)):
        calls.append(asyncio.ensure_future(house.stub.ModelInfer(request, **(options if number else {}))))
        assert await eventually(lambda number=number: house.num_requests == number + 1)  # type: ignore[misc]
        assert await eventually(lambda: len(house.host.batches) > 0)
    return calls


async def codes(calls: list[asyncio.Future[Any]]) -> list[str]:
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [result.code().name if isinstance(result, grpc.aio.AioRpcError) else "OK" for result in results]


async def test_only_the_poisonous_request_of_a_batch_fails(plain: PlainHouse) -> None:
    calls = await held(plain, *[identity_request(data) for data in (b"before", POISON, b"behind")])
    plain.host.may_run.set()
    assert await codes(calls) == ["OK", "OK", "INTERNAL", "OK"]
    error = await status_of(calls[2])
    assert error.details() == "the model failed on this request; error id abc123"
    assert [len(batch.items) for batch in plain.host.batches] == [1, 3, 1, 1, 1]
    assert await plain.is_clean()


async def test_a_request_that_its_host_refuses_fails_alone_and_the_batch_runs_once(plain: PlainHouse) -> None:
    calls = await held(plain, identity_request(b"another"), identity_request(INVALID))
    plain.host.may_run.set()
    assert await codes(calls) == ["OK", "OK", "INVALID_ARGUMENT"]
    assert len(plain.host.batches) == 2


async def test_a_cancelled_request_frees_its_place_and_is_never_run(plain: PlainHouse) -> None:
    calls = await held(plain, identity_request(b"a"), identity_request(b"b"))
    calls[1].cancel()
    assert await eventually(lambda: plain.num_requests == 2)
    plain.host.may_run.set()
    assert await codes([calls[0], calls[2]]) == ["OK", "OK"]
    assert [item.inputs[0].data for batch in plain.host.batches for item in batch.items] == [b"first", b"b"]
    assert await plain.is_clean()


async def test_what_a_lost_host_had_runs_when_it_is_back(plain: PlainHouse) -> None:
    calls = await held(plain, identity_request(b"a"))
    await plain.host.stop()
    plain.host.may_run.set()
    await asyncio.sleep(0.05)
    assert not any(call.done() for call in calls)
    await plain.restart_host()
    assert await codes(calls) == ["OK", "OK"]
    assert await plain.is_clean()


async def test_a_request_that_takes_its_host_down_twice_ends_alone(plain: PlainHouse) -> None:
    calls = await held(plain, identity_request(b"a"), identity_request(DEADLY))
    plain.host.may_run.set()
    assert await codes(calls) == ["OK", "OK", "UNAVAILABLE"]
    error = await status_of(calls[2])
    assert ("grpc-retry-pushback-ms", "1000") in tuple(error.trailing_metadata() or ())


async def test_a_host_that_stays_away_fails_what_waits_with_a_hint(tmp_path: Path) -> None:
    async with opened_plain(tmp_path, plain=PlainConfig(host_grace_s=0.05)) as house:
        await house.host.stop()
        assert await eventually(lambda: not any(link.is_up for link in house.gateway.plain_runner._side.links))  # type: ignore[attr-defined]
        error = await status_of(house.stub.ModelInfer(identity_request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert ("grpc-retry-pushback-ms", "1000") in tuple(error.trailing_metadata() or ())
        assert not (await house.stub.ModelReady(pb.ModelReadyRequest(name="identity"))).ready


async def test_triton_words_for_a_full_queue_and_for_a_timeout(tmp_path: Path) -> None:
    policy = Policy(max_queue_size=1, allow_timeout_override=True)
    config = identity_config(dynamic_batching=Batching(default_queue_policy=policy))
    async with opened_plain(tmp_path, [config]) as house:
        late = identity_request(b"late")
        late.parameters["timeout"].int64_param = 20_000
        calls = await held(house, late)
        full = await status_of(house.stub.ModelInfer(identity_request(b"x")))
        assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(full.details()).startswith("Exceeds maximum queue size: 1 requests of identity wait")
        error = await status_of(calls[1])
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "Request timeout expired: it waited for 20 ms in the queue"
        house.host.may_run.set()
        assert await codes(calls[:1]) == ["OK"]


async def test_priorities_of_requests(tmp_path: Path) -> None:
    levels = Batching(priority_levels=2, default_priority_level=2)
    async with opened_plain(tmp_path, [identity_config(max_batch_size=1, dynamic_batching=levels)]) as house:
        urgent = identity_request(b"urgent")
        urgent.parameters["priority"].uint64_param = 1
        calls = await held(house, identity_request(b"plain"), urgent)
        house.host.may_run.set()
        assert await codes(calls) == ["OK"] * 3
        assert [batch.items[0].inputs[0].data for batch in house.host.batches] == [b"first", b"urgent", b"plain"]


async def test_a_deadline_ends_what_waits(plain: PlainHouse) -> None:
    calls = await held(plain, identity_request(b"late"), timeout=0.1)
    assert await codes(calls[1:]) == ["DEADLINE_EXCEEDED"]
    assert await eventually(lambda: plain.num_requests == 1)
    plain.host.may_run.set()
    assert await codes(calls[:1]) == ["OK"]


async def test_statistics(plain: PlainHouse) -> None:
    calls = await held(plain, *[identity_request(data) for data in (b"a", POISON)])
    plain.host.may_run.set()
    await codes(calls)
    answer = await plain.stub.ModelStatistics(pb.ModelStatisticsRequest(name="identity"))
    (of,) = answer.model_stats
    assert (of.inference_count, of.execution_count, of.inference_stats.success.count) == (2, 3, 2)
    assert (of.inference_stats.fail.count, of.inference_stats.queue.count) == (1, 2)
    assert (of.inference_stats.compute_infer.count, of.inference_stats.compute_infer.ns) == (2, 4000)
    assert [(size.batch_size, size.compute_infer.count) for size in of.batch_stats] == [(1, 3)]
    assert of.last_inference > 0
    everything = await plain.stub.ModelStatistics(pb.ModelStatisticsRequest())
    assert [of.name for of in everything.model_stats] == ["identity"]


async def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    async with opened_plain(tmp_path, remote_model_control=True) as house:
        await house.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="identity"))
        assert await eventually(lambda: not house.gateway.plain.is_ready)
        error = await status_of(house.stub.ModelInfer(identity_request()))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "model identity is unavailable: unloaded",
        )
        index = await house.stub.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [(row.name, row.state, row.reason) for row in index.models] == [("identity", "UNAVAILABLE", "unloaded")]
        await house.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="identity"))
        assert await eventually(lambda: house.gateway.plain.is_ready)
        assert (await house.stub.ModelInfer(identity_request(b"x"))).raw_output_contents[0] == b"x"
        unknown = await status_of(house.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="other")))
        assert unknown.code() is grpc.StatusCode.NOT_FOUND


def load(house: PlainHouse, name: str) -> asyncio.Future[Any]:
    return asyncio.ensure_future(house.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name)))


def unload(house: PlainHouse, name: str = "identity") -> asyncio.Future[Any]:
    return asyncio.ensure_future(house.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name)))


@pytest.mark.parametrize("queue", ["gateway", "batcher"])
async def test_what_waits_runs_before_its_model_is_unloaded(tmp_path: Path, queue: str) -> None:
    config, other = identity_config(max_batch_size=1), identity_config("other")
    plain = PlainConfig(queue=queue, drain_s=3600)
    async with opened_plain(tmp_path, [config, other], plain=plain, remote_model_control=True) as house:
        calls = await held(house, identity_request(b"a"), identity_request(b"b"))
        unloading = unload(house)
        assert await eventually(lambda: not house.gateway.plain.is_model_ready("identity", ""))
        error = await status_of(house.stub.ModelInfer(identity_request()))
        assert (error.code().name, error.details()) == (
            "UNAVAILABLE",
            "model identity is unavailable: it is being unloaded",
        )
        again = await status_of(load(house, "identity"))
        assert again.code() is grpc.StatusCode.ALREADY_EXISTS
        await unload(house)  # nothing is left to be done
        index = await house.stub.RepositoryIndex(pb.RepositoryIndexRequest())
        assert [(row.name, row.state) for row in index.models] == [("identity", "UNLOADING"), ("other", "READY")]
        assert house.gateway.plain.is_model_ready("other", "")
        assert house.host.loaded == {"identity", "other"}
        house.host.may_run.set()
        assert await codes(calls) == ["OK", "OK", "OK"]
        await unloading
        assert house.host.loaded == {"other"}
        await load(house, "identity")
        assert await eventually(lambda: house.gateway.plain.is_model_ready("identity", ""))
        assert (await house.stub.ModelInfer(identity_request(b"x"))).raw_output_contents[0] == b"x"


@pytest.mark.parametrize("queue", ["gateway", "batcher"])
async def test_an_unload_waits_no_longer_than_the_drain_and_goes_on_without_its_caller(
    tmp_path: Path, queue: str
) -> None:
    plain = PlainConfig(queue=queue, drain_s=0.2)
    config = identity_config(max_batch_size=1)
    async with opened_plain(tmp_path, [config], plain=plain, remote_model_control=True) as house:
        calls = await held(house, identity_request(b"a"))
        unloading = unload(house)
        assert await eventually(lambda: not house.gateway.plain.is_ready)
        unloading.cancel()
        assert await eventually(lambda: calls[1].done())
        house.host.may_run.set()
        assert await codes(calls) == ["OK", "UNAVAILABLE"]
        assert house.host.loaded == set()


async def test_a_model_that_its_host_does_not_unload_takes_requests_again(tmp_path: Path) -> None:
    async with opened_plain(tmp_path, remote_model_control=True) as house:
        house.host.loaded.clear()  # which nobody is told of
        error = await status_of(unload(house))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert (await house.stub.ModelInfer(identity_request(b"x"))).raw_output_contents[0] == b"x"


async def test_a_model_whose_folder_has_come_since_is_loaded_by_its_name(tmp_path: Path) -> None:
    async with opened_plain(tmp_path, remote_model_control=True) as house:
        house.host.configs["new"] = identity_config("new")
        house.host.never_loaded.add("new")
        error = await status_of(house.stub.ModelInfer(identity_request(b"x", model_name="new")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        await house.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="new"))
        assert await eventually(lambda: house.gateway.plain.has("new"))
        answer = await house.stub.ModelInfer(identity_request(b"x", model_name="new"))
        assert answer.raw_output_contents[0] == b"x"
