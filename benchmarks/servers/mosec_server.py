"""The model behind MOSEC: bodies as they are, batched by its controller."""

from __future__ import annotations

import sys

from bench_model import Model, wanted
from mosec import Server, Worker


class Served(Worker):  # type: ignore[misc]
    """One worker process."""

    def __init__(self) -> None:
        super().__init__()
        self._model = Model()

    def deserialize(self, data: bytes) -> bytes:
        """A body is its own item."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """And its own answer."""
        return data

    def forward(self, data: list[bytes] | bytes) -> list[bytes] | bytes:
        """Without batching MOSEC gives one item, not a list of one."""
        if isinstance(data, list):
            return self._model.run_bodies(data)
        return self._model.run_bodies([data])[0]


if __name__ == "__main__":
    said = wanted()
    sys.argv = [
        *sys.argv[:1],
        *("--address", "127.0.0.1", "--port", str(said["port"]), "--timeout", "60000", "--log-level", "warning"),
    ]
    server = Server()
    server.append_worker(
        Served, num=said["instances"], max_batch_size=said["max_batch"], max_wait_time=max(1, round(said["delay_ms"]))
    )
    server.run()
