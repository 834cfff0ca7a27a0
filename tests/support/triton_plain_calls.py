"""What Triton's own Python client gets of plain models: run by the Python of its environment, with nothing of ours.

`python triton_plain_calls.py ADDRESS` makes the calls, and prints what came of them as JSON.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found]
import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found]
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]

TIMEOUT_S = 60.0
NUMBERS = np.arange(12, dtype=np.float32).reshape(3, 4)


def given(kit: Any, array: Any, datatype: str) -> Any:
    tensor = kit.InferInput("INPUT0", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def blocking(client: Any) -> dict[str, Any]:
    numbers = client.infer("identity", [given(triton, NUMBERS, "FP32")], request_id="r1", priority=1, timeout=10**7)
    words = np.array([["one", "zwei"], ["", "넷"]], dtype=object)
    strings = client.infer("identity_bytes", [given(triton, words, "BYTES")]).as_numpy("OUTPUT0")
    whole = np.array([[-(2**63), 2**63 - 1]], dtype=np.int64)
    errors = []
    for tensor in (NUMBERS.astype(np.float64), np.zeros((65, 1), np.float32)):
        try:
            client.infer("identity", [given(triton, tensor, "FP64" if tensor.dtype == np.float64 else "FP32")])
        except InferenceServerException as error:
            errors.append(f"{error.status()} {error.message()}")
    return {
        "numbers": numbers.as_numpy("OUTPUT0").tolist(),
        "id": numbers.get_response().id,
        "strings": [[item.decode() for item in row] for row in strings],
        "whole": client.infer("identity_int64", [given(triton, whole, "INT64")]).as_numpy("OUTPUT0").tolist(),
        "errors": errors,
        "ready": client.is_model_ready("identity"),
        "metadata": client.get_model_metadata("identity", as_json=True),
        "config": client.get_model_config("identity", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "statistics": client.get_inference_statistics("identity", as_json=True),
    }


def streamed(client: Any) -> list[list[Any]]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(3):
        array = np.full((1, 2), number, np.float32)
        client.async_stream_infer("identity", [given(triton, array, "FP32")], request_id=str(number))
    got = [answers.get(timeout=TIMEOUT_S) for _ in range(3)]
    client.stop_stream()
    assert [error for _, error in got] == [None] * 3
    return sorted([result.get_response().id, result.as_numpy("OUTPUT0").tolist()] for result, _ in got)


async def side_by_side(address: str) -> int:
    """Fifty at once, each with numbers of its own; how many come back right."""
    async with triton_aio.InferenceServerClient(address) as client:

        async def one(number: int) -> bool:
            array = np.full((1, 8), number, np.float32)
            answer = await client.infer("identity", [given(triton_aio, array, "FP32")])
            return bool(np.array_equal(answer.as_numpy("OUTPUT0"), array))

        return sum(await asyncio.gather(*map(one, range(50))))


def main() -> None:
    """Entry point."""
    address = sys.argv[1]
    client = triton.InferenceServerClient(address)
    print(json.dumps({**blocking(client), "streamed": streamed(client), "right": asyncio.run(side_by_side(address))}))


if __name__ == "__main__":
    main()
