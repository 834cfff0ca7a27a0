"""Two kinds of users over gRPC: `locust -f loadtest/locustfile.py --headless -u 8 -r 4 -t 20s --host 127.0.0.1:8001`.

Nine free users for each pro user, each of which waits for its picture and then thinks for a moment. That is a closed
loop: it shows what so many users feel, not what the service does at a given rate; for that, see `open_loop`.
"""

from __future__ import annotations

import random
import time
from typing import Any

import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import User, between, events, task

from steploom_loadtest.pictures import portrait
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

# gRPC's own threads would block the one thread on which all users run
grpc_gevent.init_gevent()

INSTRUCTIONS = ("put on sunglasses", "make the hair blond", "close the eyes", "썬글라스를 씌워 줘", "꽃 추가")


@events.init_command_line_parser.add_listener
def _(parser: Any) -> None:
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for each request")
    parser.add_argument("--free-steps", type=int, default=3, help="denoising steps of a free request")
    parser.add_argument("--pro-steps", type=int, default=35, help="denoising steps of a pro request")


class ImageUser(User):  # type: ignore[misc]  # locust has no types
    """Asks for one picture after the other, on a connection of its own."""

    abstract = True
    wait_time = between(0.1, 0.5)
    tier = ""

    def on_start(self) -> None:
        self._channel = grpc.insecure_channel(
            self.host or "127.0.0.1:8001", [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        )
        self._stub = ImageServiceStub(self._channel)
        self._steps = getattr(self.environment.parsed_options, f"{self.tier}_steps")

    def on_stop(self) -> None:
        self._channel.close()

    @task
    def edit(self) -> None:
        """One request; its time and its end go to locust's statistics under the tier's name."""
        request = pb.EditRequest(
            image=pb.Image(encoded=portrait()),
            instruction=random.choice(INSTRUCTIONS),
            tier=self.tier,
            steps=self._steps,
        )
        failure: grpc.RpcError | None = None
        length = 0
        began = time.perf_counter()
        try:
            length = len(self._stub.Edit(request, timeout=self.environment.parsed_options.deadline).image.encoded)
        except grpc.RpcError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"Edit {self.tier} {self._steps} steps",
            response_time=(time.perf_counter() - began) * 1000.0,  # ms
            response_length=length,
            exception=None if failure is None else _named(failure),
            context={},
        )


class FreeUser(ImageUser):
    """Few steps, many users."""

    tier = "free"
    weight = 9


class ProUser(ImageUser):
    """Many steps, few users."""

    tier = "pro"
    weight = 1


class RequestFailed(Exception):
    """Locust groups failures by type and text."""


def _named(error: grpc.RpcError) -> RequestFailed:
    return RequestFailed(error.code().name)
