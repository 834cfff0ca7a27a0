"""The SDK's errors: one class a gRPC status, with the details that a caller can act on.

SteploomError
    InvalidArgument      fields out of their bounds: `violations`
    NotFound             unknown model, tier or adapter
    ResourceExhausted    queue or slots are full: `retry_after`
    DeadlineExceeded     the deadline passed, or cannot be met: `predicted_s`
    Unavailable          nobody answers, or the service drains: `retry_after`
    InternalError        the request makes the model fail
    Cancelled            the call was cancelled
    Unauthenticated, PermissionDenied
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from steploom_common.errors import Violation

Detail = TypeVar("Detail", bound=Message)


class SteploomError(Exception):
    """A request that did not end with a picture."""

    def __init__(
        self,
        message: str,
        status: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        *,
        retry_after: float | None = None,
        violations: tuple[Violation, ...] = (),
        predicted_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after  # seconds after which a new try makes sense; None: not said
        self.violations = violations  # one for each field that is out of its bound
        self.predicted_s = predicted_s  # seconds that the request would have taken; None: not said


class InvalidArgument(SteploomError):
    """Fields out of their bounds, or an image that cannot be decoded."""


class NotFound(SteploomError):
    """An unknown model, tier or adapter; the message lists those that exist."""


class ResourceExhausted(SteploomError):
    """Queue or slots are full, or the message is too large."""


class DeadlineExceeded(SteploomError):
    """The request did not end before its deadline, or could not have."""


class Unavailable(SteploomError):
    """Nobody answers at the address, or the service drains or has no worker."""


class InternalError(SteploomError):
    """The request makes the model fail; the service's log has the cause under the error id."""


class Cancelled(SteploomError):
    """The call was cancelled."""


class Unauthenticated(SteploomError):
    """No token, or a bad one."""


class PermissionDenied(SteploomError):
    """The token does not allow this."""


_CLASSES: dict[grpc.StatusCode, type[SteploomError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}


@contextmanager
def translated() -> Iterator[None]:
    """Turns a gRPC error inside the block, of either client, into a `SteploomError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def from_rpc_error(error: Any) -> SteploomError:
    """The typed error of a failed call, with what its status details and trailers tell."""
    status: grpc.StatusCode = error.code()
    trailers = dict(error.trailing_metadata() or ())
    details = list(_details(trailers.get("grpc-status-details-bin", b"")))
    return _CLASSES.get(status, SteploomError)(
        error.details() or status.name.lower().replace("_", " "),
        status,
        retry_after=_retry_after(details, trailers),
        violations=_violations(details),
        predicted_s=_predicted_s(details),
    )


def _details(packed: bytes) -> Iterator[Message]:
    """The google.rpc messages of a rich status; none where it cannot be read."""
    known = (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo)
    try:
        for row in status_pb2.Status.FromString(packed).details:
            for kind in known:
                if row.Is(kind.DESCRIPTOR):
                    yield kind.FromString(row.value)
    except DecodeError:
        return


def _of(kind: type[Detail], details: Iterable[Message]) -> Iterator[Detail]:
    return (item for item in details if isinstance(item, kind))


def _retry_after(details: list[Message], trailers: dict[str, Any]) -> float | None:
    for info in _of(error_details_pb2.RetryInfo, details):
        return float(info.retry_delay.ToNanoseconds() / 1e9)
    pushback = str(trailers.get("grpc-retry-pushback-ms", ""))
    return int(pushback) / 1000 if pushback.isdigit() else None


def _violations(details: list[Message]) -> tuple[Violation, ...]:
    return tuple(
        Violation(row.field, row.description)
        for request in _of(error_details_pb2.BadRequest, details)
        for row in request.field_violations
    )


def _predicted_s(details: list[Message]) -> float | None:
    for info in _of(error_details_pb2.ErrorInfo, details):
        try:
            return float(info.metadata["predicted_s"])
        except (KeyError, ValueError):
            continue
    return None
