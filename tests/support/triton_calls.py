"""What Triton's own Python client does and gets: run by the Python of its environment, which holds nothing of ours.

`python triton_calls.py COMMAND ADDRESS PICTURE` makes the calls and prints what came of them as JSON. It says `sent`
and waits for a line where a test wants to do something in between.
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]
import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found]
import tritonclient.utils.shared_memory as shm  # type: ignore[import-not-found]
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "fake"
SIDE = 32
TIMEOUT_S = 60.0


def inputs(picture: bytes, raw: bool = False, aio: bool = False) -> list[Any]:
    """The tensors of a request, as the client makes them."""
    kit = triton_aio if aio else triton
    if raw:
        image = kit.InferInput("image", [SIDE, SIDE, 3], "UINT8")
        image.set_data_from_numpy(np.frombuffer(picture, np.uint8).reshape(SIDE, SIDE, 3))
    else:
        image = kit.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([picture], dtype=object))
    instruction = kit.InferInput("instruction", [1], "BYTES")
    instruction.set_data_from_numpy(np.array([b"make the hair blond"], dtype=object))
    return [image, instruction]


def text(data: bytes) -> str:
    """Bytes, for JSON."""
    return base64.b64encode(data).decode()


def facts(result: Any) -> dict[str, Any]:
    """The parameters of an answer."""
    parameters = result.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


def error_of(call: Any) -> list[str]:
    """Status and message with which a call ends."""
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["OK", ""]


def info(client: Any, _: bytes) -> dict[str, Any]:
    """All that is told about server and model."""
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(MODEL, as_json=True),
        "config": client.get_model_config(MODEL, as_json=True),
        "statistics": client.get_inference_statistics(as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "traces": client.get_trace_settings(as_json=True),
        "logs": client.get_log_settings(as_json=True),
        "load": error_of(lambda: client.load_model(MODEL)),
        "cuda": client.get_cuda_shared_memory_status(as_json=True),
    }


def repository(client: Any, _: bytes) -> dict[str, Any]:
    """An adapter that is loaded and unloaded."""

    def states() -> dict[str, str]:
        index = client.get_model_repository_index(as_json=True)
        return {row["name"]: row["state"] for row in index["models"]}

    name = f"{MODEL}.adapters.late"
    client.load_model(name)
    loaded, is_ready = states(), client.is_model_ready(name)
    client.unload_model(name)
    return {
        "loaded": [loaded[name], is_ready],
        "unloaded": [states()[name], client.is_model_ready(name)],
        "pipeline": error_of(lambda: client.load_model(MODEL)),
        "unknown": error_of(lambda: client.unload_model("other")),
        "config": error_of(lambda: client.load_model(name, config="{}")),
    }


def sync(client: Any, picture: bytes) -> dict[str, Any]:
    """Requests that wait, and one that calls back."""
    asked = {"model_name": MODEL, "inputs": inputs(picture), "priority": 2, "timeout": 60_000_000, "request_id": "r1"}
    result = client.infer(**asked, parameters={"steps": 3, "seed": 7, "guidance_scale": 2.5})
    raw = client.infer(MODEL, inputs(picture), parameters={"output_format": "raw"})
    done: queue.Queue[Any] = queue.Queue()
    client.async_infer(MODEL, inputs(picture), lambda result, error: done.put((result, error)))
    later, error = done.get(timeout=TIMEOUT_S)
    return {
        "picture": text(result.as_numpy("edited_image")[0]),
        "id": result.get_response().id,
        "facts": facts(result),
        "raw": text(raw.as_numpy("edited_image").tobytes()),
        "raw_shape": raw.as_numpy("edited_image").shape,
        "later": text(later.as_numpy("edited_image")[0]),
        "later_error": error,
        "bad": error_of(lambda: client.infer(MODEL, inputs(picture), parameters={"steps": 0})),
        "unknown": error_of(lambda: client.infer("other", inputs(picture))),
    }


def raw(client: Any, pixels: bytes) -> dict[str, Any]:
    """The picture as UINT8."""
    result = client.infer(MODEL, inputs(pixels, raw=True))
    return {"raw": text(result.as_numpy("edited_image").tobytes())}


def stream(client: Any, picture: bytes) -> dict[str, Any]:
    """Two requests and a bad one on one stream."""
    got: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    for request_id in ("a", "b"):
        asked = {"steps": 3, "preview_every": 1}
        client.async_stream_infer(
            MODEL, inputs(picture), request_id=request_id, parameters=asked, enable_empty_final_response=True
        )
    answers: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}
    pictures, previews = [], 0
    while not all(rows and rows[-1]["triton_final_response"] for rows in answers.values()):
        result, error = got.get(timeout=TIMEOUT_S)
        if error:
            raise error
        answers[result.get_response().id].append(facts(result))
        previews += result.as_numpy("preview") is not None
        if result.as_numpy("edited_image") is not None:
            pictures.append(text(result.as_numpy("edited_image")[0]))
    client.async_stream_infer("other", inputs(picture))
    _, error = got.get(timeout=TIMEOUT_S)
    client.stop_stream()
    return {"answers": answers, "pictures": pictures, "previews": previews, "error": error.message()}


def cancel(client: Any, picture: bytes) -> dict[str, Any]:
    """A call that is cancelled once its job is held, and a stream."""
    done: queue.Queue[Any] = queue.Queue()
    call = client.async_infer(MODEL, inputs(picture), lambda result, error: done.put(error))
    wait()
    call.cancel()
    first = done.get(timeout=TIMEOUT_S)
    client.start_stream(lambda result, error: done.put(error) if error else None)
    client.async_stream_infer(MODEL, inputs(picture))
    wait()
    client.stop_stream(cancel_requests=True)
    second = done.get(timeout=TIMEOUT_S)
    return {"statuses": [str(first.status()), str(second.status())]}


def shared(client: Any, picture: bytes) -> dict[str, Any]:
    """In and out through the client's own shared memory."""
    data = len(picture).to_bytes(4, "little") + picture
    size = 2**16
    handles = [shm.create_shared_memory_region(name, f"/steploom-test-{name}", size) for name in ("in", "out")]
    try:
        shm.set_shared_memory_region(handles[0], [np.frombuffer(data, np.uint8)])
        for name in ("in", "out"):
            client.register_system_shared_memory(name, f"/steploom-test-{name}", size)
        status = client.get_system_shared_memory_status(as_json=True)
        asked = inputs(picture)
        asked[0].set_shared_memory("in", len(data))
        output = triton.InferRequestedOutput("edited_image")
        output.set_shared_memory("out", size)
        result = client.infer(MODEL, asked, outputs=[output])
        place = result.get_output("edited_image").parameters["shared_memory_byte_size"].int64_param
        drawn = shm.get_contents_as_numpy(handles[1], np.uint8, [place])[4:].tobytes()
        client.unregister_system_shared_memory()
        left = client.get_system_shared_memory_status(as_json=True)
    finally:
        for handle in handles:
            shm.destroy_shared_memory_region(handle)
    return {"status": status, "picture": text(drawn), "left": left}


async def aio(address: str, picture: bytes) -> dict[str, Any]:
    """The client for asyncio: one call, one that is cancelled, one stream."""
    async with triton_aio.InferenceServerClient(address) as client:
        result = await client.infer(MODEL, inputs(picture, aio=True), parameters={"tier": "free"})

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": MODEL, "inputs": inputs(picture, aio=True), "request_id": "a"}
            yield {"model_name": "other", "inputs": inputs(picture, aio=True), "request_id": "b"}

        finals, errors = [], []
        async for part, error in client.stream_infer(requests()):
            if error:
                errors.append(error.message())
            else:
                finals.append(facts(part)["triton_final_response"])
        return {
            "picture": text(result.as_numpy("edited_image")[0]),
            "tier": facts(result)["tier"],
            "finals": finals,
            "errors": errors,
        }


def wire() -> dict[str, Any]:
    """The client's own descriptors."""
    files = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in (service_pb2, model_config_pb2)}
    found = {}
    for name, file in files.items():
        message: Any = __import__("google.protobuf.descriptor_pb2", fromlist=["x"]).FileDescriptorProto()
        file.CopyToProto(message)
        found[name] = json_format.MessageToDict(message)
    return found


def wait() -> None:
    """Until the test says so."""
    print("sent", flush=True)
    sys.stdin.readline()


def main() -> None:
    """Entry point."""
    command, address, path = sys.argv[1:]
    if command == "wire":
        print(json.dumps(wire()))
        return
    picture = Path(path).read_bytes()
    if command == "aio":
        print(json.dumps(asyncio.run(aio(address, picture))))
        return
    commands = {
        "info": info,
        "repository": repository,
        "sync": sync,
        "raw": raw,
        "stream": stream,
        "cancel": cancel,
        "shared": shared,
    }
    with triton.InferenceServerClient(address) as client:
        print(json.dumps(commands[command](client, picture)))


if __name__ == "__main__":
    main()
