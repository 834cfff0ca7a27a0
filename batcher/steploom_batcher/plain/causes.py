"""Why a request for a plain model got no outputs, as the error that its caller gets: the one table."""

from __future__ import annotations

from collections.abc import Callable

from steploom_batcher.plain.types import Cause, Refused
from steploom_common.errors import (
    DeadlineMissed,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    QueueFull,
    SteploomError,
    Unavailable,
    Violation,
)
from steploom_protos.worker.v1 import plain_pb2 as pb

_RETRY_S = 1.0  # where there is no hint


def refusal_error(refused: Refused) -> SteploomError:
    """Of a request that was refused, or has waited in vain."""
    return _ERRORS[refused.cause](refused)


def item_error(error: pb.ItemError) -> SteploomError:
    """Of a request that its host could not run."""
    match error.kind:
        case pb.ERROR_KIND_INVALID:
            return InvalidRequest(Violation("inputs", error.message))
        case pb.ERROR_KIND_UNAVAILABLE:
            return Unavailable(error.message)
        case pb.ERROR_KIND_FAILED:
            return JobFailed(error.error_id)
    return SteploomError(f"{error.message}; error id {error.error_id}" if error.error_id else error.message)


def _unavailable(refused: Refused) -> SteploomError:
    return Unavailable(refused.message, refused.retry_after_s or _RETRY_S)


def _late(refused: Refused) -> SteploomError:
    return DeadlineMissed(refused.message)


_ERRORS: dict[Cause, Callable[[Refused], SteploomError]] = {
    Cause.QUEUE_FULL: lambda refused: QueueFull(refused.message, "queue", refused.retry_after_s or _RETRY_S),
    Cause.TIMEOUT: _late,
    Cause.DEADLINE: _late,
    Cause.TOO_LARGE: lambda refused: InvalidRequest(Violation("inputs", refused.message)),
    Cause.NO_MODEL: _unavailable,
    Cause.NO_HOST: _unavailable,
    Cause.DRAINING: _unavailable,
    Cause.CANCELLED: lambda refused: JobCancelled(refused.message),
}
