"""Large tensors go to a model host of the same machine through shared memory, and small ones in messages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from gateway_house import arenas, eventually
from served_plain import identity_request, opened_plain

from steploom_batcher.plain.config import PlainConfig
from steploom_common.arena import default_directory
from steploom_gateway.plain.own_queue import OwnQueue
from steploom_gateway.plain.tensor_memory import TensorMemory
from steploom_protos.inference import grpc_service_pb2 as pb

MODELS = Path(__file__).resolve().parents[2] / "examples" / "plain-models"


def numbers(seed: int, count: int = 512 * 512 * 3 // 4) -> pb.ModelInferRequest:
    data = np.random.default_rng(seed).random(count, np.float32).tobytes()
    request = pb.ModelInferRequest(model_name="identity", raw_input_contents=[data])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, count])
    return request


async def test_a_real_host_reads_and_writes_it(tmp_path: Path) -> None:
    memory = default_directory(tmp_path)
    async with opened_plain(tmp_path, num_hosts=0, repository=MODELS, arena_dir=memory) as house:
        asked = [numbers(seed) for seed in range(6)]
        answers = await asyncio.gather(*map(house.stub.ModelInfer, asked))
        for request, answer in zip(asked, answers, strict=True):
            assert answer.raw_output_contents[0] == request.raw_input_contents[0]
        runner = house.gateway.plain_runner
        assert isinstance(runner, OwnQueue)
        assert [size for size, arena in runner.memory._arenas.items() if arena] == [2**20]
        assert runner.memory.num_used == 0


async def test_blocks_come_back_whatever_becomes_of_a_request(tmp_path: Path) -> None:
    config = PlainConfig(shared_memory_from_bytes=8)
    async with opened_plain(tmp_path, plain=config) as house:
        runner = house.gateway.plain_runner
        assert isinstance(runner, OwnQueue)
        assert list((await house.stub.ModelInfer(identity_request(b"12345678"))).raw_output_contents) == [b"12345678"]
        assert house.host.batches[0].items[0].inputs[0].region.size == 8
        house.host.may_run.clear()
        calls = [asyncio.ensure_future(house.stub.ModelInfer(identity_request(b"%08d" % 0)))]
        assert await eventually(lambda: len(house.host.batches) == 2)
        calls += [asyncio.ensure_future(house.stub.ModelInfer(identity_request(b"%08d" % at))) for at in (1, 2)]
        assert await eventually(lambda: runner.memory.num_used == 3)
        for call in calls:
            call.cancel()
        assert await eventually(lambda: runner.memory.num_used == 1)
        house.host.may_run.set()  # what runs at the host keeps its block until it has ended
        assert await eventually(lambda: runner.memory.num_used == 0)
        await house.stub.ModelInfer(identity_request(b"small"))
        assert house.host.batches[-1].items[0].inputs[0].data == b"small"
        assert len(arenas(tmp_path)) == 1
    assert not arenas(tmp_path)


def test_what_finds_no_room_goes_in_the_message(tmp_path: Path) -> None:
    memory = TensorMemory(tmp_path, max_bytes=4 * 2 * 2**18, min_bytes=10)
    assert memory.borrow(9, 1) is None
    loan = memory.borrow(2**18 - 64, 1)
    assert loan is not None
    assert memory.borrow(100, 1) is None  # there is one block of that size
    assert memory.borrow(2**20, 1) is None  # and none of a larger one
    region = loan.put(b"abc")
    assert loan.get(region) == b"abc"
    assert loan.put(b"d").offset == region.offset + 64
    loan.give_back()
    assert memory.borrow(100, 1) is not None
    memory.close()
    assert memory.borrow(100, 1) is None
    assert TensorMemory(None, 2**30, 1).borrow(100, 1) is None
