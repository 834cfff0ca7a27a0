"""What locust's users have in common: options, a connection each, and an interceptor that tells locust of each call."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from locust import User, between, events

from steploom_common.settings import ConfigError
from steploom_common.tls import channel_credentials
from steploom_common.tls_files import TlsFiles, check_pair
from steploom_loadtest.pictures import portrait
from steploom_loadtest.refusals import cause_of
from steploom_protos.v1 import image_pb2 as pb
from steploom_protos.v1.image_pb2_grpc import ImageServiceStub

INSTRUCTIONS = ("put on sunglasses", "make the hair blond", "close the eyes", "썬글라스를 씌워 줘", "꽃 추가")

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 64 * 2**20),
)


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options of all users."""
    group = parser.add_argument_group("Steploom")
    group.add_argument("--deadline", type=float, default=60.0, help="seconds for each request")
    group.add_argument("--free-steps", type=int, default=3, help="denoising steps of a free request")
    group.add_argument("--pro-steps", type=int, default=35, help="denoising steps of a pro request")
    group.add_argument("--image-model", default="", help="model by name; default: the one that is served")
    group.add_argument("--picture-side", type=int, default=128, help="pixels of a side of the pictures that are sent")
    group.add_argument("--grpc-tls", action="store_true", help="connect by TLS; so does --grpc-ca")
    group.add_argument("--grpc-ca", default="", help="authorities of the gateway's certificate, PEM file")
    group.add_argument("--grpc-cert", default="", help="the users' own certificate, PEM file")
    group.add_argument("--grpc-key", default="", help="its private key, PEM file")
    group.add_argument("--token-file", default="", help="file with the users' token; or the token in STEPLOOM_TOKEN")


@events.init.add_listener
def check_options(environment: Any, **_: Any) -> None:
    """Ends locust with 2 before any user starts, where an option is wrong."""
    try:
        credentials(environment.parsed_options)
        authorization(environment.parsed_options)
    except ConfigError as error:
        print(f"--{error.key.replace('.', '-').replace('_', '-')}: {error.problem}", file=sys.stderr)
        sys.exit(2)


def credentials(options: Any) -> grpc.ChannelCredentials | None:
    """What the options say of certificates; None: connections are plain.

    Raises:
        ConfigError: a file cannot be read or is wrong.
    """
    ca, cert, key = options.grpc_ca, options.grpc_cert, options.grpc_key
    if not (options.grpc_tls or ca or cert or key):
        return None
    check_pair(cert, key, "grpc.")
    return channel_credentials(TlsFiles(("grpc.cert", cert), ("grpc.key", key), ("grpc.ca", ca)).read())


def authorization(options: Any) -> tuple[tuple[str, str], ...]:
    """The metadata that shows the token; none without.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        path = options.token_file
        token = Path(path).read_text().strip() if path else os.environ.get("STEPLOOM_TOKEN", "")
    except OSError as error:
        raise ConfigError("token_file", f"{options.token_file} cannot be read: {error.strerror}") from None
    return (("authorization", f"Bearer {token}"),) if token else ()


class Interceptor(grpc.UnaryUnaryClientInterceptor):
    """Times each call and tells locust's statistics of its end: under the tier and its steps, failures by cause.

    Args:
        environment: locust's.
    """

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """See grpc."""
        began = time.perf_counter()
        outcome = continuation(client_call_details, request)  # the stub waits for it: it has ended
        seconds = time.perf_counter() - began
        error = outcome.exception()
        self._environment.events.request.fire(
            request_type="gRPC",
            name=f"Edit {request.tier} {request.steps} steps",
            response_time=1000.0 * seconds,  # ms
            response_length=0 if error else len(outcome.result().image.encoded),
            exception=None if error is None else named(error),
            context={"tier": request.tier},
        )
        return outcome


class ImageUser(User):  # type: ignore[misc]  # locust has no types
    """Asks for one picture after the other, on a connection of its own."""

    abstract = True
    wait_time = between(0.1, 0.5)

    def on_start(self) -> None:
        """Connects."""
        options = self.environment.parsed_options
        address, secure = self.host or "127.0.0.1:8001", credentials(options)
        self._channel = (
            grpc.secure_channel(address, secure, _OPTIONS) if secure else grpc.insecure_channel(address, _OPTIONS)
        )
        self._metadata = authorization(options)
        self._stub = ImageServiceStub(grpc.intercept_channel(self._channel, Interceptor(self.environment)))

    def on_stop(self) -> None:
        """Hangs up."""
        self._channel.close()

    def ask(self, tier: str, steps: int) -> None:
        """One request, whose end goes to locust's statistics."""
        options = self.environment.parsed_options
        request = pb.EditRequest(
            image=pb.Image(encoded=portrait(options.picture_side)),
            instruction=random.choice(INSTRUCTIONS),
            tier=tier,
            steps=steps,
            model=options.image_model,
        )
        try:
            self._stub.Edit(request, timeout=options.deadline, metadata=self._metadata)
        except grpc.RpcError:
            return  # the interceptor has told


class RequestFailed(Exception):
    """Locust groups failures by type and text."""


def named(error: Any) -> RequestFailed:
    """Its status, and the cause where that says more."""
    status, cause = error.code().name, cause_of(error)
    return RequestFailed(status if cause == status.lower().replace("_", " ") else f"{status}: {cause}")
