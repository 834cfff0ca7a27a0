"""A thousand malformed requests: each gets its status, and the service goes on."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from gateway_house import House, decoded, encoded, picture, request, status_of

from steploom_protos.v1 import image_pb2

Status = grpc.StatusCode
Maker = Callable[[random.Random], tuple[bytes, grpc.StatusCode]]

FORMATS = ("PNG", "JPEG", "WEBP")
GOOD = {name: encoded(picture(40, 60), name) for name in FORMATS}
EDIT = "/steploom.v1.ImageService/Edit"


def message(status: grpc.StatusCode = Status.INVALID_ARGUMENT, **fields: Any) -> tuple[bytes, grpc.StatusCode]:
    return request(**fields).SerializeToString(), status


def truncated(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    data = GOOD[dice.choice(FORMATS)]
    return message(image=image_pb2.Image(encoded=data[: dice.randrange(len(data) // 2)]))


def other_format(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    head = dice.choice([b"GIF89a", b"BM", b"II*\x00", b"%PDF-1.7", b"<svg>", b"\x00\x00\x01\x00", b"", b"text"])
    return message(image=image_pb2.Image(encoded=head + dice.randbytes(50)))


def huge(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    side = dice.choice([4097, 65_535, 2**31 - 1])
    data = bytearray(GOOD["PNG"])
    data[16:24] = side.to_bytes(4, "big") * 2
    return message(image=image_pb2.Image(encoded=bytes(data)))


def raw_size(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    raw = image_pb2.RawImage(
        data=bytes(dice.randrange(40)), height=dice.choice([0, 7, 2**32 - 1]), width=dice.choice([0, 7, 2**32 - 1])
    )
    return message(image=image_pb2.Image(tensor=raw))


def instruction(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    return message(instruction=dice.choice(["", " ", "x" * 100_000, "가" * 34_000, "a\x00", "\x1b[31m"]))


def number(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    bad_float = dice.choice([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30])
    bad_int = dice.choice([0, 101, 2**32 - 1])
    field, value = dice.choice([("guidance_scale", bad_float), ("image_guidance_scale", bad_float), ("steps", bad_int)])
    fields: dict[str, Any] = {field: value}
    return message(**fields)


def choice(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    field = dice.choice(["output_format", "size_rule", "sampler"])
    fields: dict[str, Any] = {field: dice.choice([5, -1, 2**31 - 1])}
    return message(**fields)


def name(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    field = dice.choice(["tier", "model", "adapter"])
    return message(Status.NOT_FOUND, **{field: dice.choice(["gold", "../../etc/passwd", "x" * 10_000, "프로", "\n"])})


def identity(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    return message(request_id=dice.choice(["x" * 65, "a b", "\n", "é", "%s%n", "a/b"]))


def conditioning(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    return message(conditioning=[image_pb2.Image()] * dice.randrange(1, 9))


def no_protobuf(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    good = request().SerializeToString()
    bad = dice.choice([b"\xff" * 20, good[:-3], b"\x0a\xff\xff\xff\x7f", b"\x12\x02\xff\xfe", b"\x0a\x05hello"])
    return bad, Status.INVALID_ARGUMENT


def empty(dice: random.Random) -> tuple[bytes, grpc.StatusCode]:
    return b"", Status.INVALID_ARGUMENT


MAKERS: list[Maker] = [
    truncated, other_format, huge, raw_size, instruction, number, choice, name, identity, conditioning, no_protobuf,
    empty,
]  # fmt: skip


async def test_a_thousand_malformed_requests(house: House) -> None:
    edit: Any = house.channel.unary_unary(EDIT)  # bytes in, bytes out
    dice = random.Random(20)
    wrong: list[tuple[str, grpc.StatusCode, str]] = []

    async def send(maker: Maker) -> None:
        data, expected = maker(dice)
        try:
            await edit(data)
            wrong.append((maker.__name__, Status.OK, ""))
        except grpc.aio.AioRpcError as error:
            if error.code() is not expected:
                wrong.append((maker.__name__, error.code(), error.details() or ""))

    for _ in range(84):
        await asyncio.gather(*(send(maker) for maker in MAKERS))
    assert not wrong, wrong[:5]
    assert not house.batcher.requests
    assert await house.is_clean()
    answer = await house.stub.Edit(request(picture(seed=9)))
    assert np.array_equal(decoded(answer.image.encoded), 255 - picture(seed=9))


async def test_an_unknown_method_is_unimplemented(house: House) -> None:
    nothing: Any = house.channel.unary_unary("/steploom.v1.ImageService/Nothing")
    assert (await status_of(nothing(b""))).code() is Status.UNIMPLEMENTED
