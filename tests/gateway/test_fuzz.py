"""Any message to any method of the port, and any bytes for a picture: an answer that is documented, and nothing left.

STEPLOOM_FUZZ=50 does fifty times as much, with other examples each time.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import image_fuzzer
import numpy as np
import pytest
from gateway_house import House, decoded, encoded, opened, picture, request
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oip_requests import infer_request, raw_request
from protobuf_strategies import messages, nearly

from steploom_protos.inference import grpc_service_pb2
from steploom_protos.v1 import image_pb2

DEPTH = int(os.environ.get("STEPLOOM_FUZZ", "0"))  # 0: the same few examples each time
EXAMPLES = 30 * max(1, DEPTH)  # of each method
PICTURES = 500 * max(1, DEPTH)
ANSWER_S = 60.0  # a call that takes longer hangs
RISE_KIB = 256 * 1024  # that this process, gateway and all, may grow by
PICTURE_RISE_KIB = 96 * 1024  # above what it takes to decode good ones: pictures have a million pixels here at most
PICTURE_S = 5.0  # of CPU for one of them

# What the documents say that a caller may be told of a message that is not right. None is UNKNOWN or INTERNAL.
DOCUMENTED = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "UNAVAILABLE",
}  # fmt: skip

METHODS = [
    *image_pb2.DESCRIPTOR.services_by_name["ImageService"].methods,
    *grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods,
]
GOOD: dict[str, list[Message]] = {
    "EditRequest": [request(), request(steps=2, preview_every=1, request_id="a", output_format=4)],
    "ModelInferRequest": [infer_request(picture(9, 7), seed=3), raw_request(picture(9, 7), tier="free")],
}
WORDS = [
    *("", "fake", "fake.denoise", "1", "free", "pro", "image", "instruction", "edited_image", "preview", "BYTES"),
    *("UINT8", "none", "auto", "../x", "x" * 600, "\0", "금발", "ddim", "png", "steps", "seed", "timeout", "priority"),
    *("shared_memory_region", "shared_memory_byte_size", "log_info", "trace_level", "OFF", "make the hair blond"),
]
BLOBS = [b"", b"\0", b"\x05\0\0\0hello", bytes(48), encoded(picture(9, 7)), encoded(picture(9, 7), "JPEG")]

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not DEPTH,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

Result = TypeVar("Result")


@dataclass
class Target:
    """A gateway on a loop of its own thread, and a channel that takes bytes as they are."""

    house: House
    channel: Any  # of grpc
    run: Callable[[Any], Any]  # a coroutine, on that loop


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever, name="gateway")
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(ANSWER_S)

    house = run(stack.enter_async_context(opened(tmp_path_factory.mktemp("house"), shared_memory_regions=4)))
    with grpc.insecure_channel(f"127.0.0.1:{house.gateway.port}") as channel:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield Target(house, channel, run)
        assert run(house.is_clean())
        sent = picture(seed=9)
        answer = channel.unary_unary(
            "/steploom.v1.ImageService/Edit", request_serializer=image_pb2.EditRequest.SerializeToString,
            response_deserializer=image_pb2.EditResponse.FromString,
        )(request(sent), timeout=ANSWER_S)  # fmt: skip
        assert np.array_equal(decoded(answer.image.encoded), 255 - sent)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < RISE_KIB
    run(stack.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def status_of(target: Target, method: MethodDescriptor, sent: list[bytes]) -> str:
    """With which a call ends."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            for _ in target.channel.stream_stream(path)(iter(sent), timeout=ANSWER_S):
                pass
        elif method.server_streaming:
            for _ in target.channel.unary_stream(path)(sent[0], timeout=ANSWER_S):
                pass
        else:
            target.channel.unary_unary(path)(sent[0], timeout=ANSWER_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@bounded
@given(data=st.data())
def test_any_message(target: Target, method: MethodDescriptor, data: st.DataObject) -> None:
    kind = method.input_type
    sent = data.draw(st.lists(messages(kind, WORDS, BLOBS), min_size=1, max_size=3 if method.client_streaming else 1))
    status = status_of(target, method, [message.SerializeToString() for message in sent])
    assert status in DOCUMENTED, sent


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@bounded
@given(data=st.data())
def test_nearly_a_message(target: Target, method: MethodDescriptor, data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(GOOD.get(method.input_type.name, [None])))
    whole = (
        good.SerializeToString() if good else data.draw(messages(method.input_type, WORDS, BLOBS)).SerializeToString()
    )
    sent = data.draw(nearly(whole))
    assert status_of(target, method, [sent]) in DOCUMENTED, sent


def test_any_picture() -> None:
    """In a process of its own, whose memory is bounded: what runs away ends it."""
    seed = time.time_ns() % 2**32 if DEPTH else 1
    done = subprocess.run(
        [sys.executable, image_fuzzer.__file__, str(PICTURES), str(seed)],
        env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(image_fuzzer.__file__).parent)},
        capture_output=True, text=True, timeout=5 * ANSWER_S * max(1, DEPTH),
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    took = json.loads(done.stdout)
    assert took["drawn"] > PICTURES / 20
    assert took["refused"] > PICTURES / 2
    assert took["risen_kib"] < PICTURE_RISE_KIB
    assert took["slowest_s"] < PICTURE_S
