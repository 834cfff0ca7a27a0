"""The model behind LitServe: raw bodies, its own batching loop in worker processes."""

import logging
from typing import Annotated, Any

import litserve
from bench_model import Model, wanted
from fastapi import Depends, Request, Response


async def body_of(request: Request) -> bytes:
    """LitServe reads JSON and forms by itself; a body as it is comes in by FastAPI's own means."""
    body: bytes = await request.body()
    return body


class Served(litserve.LitAPI):  # type: ignore[misc]
    """One worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Called once in the worker's process."""
        self._model = Model()

    def decode_request(self, request: Annotated[bytes, Depends(body_of)]) -> bytes:
        """A body is its own item."""
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Left a list: `run_bodies` stacks it."""
        return inputs

    def predict(self, x: Any) -> Any:
        """A list where batches may have more than one item."""
        return self._model.run_bodies(x) if isinstance(x, list) else self._model.run_bodies([x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """Already one for each."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The body of the answer."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    said = wanted()
    logging.disable(logging.INFO)
    api = Served(max_batch_size=said["max_batch"], batch_timeout=said["delay_ms"] / 1000)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=said["instances"],
        timeout=60,
        fast_queue=said["options"].get("fast_queue", False),
    )
    server.run(host="127.0.0.1", port=said["port"], generate_client_file=False, log_level="warning", access_log=False)
