"""The model behind Ray Serve: one deployment, `serve.batch`, raw bodies."""

from __future__ import annotations

import signal

import ray
from bench_model import Model, wanted
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

_said = wanted()


@serve.deployment(num_replicas=_said["instances"], max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Served:
    """One replica."""

    def __init__(self) -> None:
        self._model = Model()

    @serve.batch(max_batch_size=_said["max_batch"], batch_wait_timeout_s=_said["delay_ms"] / 1000)
    async def infer(self, bodies: list[bytes]) -> list[bytes]:
        """One batch."""
        return self._model.run_bodies(bodies)

    async def __call__(self, request: Request) -> Response:
        """One request."""
        return Response(await self.infer(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=4,
        object_store_memory=200 * 2**20,
        configure_logging=False,
        runtime_env={"env_vars": {}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": _said["port"], "access_log": False})
    serve.run(Served.bind())  # type: ignore[attr-defined]
    signal.pause()
