"""Plain models through gateway, batcher and a fake host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from served_plain import PlainHouse, identity_request, opened_plain

from steploom_batcher.plain.config import PlainConfig
from steploom_protos.inference import grpc_service_pb2 as pb


@pytest.fixture(params=["gateway", "batcher"])
async def plain(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[PlainHouse]:
    async with opened_plain(tmp_path, plain=PlainConfig(queue=request.param)) as house:
        yield house


async def test_a_request_gets_its_own_bytes_back(plain: PlainHouse) -> None:
    answer = await plain.stub.ModelInfer(identity_request(b"0123456789", rows=2, id="r1"))
    assert (answer.model_name, answer.model_version, answer.id) == ("identity", "1", "r1")
    output = answer.outputs[0]
    assert (output.name, output.datatype, list(output.shape)) == ("OUTPUT0", "UINT8", [2, 5])
    assert list(answer.raw_output_contents) == [b"0123456789"]
    assert await plain.is_clean()


async def test_requests_that_come_while_a_batch_runs_share_the_next(plain: PlainHouse) -> None:
    plain.host.may_run.clear()
    first = asyncio.ensure_future(plain.stub.ModelInfer(identity_request(b"0")))
    while not plain.host.batches:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    others = [asyncio.ensure_future(plain.stub.ModelInfer(identity_request(bytes([at])))) for at in range(1, 9)]
    while plain.num_requests < 9:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    plain.host.may_run.set()
    answers = await asyncio.gather(first, *others)
    assert [answer.raw_output_contents[0] for answer in answers] == [b"0", *(bytes([at]) for at in range(1, 9))]
    assert [len(batch.items) for batch in plain.host.batches] == [1, 8]


async def test_a_stream_answers_each_of_its_requests(plain: PlainHouse) -> None:
    async def asked() -> AsyncIterator[pb.ModelInferRequest]:
        for at in range(4):
            yield identity_request(bytes([at]), id=str(at))
        yield identity_request(b"x", model_name="other", id="bad")

    answers = [answer async for answer in plain.stub.ModelStreamInfer(asked())]
    got = {answer.infer_response.id: list(answer.infer_response.raw_output_contents) for answer in answers}
    assert got == {**{str(at): [bytes([at])] for at in range(4)}, "bad": []}
    assert [answer.error_message for answer in answers if answer.infer_response.id == "bad"] == [
        "model 'other' does not exist; there is: identity"
    ]
