"""Each cause has its status, message and details; those of the batcher come through unchanged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from gateway_house import House, encoded, eventually, opened, picture, request, status_of
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from steploom_common.errors import (
    DeadlineMissed,
    Exhausted,
    InvalidRequest,
    JobFailed,
    NotFound,
    SteploomError,
    Unavailable,
    Violation,
)
from steploom_gateway.fake_batcher import MOMENTS
from steploom_protos.v1 import image_pb2


def details_of(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    """The status detail of a type."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    found = kind()
    for row in status.details:
        if row.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__} in {status}")


def violated(error: grpc.aio.AioRpcError) -> list[str]:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return [row.field for row in details_of(error, error_details_pb2.BadRequest).field_violations]


def named(kind: str, name: str) -> image_pb2.EditRequest:
    message = request()
    setattr(message, kind, name)
    return message


def raw(height: int, width: int, length: int) -> image_pb2.Image:
    return image_pb2.Image(tensor=image_pb2.RawImage(data=bytes(length), height=height, width=width))


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"image": image_pb2.Image()}, ["image"]),
        ({"image": image_pb2.Image(encoded=b"")}, ["image.encoded"]),
        ({"image": image_pb2.Image(encoded=b"no picture at all")}, ["image.encoded"]),
        ({"image": raw(0, 4, 0)}, ["image.tensor"]),
        ({"image": raw(2, 2, 11)}, ["image.tensor.data"]),
        ({"image": raw(2, 2, 13)}, ["image.tensor.data"]),
        ({"image": raw(4097, 1, 4097 * 3)}, ["image.tensor"]),
        ({"image": raw(2**32 - 1, 2**32 - 1, 0)}, ["image.tensor"]),
        ({"instruction": ""}, ["instruction"]),
        ({"instruction": " \n "}, ["instruction"]),
        ({"instruction": "x" * 501}, ["instruction"]),
        ({"instruction": "금" * 501}, ["instruction"]),
        ({"instruction": "a\x00b"}, ["instruction"]),
        ({"instruction": "a\x9bb"}, ["instruction"]),
        ({"steps": 0}, ["steps"]),
        ({"steps": 51}, ["steps"]),  # the model's bound is below the config's
        ({"guidance_scale": math.nan}, ["guidance_scale"]),
        ({"guidance_scale": math.inf}, ["guidance_scale"]),
        ({"guidance_scale": 0.0}, ["guidance_scale"]),
        ({"guidance_scale": 30.5}, ["guidance_scale"]),
        ({"image_guidance_scale": -math.inf}, ["image_guidance_scale"]),
        ({"image_guidance_scale": 10.5}, ["image_guidance_scale"]),
        ({"output_format": 99}, ["output_format"]),
        ({"size_rule": -1}, ["size_rule"]),
        ({"sampler": 4}, ["sampler"]),
        ({"preview_every": 51}, ["preview_every"]),
        ({"request_id": "x" * 65}, ["request_id"]),
        ({"request_id": "a b"}, ["request_id"]),
        ({"request_id": "a\n"}, ["request_id"]),
        ({"request_id": "é"}, ["request_id"]),
        ({"conditioning": [image_pb2.Image()]}, ["conditioning"]),
        (
            {"image": image_pb2.Image(), "instruction": "", "steps": 0, "guidance_scale": math.nan, "sampler": 9},
            ["image", "instruction", "steps", "guidance_scale", "sampler"],
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_field_out_of_its_bound(house: House, fields: dict[str, Any], violations: list[str]) -> None:
    error = await status_of(house.stub.Edit(request(**fields)))
    assert violated(error) == violations
    assert all(field in (error.details() or "") for field in violations)
    assert not house.batcher.requests


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "x" * 500},
        {"instruction": "썬글라스를 씌워 줘 👩‍🎤\n"},
        {"steps": 1},
        {"steps": 50},
        {"guidance_scale": 1.0, "image_guidance_scale": 1.0},
        {"guidance_scale": 30.0, "image_guidance_scale": 10.0},
        {"sampler": image_pb2.SAMPLER_DPMPP_2M, "preview_every": 50},
        {"request_id": "A.z_9:-" + "x" * 57},
        {"tier": "free", "model": "fake", "adapter": "turbo"},
        {"tier": "free", "adapter": "none"},
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bounds_are_included(house: House, fields: dict[str, Any]) -> None:
    await house.stub.Edit(request(**fields))
    job = house.batcher.requests[-1]
    for key in ("steps", "guidance_scale", "image_guidance_scale", "sampler", "tier", "model", "adapter"):
        assert getattr(job, key) == fields.get(key, getattr(type(job)(), key))


@pytest.mark.parametrize("name", ["../etc", "auto"])
@pytest.mark.parametrize(("kind", "known"), [("tier", "free, pro"), ("model", "fake"), ("adapter", "turbo")])
async def test_an_unknown_name_lists_those_that_exist(house: House, kind: str, known: str, name: str) -> None:
    error = await status_of(house.stub.Edit(named(kind, name)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert kind in (error.details() or "")
    assert known in (error.details() or "")


async def test_a_message_over_the_limit_is_refused_by_its_length(tmp_path: Path) -> None:
    async with opened(tmp_path, max_image_bytes=1024) as house:
        error = await status_of(house.stub.Edit(request(image=image_pb2.Image(encoded=bytes(2 * 2**20)))))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = await status_of(house.stub.Edit(request(image=image_pb2.Image(encoded=bytes(1025)))))
        assert violated(error) == ["image.encoded"]
        assert "1024" in (error.details() or "")
        await house.stub.Edit(request(image=image_pb2.Image(encoded=encoded(picture(), "JPEG"))))


async def test_a_message_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, max_image_bytes=2**20) as house:
        bomb = request(image=image_pb2.Image(encoded=bytes(20 * 2**20)))
        error = await status_of(house.stub.Edit(bomb, compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await house.stub.Edit(request(), compression=grpc.Compression.Gzip)


REFUSALS: list[SteploomError] = [
    Exhausted("the queue of tier 'free' is full", "tier:free", 1.5),
    DeadlineMissed("would end in 9 s", 9.0),
    Unavailable("no worker is up", 0.25),
    JobFailed("abc123"),
    InvalidRequest(Violation("steps", "is 35, must be 1 to 4 with adapter turbo")),
    NotFound("adapter", "lost", ["turbo"]),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("moment", ["refuse", "fail"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_the_batchers_status_comes_through(
    house: House, error: SteploomError, moment: str, is_stream: bool
) -> None:
    house.batcher.play(**{moment: error})
    caught = await status_of(drained(house, is_stream))
    assert (caught.code(), caught.details()) == (error.status, str(error))
    trailers = dict(caught.trailing_metadata() or ())
    for key, value in error.trailers():
        assert trailers[key] == value
    if error.details():
        expected = error.details()[0]
        assert details_of(caught, type(expected)) == expected
    else:
        assert "grpc-status-details-bin" not in trailers
    assert await house.is_clean()


async def drained(house: House, is_stream: bool) -> None:
    if is_stream:
        async for _ in house.stub.EditStream(request()):
            pass
    else:
        await house.stub.Edit(request())


async def test_a_bad_answer_of_the_batcher_is_internal(house: House) -> None:
    for script in ({"end_early": True}, {"size_off": 1}, {"size_off": -1}):
        house.batcher.play(**script)
        assert (await status_of(house.stub.Edit(request()))).code() is grpc.StatusCode.INTERNAL
    assert await house.is_clean()


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_lost_batcher_is_unavailable_with_push_back(house: House, moment: str) -> None:
    house.batcher.play(hold_at=moment)
    call = house.stub.Edit(request())
    await house.batcher.reached.wait()
    await house.batcher.stop()
    error = await status_of(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert int(str(dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"])) > 0
    again = await status_of(house.stub.Edit(request()))
    assert again.code() is grpc.StatusCode.UNAVAILABLE
    assert await house.is_clean()
    assert await eventually(lambda: not house.gateway.batcher.is_serving)
    await house.batcher.start()
    house.batcher.play()
    assert await eventually(lambda: house.gateway.batcher.is_serving)
    await house.stub.Edit(request(), wait_for_ready=True)


async def test_too_many_open_edits_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, max_calls=2) as house:
        house.batcher.play(hold_at="started")
        calls = [house.stub.Edit(request()) for _ in range(2)]
        assert await eventually(lambda: house.batcher.num_held == 2)
        error = await status_of(house.stub.Edit(request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 500
        assert details_of(error, error_details_pb2.QuotaFailure).violations[0].subject == "gateway.max_calls"
        house.batcher.resume.set()
        for call in calls:
            await call


async def test_no_worker_yet_is_unavailable(tmp_path: Path) -> None:
    async with opened(tmp_path, has_worker=False) as house:
        error = await status_of(house.stub.Edit(request()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
