"""ModelStreamInfer: many requests on one stream, each with its progress, its answer or its error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from gateway_house import House, decoded, eventually, opened, picture, status_of
from oip_requests import Output, bytes_of, infer_request, stub_of, told

from steploom_common.errors import QueueFull
from steploom_gateway.oip.stream import interleaved
from steploom_protos.inference import grpc_service_pb2 as pb


async def all_answers(house: House, *asked: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for request in asked:
            yield request

    return [answer async for answer in stub_of(house).ModelStreamInfer(requests())]


def of(answers: Sequence[pb.ModelStreamInferResponse], request_id: str) -> list[dict[str, Any]]:
    """What one request was told."""
    return [told(answer.infer_response) for answer in answers if answer.infer_response.id == request_id]


async def test_progress_previews_and_the_picture_last(house: House) -> None:
    sent = picture(seed=2)
    answers = await all_answers(house, infer_request(sent, request_id="a", steps=4, preview_every=2))
    assert not any(answer.error_message for answer in answers)
    facts = of(answers, "a")
    assert [fact.get("event") for fact in facts] == ["queued", "started", *["step"] * 4, None]
    assert [fact["triton_final_response"] for fact in facts] == [False] * 6 + [True]
    assert [(fact["step"], fact["steps"]) for fact in facts[2:6]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert facts[0]["predicted_s"] == pytest.approx(0.25)
    outputs = [[output.name for output in answer.infer_response.outputs] for answer in answers]
    assert outputs == [[], [], [], ["preview"], [], ["preview"], ["edited_image"]]
    assert decoded(bytes_of(answers[3].infer_response, "preview")).shape == (16, 16, 3)
    assert np.array_equal(decoded(bytes_of(answers[-1].infer_response)), 255 - sent)


async def test_without_progress_there_is_one_answer(house: House) -> None:
    answers = await all_answers(house, infer_request(request_id="a", progress=False))
    assert [fact["triton_final_response"] for fact in of(answers, "a")] == [True]


async def test_previews_that_nobody_wants_are_not_sent(house: House) -> None:
    asked = infer_request(outputs=[Output(name="edited_image")], preview_every=1)
    answers = await all_answers(house, asked)
    assert [len(answer.infer_response.outputs) for answer in answers] == [0, 0, 0, 0, 1]


async def test_an_error_ends_its_request_and_not_the_stream(house: House) -> None:
    answers = await all_answers(
        house,
        infer_request(request_id="bad", step=1),
        infer_request(request_id="good", triton_enable_empty_final_response=True),
        infer_request(request_id="lost", model_name="other"),
    )
    (bad,), (lost,) = ([answer for answer in answers if answer.infer_response.id == name] for name in ("bad", "lost"))
    assert bad.error_message.startswith("parameters.step: does not exist")
    assert "model 'other' does not exist" in lost.error_message
    assert told(bad.infer_response) == {"status": "INVALID_ARGUMENT", "triton_final_response": True}
    assert told(lost.infer_response)["status"] == "NOT_FOUND"
    assert of(answers, "good")[-1]["seed"] >= 0
    assert await house.is_clean()


async def test_refusals_of_the_batcher_keep_their_words(house: House) -> None:
    house.batcher.play(refuse=QueueFull("9 wait", "tier:free", 1.0))
    (answer,) = await all_answers(house, infer_request())
    assert answer.error_message == "Exceeds maximum queue size: 9 wait"
    assert told(answer.infer_response)["status"] == "RESOURCE_EXHAUSTED"


async def test_what_nobody_has_foreseen_is_told_by_an_error_id(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.batcher.play(short_preview=True)  # the gateway's own complaint
    (*_, answer) = await all_answers(house, infer_request(preview_every=1))
    assert told(answer.infer_response)["status"] == "INTERNAL"

    def broken(*_: object) -> None:
        raise KeyError("a secret")

    house.gateway.inference._regions.read = broken  # type: ignore[assignment, method-assign]
    asked = infer_request()
    asked.raw_input_contents.pop()
    asked.inputs[1].parameters["shared_memory_region"].string_param = "x"
    (answer,) = await all_answers(house, asked)
    assert answer.error_message.startswith("internal error; error id ")
    assert answer.error_message.rpartition(" ")[2] in caplog.text


async def test_requests_of_a_stream_run_side_by_side(house: House) -> None:
    house.batcher.play(hold_at="started")
    reader = asyncio.create_task(all_answers(house, *(infer_request(request_id=f"r{n}", seed=n) for n in range(6))))
    assert await eventually(lambda: house.batcher.num_held == 6)
    house.batcher.resume.set()
    answers = await reader
    for number in range(6):
        facts = of(answers, f"r{number}")
        assert [fact.get("step") for fact in facts] == [None, None, 1, 2, None]
        assert facts[-1]["seed"] == number


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_stream_that_is_given_up_frees_its_jobs(house: House, how: str) -> None:
    house.batcher.play(hold_at="stepped")
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{house.gateway.port}")
    stub: Any = type(stub_of(house))(channel)
    call = stub.ModelStreamInfer()
    for number in range(3):
        await call.write(infer_request(request_id=str(number)))
    assert await eventually(lambda: house.batcher.num_held == 3)
    if how == "cancel":
        call.cancel()
    await channel.close()
    assert await eventually(lambda: house.batcher.num_cancelled == 3)
    assert await house.is_clean()


async def test_a_stream_without_requests_ends(house: House) -> None:
    assert await all_answers(house) == []


async def test_what_is_no_protobuf_is_the_callers_fault(house: House) -> None:
    stream: Any = house.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")  # bytes in and out

    async def requests() -> AsyncIterator[bytes]:
        yield b"\xff" * 20

    async def consume() -> None:
        async for _ in stream(requests()):
            pass

    assert (await status_of(consume())).code() is grpc.StatusCode.INVALID_ARGUMENT
    unary: Any = house.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    assert (await status_of(unary(b"\xff" * 20))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_drained_gateway_refuses_each_request(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        house.gateway.service.drain()
        (answer,) = await all_answers(house, infer_request())
        assert told(answer.infer_response)["status"] == "UNAVAILABLE"


async def test_no_more_are_read_than_may_be_open() -> None:
    num_read = 0
    gate = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        nonlocal num_read
        for number in range(10):
            num_read += 1
            yield number

    async def answer(number: int) -> AsyncGenerator[int]:
        await gate.wait()
        yield number

    async def consume() -> list[int]:
        return [part async for part in interleaved(requests(), answer, 3)]

    consumer = asyncio.create_task(consume())
    for _ in range(50):
        await asyncio.sleep(0)
    assert num_read == 4  # one waits for room
    gate.set()
    assert sorted(await consumer) == list(range(10))


async def test_a_slow_reader_holds_up_what_it_reads() -> None:
    num_made = 0

    async def requests() -> AsyncIterator[int]:
        yield 0

    async def answer(_: int) -> AsyncGenerator[int]:
        nonlocal num_made
        for number in range(100):
            num_made += 1
            yield number

    answers = interleaved(requests(), answer, 3)
    assert await anext(answers) == 0
    for _ in range(50):
        await asyncio.sleep(0)
    assert num_made < 20
    await answers.aclose()
