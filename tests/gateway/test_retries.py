"""A request that comes again: joined, answered from what is kept, or run anew; and never anybody else's picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from gateway_house import House, eventually, opened, picture, request, status_of
from oip_requests import bytes_of, infer_request, stub_of

from steploom_common.errors import DeadlineMissed, Exhausted, SteploomError
from steploom_gateway.retries import Retries, Same
from steploom_gateway.tokens import TokenConfig, add_token, make_token
from steploom_protos.v1 import image_pb2

Event = image_pb2.EditEvent
Status = grpc.StatusCode

ID = "order-7"


async def kinds(call: Any) -> list[str]:
    return [str(event.WhichOneof("event")) async for event in call]


def count(house: House, how: str) -> float:
    return house.gateway.metrics.registry.get_sample_value("steploom_gateway_repeats_total", {"how": how}) or 0.0


async def test_a_retry_gets_the_picture_that_was_drawn(house: House) -> None:
    first = await house.stub.Edit(request(request_id=ID))
    again = await house.stub.Edit(request(request_id=ID))
    assert again == first  # the seed too, which was drawn at random
    assert len(house.batcher.requests) == 1
    assert await kinds(house.stub.EditStream(request(request_id=ID))) == ["queued", "started", "done"]
    assert (count(house, "stored"), count(house, "joined")) == (2.0, 0.0)
    assert await house.is_clean()


async def test_a_retry_joins_the_job_that_runs(house: House) -> None:
    house.batcher.play(hold_at="stepped")
    streams: list[Any] = [aiter(house.stub.EditStream(request(request_id=ID, steps=3))) for _ in range(2)]
    for stream in streams:
        assert [(await anext(stream)).WhichOneof("event") for _ in range(3)] == ["queued", "started", "step"]
    third = house.stub.Edit(request(request_id=ID, steps=3))
    assert await eventually(lambda: count(house, "joined") == 2.0)
    house.batcher.resume.set()
    rest = [[event async for event in stream] for stream in streams]
    assert rest[0][-1].done == rest[1][-1].done == await third
    assert len(house.batcher.requests) == 1
    assert await house.is_clean()


async def test_a_job_goes_on_while_anybody_wants_it(house: House) -> None:
    house.batcher.play(hold_at="started")
    first, second = (house.stub.Edit(request(request_id=ID)) for _ in range(2))
    assert await eventually(lambda: count(house, "joined") == 1.0)
    first.cancel()
    assert await eventually(lambda: house.gateway.service.num_open == 1)
    house.batcher.resume.set()
    assert (await second).model == "fake"
    assert (len(house.batcher.requests), house.batcher.num_cancelled) == (1, 0)
    assert await house.is_clean()


async def test_a_job_that_nobody_wants_any_more_is_cancelled_and_a_retry_runs(house: House) -> None:
    house.batcher.play(hold_at="started")
    calls = [house.stub.Edit(request(request_id=ID)) for _ in range(2)]
    assert await eventually(lambda: count(house, "joined") == 1.0 and house.batcher.num_held == 1)
    for call in calls:
        call.cancel()
    assert await house.is_clean()
    assert house.batcher.num_cancelled == 1
    house.batcher.play()
    assert (await house.stub.Edit(request(request_id=ID))).model == "fake"
    assert len(house.batcher.requests) == 2


async def test_what_failed_runs_again(house: House) -> None:
    house.batcher.play(fail=Exhausted("full", "slots", 1.0))
    for _ in range(2):
        assert (await status_of(house.stub.Edit(request(request_id=ID)))).code() is Status.RESOURCE_EXHAUSTED
    house.batcher.play()
    await house.stub.Edit(request(request_id=ID))
    assert len(house.batcher.requests) == 3
    assert repr(house.gateway.service.retries).startswith("Retries(jobs=1, kept=1,")


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "something else"},
        {"seed": 5},
        {"steps": 3},
        {"tier": "free"},
        {"output_format": image_pb2.IMAGE_FORMAT_JPEG},
        {"pixels": picture(seed=9)},
        {"request_id": "order-8"},
        {"request_id": ""},
    ],
    ids=lambda fields: str(next(iter(fields))),
)
async def test_another_request_is_none_of_it(house: House, fields: dict[str, Any]) -> None:
    await house.stub.Edit(request(request_id=ID))
    await house.stub.Edit(request(**{"request_id": ID, **fields}))
    assert len(house.batcher.requests) == 2


async def test_without_an_id_every_request_runs(house: House) -> None:
    for _ in range(2):
        await house.stub.Edit(request())
    assert len(house.batcher.requests) == 2
    assert "jobs=0" in repr(house.gateway.service.retries)


async def test_an_id_may_come_with_the_call(house: House) -> None:
    metadata = (("idempotency-key", ID),)
    first = await house.stub.Edit(request(), metadata=metadata)
    assert first.request_id == ID
    assert await house.stub.Edit(request(), metadata=metadata) == first
    named = [await house.stub.Edit(request(request_id=name), metadata=metadata) for name in ("mine", "mine", "other")]
    assert [answer.request_id for answer in named] == ["mine", "mine", "other"]
    assert named[0] == named[1]
    assert len(house.batcher.requests) == 3
    error = await status_of(house.stub.Edit(request(), metadata=(("idempotency-key", "no id of ours"),)))
    assert error.code() is Status.INVALID_ARGUMENT
    assert "idempotency-key: must be at most 64 characters" in (error.details() or "")


async def test_the_open_inference_protocol_takes_the_calls_id_alone(house: House) -> None:
    stub = stub_of(house)
    for _ in range(2):  # its own ids need not be unique
        await stub.ModelInfer(infer_request(request_id="1"))
    metadata = (("idempotency-key", ID),)
    first, second = [await stub.ModelInfer(infer_request(), metadata=metadata) for _ in range(2)]
    assert bytes_of(first) == bytes_of(second)
    assert len(house.batcher.requests) == 3


async def test_a_strangers_id_gives_nobody_anothers_picture(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    headers = {}
    for name in ("one", "other"):
        token, hashed = make_token(name)
        add_token(path, name, TokenConfig(hash=hashed))
        headers[name] = (("authorization", f"Bearer {token}"),)
    async with opened(tmp_path, tokens=str(path)) as house:
        first = await house.stub.Edit(request(request_id=ID), metadata=headers["one"])
        others = await house.stub.Edit(request(request_id=ID), metadata=headers["other"])
        assert len(house.batcher.requests) == 2
        assert first.seed != others.seed
        again = await house.stub.Edit(request(request_id=ID), metadata=headers["one"])
        assert again == first
        assert len(house.batcher.requests) == 2


async def test_a_request_that_is_wrong_is_refused_before_it_is_looked_for(house: House) -> None:
    error = await status_of(house.stub.Edit(request(request_id="a b")))
    assert error.code() is Status.INVALID_ARGUMENT
    assert "jobs=0" in repr(house.gateway.service.retries)


@pytest.mark.parametrize(("settings", "num_jobs"), [({"retry_window_s": 0.0}, 2), ({"retry_bytes": 0}, 2), ({}, 1)])
async def test_keeping_can_be_turned_off(tmp_path: Path, settings: dict[str, Any], num_jobs: int) -> None:
    async with opened(tmp_path, **settings) as house:
        for _ in range(2):
            await house.stub.Edit(request(request_id=ID))
        assert len(house.batcher.requests) == num_jobs


async def test_joined_edits_count_once(house: House) -> None:
    for _ in range(3):
        await house.stub.Edit(request(request_id=ID, tier="free"))
    value = house.gateway.metrics.registry.get_sample_value
    labels = {"method": "Edit", "tier": "free", "status": "OK"}
    assert value("steploom_gateway_requests_total", labels) == 3.0
    assert value("steploom_gateway_stage_seconds_count", {"tier": "free", "stage": "total"}) == 1.0
    tally = house.gateway.metrics.tally
    assert (tally.done.count, tally.failed.count) == (1, 0)


# The parts of it, without a gateway.


class Work:
    """What a request would run: tells its events, when it is let."""

    def __init__(self, error: Exception | None = None, num_bytes: int = 10, is_slow: bool = False) -> None:
        self.num_started = 0
        self.num_ended = 0
        self.go_on = asyncio.Event()
        if not is_slow:
            self.go_on.set()
        self._error = error
        self._num_bytes = num_bytes

    async def run(self) -> AsyncGenerator[Event]:
        self.num_started += 1
        try:
            yield Event(queued=Event.Queued(request_id="x", predicted_s=2.0))
            yield Event(started=Event.Started())
            for step in (1, 2, 3):
                yield Event(step=Event.Step(step=step, steps=3))
            await self.go_on.wait()
            if self._error:
                raise self._error
            done = image_pb2.EditResponse(image=image_pb2.Image(encoded=bytes(self._num_bytes)))
            yield Event(done=done)
        finally:
            self.num_ended += 1


def key(name: str = "a", caller: str = "") -> Same:
    return Same(caller, name, b"")


def retries(window_s: float = 60.0, max_bytes: int = 2**20) -> Retries:
    return Retries(window_s, max_bytes, lambda how: None)


async def all_of(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


async def test_who_has_more_time_than_the_first_is_not_ended_with_it() -> None:
    kept = retries()
    short, long = Work(DeadlineMissed("too late"), is_slow=True), Work()
    first = asyncio.create_task(all_of(kept.events(key(), 10.0, short.run)))
    await asyncio.sleep(0)
    second = asyncio.create_task(all_of(kept.events(key(), 20.0, long.run)))
    third = asyncio.create_task(all_of(kept.events(key(), 0.0, long.run)))
    equal = asyncio.create_task(all_of(kept.events(key(), 10.0, long.run)))
    await asyncio.sleep(0.01)
    assert (short.num_started, long.num_started) == (1, 0)
    short.go_on.set()
    for task in (first, equal):
        with pytest.raises(DeadlineMissed):
            await task
    for task in (second, third):
        told = [event.WhichOneof("event") for event in await task]
        assert (told.count("queued"), told.count("started"), told[-1]) == (1, 1, "done")
    assert long.num_started == 1
    kept.close()


async def test_a_bug_reaches_everybody_and_is_not_kept() -> None:
    kept = retries()
    work = Work(KeyError("a bug"), is_slow=True)
    tasks = [asyncio.create_task(all_of(kept.events(key(), 0.0, work.run))) for _ in range(3)]
    await asyncio.sleep(0.01)
    work.go_on.set()
    for task in tasks:
        with pytest.raises(KeyError):
            await task
    assert (work.num_started, repr(kept)) == (1, "Retries(jobs=0, kept=0, bytes=0)")


async def test_an_edit_that_ends_without_a_picture_is_an_error() -> None:
    async def nothing() -> AsyncGenerator[Event]:
        yield Event(started=Event.Started())

    with pytest.raises(SteploomError, match="without a picture"):
        await all_of(retries().events(key(), 0.0, nothing))


async def test_memory_is_bounded_and_the_oldest_make_way() -> None:
    kept = retries(max_bytes=40_000)
    work = Work(num_bytes=8000)
    for name in "abcd":
        await all_of(kept.events(key(name), 0.0, work.run))
        assert kept.num_bytes <= 40_000
    assert (work.num_started, len(kept._kept)) == (4, 3)
    await all_of(kept.events(key("b"), 0.0, work.run))
    assert work.num_started == 4
    await all_of(kept.events(key("a"), 0.0, work.run))
    assert work.num_started == 5
    large = Work(num_bytes=50_000)
    await all_of(kept.events(key("large"), 0.0, large.run))
    assert key("large") not in kept._jobs  # for one that has no room none makes way
    assert len(kept._kept) == 3
    tiny = Work(num_bytes=0)
    for number in range(100):  # an entry takes memory too, however small its picture
        await all_of(kept.events(key(str(number)), 0.0, tiny.run))
    assert len(kept._kept) < 10
    kept.close()
    assert repr(kept) == "Retries(jobs=0, kept=0, bytes=0)"


async def test_a_picture_is_forgotten_at_the_end_of_the_window() -> None:
    kept = retries(window_s=0.001)
    work = Work()
    await all_of(kept.events(key(), 0.0, work.run))
    assert await eventually(lambda: not kept._jobs)
    assert repr(kept) == "Retries(jobs=0, kept=0, bytes=0)"
    await all_of(kept.events(key(), 0.0, work.run))
    assert work.num_started == 2
    kept.close()


async def test_a_slow_reader_misses_steps_and_never_the_end() -> None:
    kept = retries()
    work = Work()
    events = kept.events(key(), 0.0, work.run)
    assert (await anext(events)).WhichOneof("event") == "queued"
    assert await eventually(lambda: work.num_ended == 1)  # it did not wait for its reader
    assert [event.WhichOneof("event") async for event in events] == ["started", "done"]
    kept.close()


async def test_a_reader_who_goes_away_leaves_nothing() -> None:
    before = asyncio.all_tasks()
    kept = retries()
    work = Work(is_slow=True)
    events = kept.events(key(), 0.0, work.run)
    await anext(events)
    await events.aclose()
    assert await eventually(lambda: work.num_ended == 1 and asyncio.all_tasks() == before)
    assert repr(kept) == "Retries(jobs=0, kept=0, bytes=0)"
