"""The floor: grpc.aio that parses the same messages and answers the same bytes, without a queue, a batch or a model."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from bench_model import wanted

from steploom_protos.inference import grpc_service_pb2 as pb

_OPTIONS = [("grpc.max_receive_message_length", 2**26), ("grpc.max_send_message_length", 2**26)]


async def infer(request: pb.ModelInferRequest, _: grpc.aio.ServicerContext[Any, Any]) -> pb.ModelInferResponse:
    """ModelInfer: the input is the output."""
    given = request.inputs[0]
    output = pb.ModelInferResponse.InferOutputTensor(name="OUTPUT0", datatype=given.datatype, shape=given.shape)
    return pb.ModelInferResponse(
        model_name=request.model_name,
        model_version="1",
        id=request.id,
        outputs=[output],
        raw_output_contents=request.raw_input_contents,
    )


async def main() -> None:
    """Serves until it is killed."""
    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelInferResponse.SerializeToString,
    )
    server = grpc.aio.server(options=_OPTIONS)
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{wanted()['port']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
