"""The error tree: each class carries its gRPC status and the details that a client can act on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2


@dataclass(frozen=True)
class Violation:
    """One field of a request that is out of its bound."""

    field: str  # path in the request, as in the .proto
    problem: str  # what it is and what it must be


class SteploomError(Exception):
    """An error that answers one request; the service goes on."""

    status: grpc.StatusCode = grpc.StatusCode.INTERNAL

    def details(self) -> Sequence[Message]:
        """google.rpc messages for the status details."""
        return ()

    def trailers(self) -> Sequence[tuple[str, str | bytes]]:
        """Metadata to send with the status; bytes under a key that ends in `-bin`."""
        return ()


class InvalidRequest(SteploomError):
    """Fields out of their bounds, or an image that cannot be decoded."""

    status = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(f"{item.field}: {item.problem}" for item in violations))
        self.violations = violations

    def details(self) -> Sequence[Message]:
        rows = [
            error_details_pb2.BadRequest.FieldViolation(field=item.field, description=item.problem)
            for item in self.violations
        ]
        return [error_details_pb2.BadRequest(field_violations=rows)]


class NotFound(SteploomError):
    """A model, tier or adapter that does not exist."""

    status = grpc.StatusCode.NOT_FOUND

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"{kind} {name!r} does not exist; there {'is' if len(known) == 1 else 'are'}: {', '.join(known) or 'none'}"
        )


class NotInPlace(SteploomError):
    """What is named is not where it would have to lie; the message says what is there."""

    status = grpc.StatusCode.NOT_FOUND


class Unauthenticated(SteploomError):
    """No token, or one that is not known."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(SteploomError):
    """The token is known, and does not allow this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class Exhausted(SteploomError):
    """A full queue, or no slot in time. Try again after `retry_after_s`."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, subject: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.subject = subject
        self.retry_after_s = retry_after_s

    def details(self) -> Sequence[Message]:
        violation = error_details_pb2.QuotaFailure.Violation(subject=self.subject, description=str(self))
        return [
            error_details_pb2.RetryInfo(retry_delay=_duration(self.retry_after_s)),
            error_details_pb2.QuotaFailure(violations=[violation]),
        ]


class QueueFull(Exhausted):
    """As many wait as may. The message begins with the words by which clients of Triton know this refusal."""

    def __init__(self, message: str, subject: str, retry_after_s: float) -> None:
        super().__init__(f"Exceeds maximum queue size: {message}", subject, retry_after_s)


class DeadlineMissed(SteploomError):
    """The job cannot finish before its deadline, or did not. The message begins with Triton's words for it."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self, message: str, predicted_s: float | None = None) -> None:
        super().__init__(f"Request timeout expired: {message}")
        self.predicted_s = predicted_s  # seconds from now to the predicted finish; None where not known

    def details(self) -> Sequence[Message]:
        if self.predicted_s is None:
            return []
        metadata = {"predicted_s": f"{self.predicted_s:.3f}"}
        return [error_details_pb2.ErrorInfo(reason="PREDICTED_FINISH", domain="steploom", metadata=metadata)]


class Unavailable(SteploomError):
    """Draining, or no worker is up."""

    status = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def trailers(self) -> Sequence[tuple[str, str | bytes]]:
        return (("grpc-retry-pushback-ms", str(int(self.retry_after_s * 1000))),)


class Exists(SteploomError):
    """What was to be made is there already."""

    status = grpc.StatusCode.ALREADY_EXISTS


class Unsupported(SteploomError):
    """What this service does not do, or is not set to do."""

    status = grpc.StatusCode.UNIMPLEMENTED


class FailedPrecondition(SteploomError):
    """Not as things are set up, or stand now; the message says what would have to be otherwise."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class JobFailed(SteploomError):
    """The job itself makes the model fail; the log has the cause under the error id."""

    status = grpc.StatusCode.INTERNAL

    def __init__(self, error_id: str) -> None:
        super().__init__(f"the model failed on this request; error id {error_id}")


class JobCancelled(SteploomError):
    """The caller went away, or the service is ending."""

    status = grpc.StatusCode.CANCELLED


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
