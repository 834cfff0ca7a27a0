"""Damaged requests of the Open Inference Protocol: each gets its status, none is INTERNAL, and the service goes on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
from gateway_house import House, decoded, picture
from google.protobuf.message import DecodeError
from oip_requests import Input, bytes_of, infer_request, raw_request, stub_of, told

from steploom_protos.inference import grpc_service_pb2 as pb

Status = grpc.StatusCode

# what a caller may be told of a request that is damaged; OK where the damage does no harm
EXPECTED = {Status.OK, Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.UNIMPLEMENTED}

GOOD = [
    infer_request(picture(40, 60), request_id="a", tier="free", steps=3, seed=7, guidance_scale=2.5, timeout=10**9),
    raw_request(picture(9, 7), sampler="euler", output_format="png", size_rule="pad", preview_every=1),
]
TYPED = raw_request(picture(4, 4))
TYPED.inputs[0].contents.uint_contents.extend(TYPED.raw_input_contents[0])
TYPED.inputs[1].contents.bytes_contents.append(b"words")
del TYPED.raw_input_contents[:]
GOOD.append(TYPED)

NUMBERS = [0, 1, -1, 3, 255, 256, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)]
WORDS = [
    "",
    "image",
    "instruction",
    "BYTES",
    "UINT8",
    "FP32",
    "fake",
    "fake.encode",
    "../x",
    "x" * 300,
    "ddim",
    "금발",
    "\0",
]
DATA = [b"", b"\0", b"\xff" * 9, b"\x05\0\0\0hello", b"\xff\xff\xff\xff", bytes(48)]


def flipped(dice: random.Random) -> bytes:
    """Some bytes are others, or missing."""
    data = bytearray(dice.choice(GOOD).SerializeToString())
    for _ in range(dice.randrange(1, 6)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data[: dice.randrange(len(data))] if dice.random() < 0.2 else data)


def altered(dice: random.Random) -> bytes:
    """Some fields have values that belong elsewhere."""
    request = pb.ModelInferRequest.FromString(dice.choice(GOOD).SerializeToString())
    for _ in range(dice.randrange(1, 4)):
        dice.choice([alter_input, alter_raw, alter_parameter, alter_names])(request, dice)
    return request.SerializeToString()


def alter_input(request: pb.ModelInferRequest, dice: random.Random) -> None:
    if not request.inputs or dice.random() < 0.1:
        request.inputs.add(name=dice.choice(WORDS[:3]), datatype=dice.choice(WORDS), shape=dice.choices(NUMBERS, k=3))
        return
    tensor: Input = dice.choice(request.inputs)
    match dice.randrange(6):
        case 0:
            tensor.name = dice.choice(WORDS)
        case 1:
            tensor.datatype = dice.choice(WORDS)
        case 2:
            tensor.shape[:] = dice.choices(NUMBERS, k=dice.randrange(5))
        case 3:
            tensor.contents.uint_contents[:] = [abs(number) % 2**32 for number in dice.choices(NUMBERS, k=48)]
        case 4:
            tensor.contents.bytes_contents[:] = dice.choices(DATA, k=dice.randrange(3))
        case _:
            tensor.parameters[dice.choice(["shared_memory_region", "shared_memory_offset", "x"])].string_param = "r"


def alter_raw(request: pb.ModelInferRequest, dice: random.Random) -> None:
    data = list(request.raw_input_contents)
    if data and dice.random() < 0.7:
        data[dice.randrange(len(data))] = dice.choice(DATA)
    elif data and dice.random() < 0.5:
        data.pop()
    else:
        data.append(dice.choice(DATA))
    request.raw_input_contents[:] = data


def alter_parameter(request: pb.ModelInferRequest, dice: random.Random) -> None:
    name = dice.choice([
        "steps", "seed", "tier", "priority", "timeout", "sampler", "guidance_scale", "preview_every", "progress", "x",
    ])  # fmt: skip
    value = request.parameters[name]
    match dice.randrange(6):
        case 0:
            value.string_param = dice.choice(WORDS)
        case 1:
            value.int64_param = dice.choice(NUMBERS)
        case 2:
            value.double_param = dice.choice([float("nan"), float("inf"), -0.0, 1e300, 2.5])
        case 3:
            value.uint64_param = abs(dice.choice(NUMBERS))
        case 4:
            value.bool_param = True
        case _:
            value.Clear()


def alter_names(request: pb.ModelInferRequest, dice: random.Random) -> None:
    match dice.randrange(4):
        case 0:
            request.model_name = dice.choice(WORDS)
        case 1:
            request.model_version = dice.choice(WORDS)
        case 2:
            request.id = dice.choice(WORDS)
        case _:
            request.outputs.add(name=dice.choice(["edited_image", "preview", *WORDS]))


async def status(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Status.OK


async def test_damaged_requests(house: House) -> None:
    infer: Any = house.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")  # bytes in, bytes out
    dice = random.Random(6)
    seen: Counter[grpc.StatusCode] = Counter()
    for _ in range(60):
        sent = [maker(dice) for maker in (flipped, altered) for _ in range(5)]
        got = await asyncio.gather(*(status(infer(data)) for data in sent))
        wrong = [(code, data) for code, data in zip(got, sent, strict=True) if code not in EXPECTED]
        assert not wrong, wrong[0]
        seen.update(got)
    assert seen.keys() >= {Status.OK, Status.INVALID_ARGUMENT, Status.NOT_FOUND}
    assert await house.is_clean()
    sent_picture = picture(seed=9)
    assert np.array_equal(
        decoded(bytes_of(await stub_of(house).ModelInfer(infer_request(sent_picture)))), 255 - sent_picture
    )


async def test_damaged_requests_on_one_stream(house: House) -> None:
    dice = random.Random(7)

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(300):
            try:
                request = pb.ModelInferRequest.FromString(dice.choice([flipped, altered])(dice))
            except DecodeError:
                continue
            request.id = str(number)
            sent.add(request.id)
            yield request

    sent: set[str] = set()
    ended: Counter[str] = Counter()
    async for answer in stub_of(house).ModelStreamInfer(requests()):
        facts = told(answer.infer_response)
        if facts["triton_final_response"]:
            ended[answer.infer_response.id] += 1
        assert facts.get("status", "OK") in {code.name for code in EXPECTED}, answer.error_message
    assert set(ended) == sent
    assert set(ended.values()) == {1}
    assert len(sent) > 150
    assert await house.is_clean()
