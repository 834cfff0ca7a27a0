"""Callers of a server: one call sends a request and returns the bytes of its answer, by gRPC or by HTTP."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc.aio

from steploom_benchmarks import bento_messages
from steploom_benchmarks.http_connection import HttpConnection
from steploom_protos.inference import grpc_service_pb2 as pb

_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_CHANNELS = 4  # each a connection; one would make all callers wait for one large message
_OPTIONS = [
    ("grpc.max_receive_message_length", 2**26),
    ("grpc.max_send_message_length", 2**26),
    ("grpc.use_local_subchannel_pool", 1),
]


class CallError(Exception):
    """A call was not answered as it should be."""


class Caller(Protocol):
    """Many calls may be open at once."""

    async def call(self, payload: bytes) -> bytes:
        """Raises:
        CallError: there was no good answer.
        """
        ...

    async def close(self) -> None:
        """Ends its connections."""
        ...


class OipCaller:
    """ModelInfer of the Open Inference Protocol.

    Args:
        port: of the server.
        payloads: all that will be sent: each is written once as a message, before the load.
    """

    def __init__(self, port: int, payloads: list[bytes]) -> None:
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", _OPTIONS) for _ in range(_CHANNELS)]
        self._calls: list[Any] = [channel.unary_unary(_MODEL_INFER) for channel in self._channels]
        self._messages = {payload: infer_request(payload).SerializeToString() for payload in payloads}
        self._next = 0

    def __repr__(self) -> str:
        return f"OipCaller({len(self._channels)} channels)"

    async def call(self, payload: bytes) -> bytes:
        """See `Caller`."""
        self._next = (self._next + 1) % len(self._calls)
        try:
            answer: bytes = await self._calls[self._next](self._messages[payload], timeout=60, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise CallError(f"{error.code().name}: {error.details()}") from None
        return output_of(pb.ModelInferResponse.FromString(answer))

    async def close(self) -> None:
        """See `Caller`."""
        for channel in self._channels:
            await channel.close()


def infer_request(payload: bytes) -> pb.ModelInferRequest:
    """One item for the model `identity`."""
    given = pb.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="UINT8", shape=[1, len(payload)])
    return pb.ModelInferRequest(model_name="identity", inputs=[given], raw_input_contents=[payload])


def output_of(answer: pb.ModelInferResponse) -> bytes:
    """Its one output.

    Raises:
        CallError: it has none, or not raw.
    """
    if len(answer.raw_output_contents) != 1:
        raise CallError(f"{len(answer.raw_output_contents)} raw outputs, where one was expected")
    return answer.raw_output_contents[0]


class HttpCaller:
    """POST of the bytes to one path; as many connections as there are open calls, all kept alive.

    Args:
        port: of the server.
        path: of the model.
        is_bento: bodies are lists for BentoML, and not just the bytes.
    """

    def __init__(self, port: int, path: str, is_bento: bool = False) -> None:
        self._port = port
        self._path = path
        self._is_bento = is_bento
        self._content_type = bento_messages.CONTENT_TYPE if is_bento else "application/octet-stream"
        self._idle: list[HttpConnection] = []

    def __repr__(self) -> str:
        return f"HttpCaller({self._path}, {len(self._idle)} idle)"

    async def call(self, payload: bytes, timeout_s: float = 60.0) -> bytes:
        """See `Caller`; who stops waiting closes the connection."""
        connection: HttpConnection | None = None
        try:
            connection = self._idle.pop() if self._idle else await HttpConnection.open(self._port)
            sent = bento_messages.wrapped(payload) if self._is_bento else payload
            status, body = await asyncio.wait_for(connection.post(self._path, sent, self._content_type), timeout_s)
        except (OSError, ValueError, TimeoutError) as error:
            _close(connection)
            raise CallError(f"{type(error).__name__}: {error}") from None
        except asyncio.CancelledError:
            _close(connection)
            raise
        if connection.is_open:
            self._idle.append(connection)
        if status != 200:
            raise CallError(f"HTTP {status}: {body[:200]!r}")
        return self._unwrapped(body) if self._is_bento else body

    async def close(self) -> None:
        """See `Caller`."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    @staticmethod
    def _unwrapped(body: bytes) -> bytes:
        try:
            return bento_messages.unwrapped(body)
        except ValueError as error:
            raise CallError(str(error)) from None


def _close(connection: HttpConnection | None) -> None:
    if connection is not None:
        connection.close()
