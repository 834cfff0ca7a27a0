"""A bare gRPC server that gives back what it gets: `python -m steploom_loadtest.bench.echo`, which prints its port.

It is what the cost of serving a plain model is held against.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from steploom_protos.inference import grpc_service_pb2 as pb

MESSAGE_OPTIONS = [("grpc.max_receive_message_length", 2**28), ("grpc.max_send_message_length", 2**28)]


async def infer(request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: ARG001
    """The same bytes, without a look at them."""
    given = request.inputs[0]
    output = pb.ModelInferResponse.InferOutputTensor(name="OUTPUT0", datatype=given.datatype, shape=given.shape)
    return pb.ModelInferResponse(
        model_name=request.model_name,
        model_version="1",
        id=request.id,
        outputs=[output],
        raw_output_contents=[request.raw_input_contents[0]],
    )


async def serve() -> None:
    """Until the process is ended."""
    server = grpc.aio.server(options=MESSAGE_OPTIONS)
    call = grpc.unary_unary_rpc_method_handler(
        infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
    )
    name = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ModelInfer": call}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"port {port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve())
