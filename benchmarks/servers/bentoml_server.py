"""The model behind BentoML: one service, one batched call, without a hop to another service."""

import base64
import os
import sys
from pathlib import Path

import bentoml
from bench_model import Model, wanted

_said = wanted()


@bentoml.service(
    workers=_said["instances"],
    traffic={"timeout": 60, "max_concurrency": 1000},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    monitoring={"enabled": False},
)
class Served:
    """A service of one process."""

    def __init__(self) -> None:
        self._model = Model()

    # Its batcher learns by itself how long to wait; the latency is a bound, above which it answers 503.
    @bentoml.api(batchable=True, max_batch_size=_said["max_batch"], max_latency_ms=30000)
    def infer(self, items: list[str]) -> list[str]:
        """One batch; a batched call takes no bytes, so they come as base64."""
        bodies = self._model.run_bodies([base64.b64decode(item) for item in items])
        return [base64.b64encode(body).decode() for body in bodies]


if __name__ == "__main__":
    here = Path(__file__).parent
    arguments = ["serve", "bentoml_server:Served", "--working-dir", str(here), "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments, "--port", str(_said["port"])])
