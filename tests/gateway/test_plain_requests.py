"""What a request for a plain model may be: every datatype, every form of data, and each refusal by name and bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateway_house import status_of
from served_plain import identity_request, opened_plain

from steploom_batcher.plain.fake_host import identity_config
from steploom_common.errors import InvalidRequest
from steploom_gateway.oip.regions import DIRECTORY, Regions
from steploom_gateway.plain.datatypes import DATATYPES
from steploom_gateway.plain.model import plain_model
from steploom_gateway.plain.request import PlainOrder, RequestReader
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import model_config_pb2 as config_pb
from steploom_protos.worker.v1 import plain_pb2 as host_pb

Input, Output = config_pb.ModelInput, config_pb.ModelOutput
Given = pb.ModelInferRequest.InferInputTensor


def reader(*inputs: config_pb.ModelInput, max_batch_size: int = 4) -> RequestReader:
    config = config_pb.ModelConfig(
        name="m", max_batch_size=max_batch_size, input=inputs,
        output=[Output(name=name, data_type="TYPE_FP32", dims=[-1]) for name in ("p", "q")],
    )  # fmt: skip
    hosted = host_pb.HostedModel(name="m", config=config, versions=[1], state=host_pb.MODEL_STATE_READY, instances=1)
    return RequestReader(plain_model(hosted), Regions(0), 2**20)


TWO = (Input(name="a", data_type="TYPE_FP32", dims=[2]), Input(name="b", data_type="TYPE_INT64", dims=[-1, 3]))


def request() -> pb.ModelInferRequest:
    """A good one for TWO, of two rows; `b` comes first."""
    return pb.ModelInferRequest(
        model_name="m",
        inputs=[
            Given(name="b", datatype="INT64", shape=[2, 1, 3]),
            Given(name="a", datatype="FP32", shape=[2, 2]),
        ],
        raw_input_contents=[bytes(48), b"\1" * 16],
    )


def written(order: PlainOrder) -> host_pb.Item:
    item = host_pb.Item()
    order.write(item)
    return item


def test_tensors_go_in_the_order_of_the_configuration() -> None:
    good = request()
    good.parameters["temperature"].double_param = 0.5
    good.parameters["priority"].int64_param = 2
    good.outputs.add(name="q")
    order = reader(*TWO).read(good)
    item = written(order)
    assert [list(tensor.shape) for tensor in item.inputs] == [[2, 2], [2, 1, 3]]
    assert [tensor.data for tensor in item.inputs] == [b"\1" * 16, bytes(48)]
    assert (order.layout.rows, order.priority, list(item.outputs)) == (2, 2, [1])
    assert {name: value.double_param for name, value in item.parameters.items()} == {"temperature": 0.5}


def test_requests_share_a_batch_where_all_but_the_rows_is_equal() -> None:
    of = reader(*TWO)
    first, other = request(), request()
    other.inputs[0].shape[:] = [1, 1, 3]
    other.inputs[1].shape[:] = [1, 2]
    other.raw_input_contents[:] = [bytes(24), bytes(8)]
    longer = request()
    longer.inputs[0].shape[:] = [2, 2, 3]
    longer.raw_input_contents[0] = bytes(96)
    keys = [of.read(each).layout.key for each in (first, other, longer)]
    assert keys[0] == keys[1] != keys[2]


def test_an_optional_input_may_be_absent() -> None:
    of = reader(TWO[0], Input(name="b", data_type="TYPE_INT64", dims=[-1, 3], optional=True))
    lacking = request()
    del lacking.inputs[0], lacking.raw_input_contents[0]
    assert [tensor.is_absent for tensor in written(of.read(lacking)).inputs] == [False, True]
    assert of.read(lacking).layout.key != of.read(request()).layout.key


Change = Callable[[pb.ModelInferRequest], Any]


def _typed(given: pb.ModelInferRequest) -> None:
    given.inputs[1].contents.fp32_contents.append(1.0)


REFUSALS: list[tuple[Change, str]] = [
    (lambda r: r.inputs[1].shape.append(1), "inputs.a: has shape [2, 2, 1], must have [-1, 2]"),
    (lambda r: r.inputs[1].shape.__setitem__(1, 3), "inputs.a: has shape [2, 3], must have [-1, 2]"),
    (
        lambda r: [given.shape.__setitem__(0, 5) for given in r.inputs],
        "inputs.b: has 5 rows, must have 1 to 4, the model's max_batch_size",
    ),
    (lambda r: r.inputs[1].shape.__setitem__(0, 1), "inputs.a: has 1 rows, must have 2 as b has"),
    (lambda r: r.inputs[0].shape.__setitem__(1, -1), "inputs.b: has shape [2, -1, 3], must have [-1, -1, 3]"),
    (lambda r: setattr(r.inputs[1], "datatype", "FP64"), "inputs.a: is FP64, must be FP32"),
    (lambda r: setattr(r.inputs[1], "name", "c"), "inputs.c: does not exist; there are: a, b; inputs.a: is missing"),
    (lambda r: setattr(r.inputs[1], "name", "b"), "inputs.b: comes 2 times, must come once"),
    (lambda r: r.raw_input_contents.__setitem__(1, bytes(15)), "inputs.a: has 15 bytes, must have 16"),
    (lambda r: r.raw_input_contents.pop(), "raw_input_contents: has 1 entries, must have 2"),
    (_typed, "inputs.a: has `contents` where there are raw_input_contents, must have one of them"),
    (lambda r: r.outputs.add(name="z"), "outputs.z: does not exist; there are: p, q"),
    (lambda r: r.outputs.extend([r.outputs.add(name="p")]), "outputs.p: comes twice"),
    (
        lambda r: setattr(r.parameters["priority"], "string_param", "high"),
        "parameters.priority: is 'high', must be a whole number from 0 to 18446744073709551615",
    ),
]


@pytest.mark.parametrize(("change", "problem"), REFUSALS, ids=[problem[:40] for _, problem in REFUSALS])
def test_a_refusal_names_the_field_and_its_bound(change: Change, problem: str) -> None:
    bad = request()
    change(bad)
    with pytest.raises(InvalidRequest) as caught:
        reader(*TWO).read(bad)
    assert problem in str(caught.value)


TYPED = [
    ("BOOL", "bool_contents", [True, False]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 65535]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-32768, 32767]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("FP32", "fp32_contents", [0.5, -1.0]),
    ("FP64", "fp64_contents", [0.5, -1.0]),
]


@pytest.mark.parametrize(("datatype", "field", "values"), TYPED)
def test_typed_contents_become_raw_ones(datatype: str, field: str, values: list[Any]) -> None:
    number = next(number for number, known in DATATYPES.items() if known.name == datatype)
    of = reader(Input(name="x", data_type=number, dims=[2]), max_batch_size=0)
    given = pb.ModelInferRequest(inputs=[Given(name="x", datatype=datatype, shape=[2])])
    getattr(given.inputs[0].contents, field).extend(values)
    data = written(of.read(given)).inputs[0].data
    assert np.frombuffer(data, DATATYPES[number].numpy).tolist() == values
    given.inputs[0].shape[0] = 3
    with pytest.raises(InvalidRequest):
        of.read(given)


def test_typed_contents_out_of_their_bound_or_field() -> None:
    of = reader(Input(name="x", data_type="TYPE_INT8", dims=[1]), max_batch_size=0)
    given = pb.ModelInferRequest(inputs=[Given(name="x", datatype="INT8", shape=[1])])
    given.inputs[0].contents.int_contents.append(128)
    with pytest.raises(InvalidRequest, match="has the element 128, must have -128 to 127 as INT8"):
        of.read(given)
    del given.inputs[0].contents.int_contents[:]
    given.inputs[0].contents.fp32_contents.append(1.0)
    with pytest.raises(InvalidRequest, match="has fp32_contents, must have int_contents as INT8"):
        of.read(given)
    half = reader(Input(name="x", data_type="TYPE_FP16", dims=[1]), max_batch_size=0)
    given.inputs[0].datatype = "FP16"
    with pytest.raises(InvalidRequest, match="has `contents`, must have raw_input_contents as FP16"):
        half.read(given)


def test_strings_get_their_lengths() -> None:
    of = reader(Input(name="x", data_type="TYPE_STRING", dims=[2]), max_batch_size=0)
    given = pb.ModelInferRequest(inputs=[Given(name="x", datatype="BYTES", shape=[2])])
    given.inputs[0].contents.bytes_contents.extend([b"ab", b""])
    assert written(of.read(given)).inputs[0].data == b"\2\0\0\0ab\0\0\0\0"


@pytest.mark.skipif(not os.access(DIRECTORY, os.W_OK), reason=f"{DIRECTORY} cannot be written")
async def test_tensors_in_shared_memory_of_the_client(tmp_path: Path) -> None:
    memory = DIRECTORY / f"steploom-test-{os.getpid()}-plain"
    memory.write_bytes(b"0123456789" + bytes(90))
    try:
        async with opened_plain(tmp_path, shared_memory_regions=1) as house:
            place = pb.SystemSharedMemoryRegisterRequest(name="s", key=f"/{memory.name}", offset=0, byte_size=100)
            await house.stub.SystemSharedMemoryRegister(place)
            given = identity_request(b"0123456789")
            del given.raw_input_contents[:]
            given.inputs[0].parameters["shared_memory_region"].string_param = "s"
            given.inputs[0].parameters["shared_memory_byte_size"].int64_param = 10
            output = given.outputs.add(name="OUTPUT0")
            output.parameters["shared_memory_region"].string_param = "s"
            output.parameters["shared_memory_byte_size"].int64_param = 10
            output.parameters["shared_memory_offset"].int64_param = 50
            answer = await house.stub.ModelInfer(given)
            assert list(answer.raw_output_contents) == [b""]
            assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 10
            assert memory.read_bytes()[50:60] == b"0123456789"
            output.parameters["shared_memory_byte_size"].int64_param = 9
            error = await status_of(house.stub.ModelInfer(given))
            assert "outputs.OUTPUT0: has 10 bytes, must have at most 9" in str(error.details())
    finally:
        memory.unlink()


async def test_models_in_words(tmp_path: Path) -> None:
    configs = [identity_config(), identity_config("whole", max_batch_size=0)]
    async with opened_plain(tmp_path, configs) as house:
        got = await house.stub.ModelMetadata(pb.ModelMetadataRequest(name="identity"))
        assert (got.name, list(got.versions), list(got.inputs[0].shape)) == ("identity", ["1"], [-1, -1])
        assert (got.inputs[0].datatype, got.outputs[0].name) == ("UINT8", "OUTPUT0")
        whole = await house.stub.ModelMetadata(pb.ModelMetadataRequest(name="whole", version="1"))
        assert list(whole.inputs[0].shape) == [-1]
        config = await house.stub.ModelConfig(pb.ModelConfigRequest(name="identity"))
        assert config.config == configs[0]
        for version, is_ready in (("", True), ("1", True), ("2", False)):
            ready = await house.stub.ModelReady(pb.ModelReadyRequest(name="identity", version=version))
            assert ready.ready is is_ready
        error = await status_of(house.stub.ModelInfer(identity_request(model_version="7")))
        assert error.details() == "version of identity '7' does not exist; there is: 1"
        assert (await house.stub.ServerReady(pb.ServerReadyRequest())).ready
        index = await house.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        assert [(row.name, row.version, row.state) for row in index.models] == [
            ("identity", "1", "READY"),
            ("whole", "1", "READY"),
        ]
