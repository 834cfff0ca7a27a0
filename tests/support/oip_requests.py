"""Requests of the Open Inference Protocol, made by hand: what any client of it may send."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gateway_house import House, encoded, picture

from steploom_common.arena import Pixels
from steploom_protos.inference import grpc_service_pb2 as pb
from steploom_protos.inference import grpc_service_pb2_grpc

Input = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor


def stub_of(house: House) -> grpc_service_pb2_grpc.GRPCInferenceServiceAsyncStub:
    return grpc_service_pb2_grpc.GRPCInferenceServiceStub(house.channel)


def element(data: bytes) -> bytes:
    """One element of BYTES in raw contents."""
    return struct.pack("<I", len(data)) + data


def parameters(values: Mapping[str, Any]) -> dict[str, pb.InferParameter]:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return {
        name: value if isinstance(value, pb.InferParameter) else pb.InferParameter(**{kinds[type(value)]: value})
        for name, value in values.items()
    }


def infer_request(
    pixels: Pixels | None = None,
    instruction: str = "make the hair blond",
    outputs: Sequence[Output] = (),
    request_id: str = "",
    model_name: str = "fake",
    **values: Any,
) -> pb.ModelInferRequest:
    """A good request whose picture is a PNG, in raw contents; `values` are its parameters."""
    return pb.ModelInferRequest(
        model_name=model_name,
        id=request_id,
        inputs=[
            Input(name="image", datatype="BYTES", shape=[1]),
            Input(name="instruction", datatype="BYTES", shape=[1]),
        ],
        outputs=outputs,
        parameters=parameters(values),
        raw_input_contents=[
            element(encoded(picture() if pixels is None else pixels)),
            element(instruction.encode()),
        ],
    )


def raw_request(pixels: Pixels, **values: Any) -> pb.ModelInferRequest:
    """The same with the picture as UINT8."""
    request = infer_request(**values)
    request.inputs[0].CopyFrom(Input(name="image", datatype="UINT8", shape=pixels.shape))
    request.raw_input_contents[0] = pixels.tobytes()
    return request


def told(answer: pb.ModelInferResponse) -> dict[str, Any]:
    """The parameters of an answer."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "") for name, value in answer.parameters.items()
    }


def bytes_of(answer: pb.ModelInferResponse, name: str = "edited_image") -> bytes:
    """An output of BYTES."""
    index = [output.name for output in answer.outputs].index(name)
    raw = answer.raw_output_contents[index]
    assert (answer.outputs[index].datatype, list(answer.outputs[index].shape)) == ("BYTES", [1])
    assert raw[:4] == struct.pack("<I", len(raw) - 4)
    return raw[4:]
