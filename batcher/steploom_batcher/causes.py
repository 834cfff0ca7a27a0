"""Why a job was refused or has failed, as the error that its caller gets: the one table."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from steploom_batcher.job_log import about_job
from steploom_batcher.types import Cause, Failed, JobSpec, Refused
from steploom_common.errors import DeadlineMissed, Exhausted, JobFailed, QueueFull, SteploomError, Unavailable

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0  # where the scheduler gives no hint


def refusal_error(refused: Refused, spec: JobSpec) -> SteploomError:
    """What the caller of a refused job gets."""
    return _ERRORS[refused.cause](refused, spec)


def failure_error(failed: Failed, spec: JobSpec) -> SteploomError:
    """What the caller of an admitted job that fails gets."""
    return refusal_error(Refused(failed.cause, failed.message), spec)


def _exhausted(error: type[Exhausted], subject: str) -> Callable[[Refused, JobSpec], SteploomError]:
    return lambda refused, spec: error(
        refused.message, subject.format(tier=spec.tier, caller=spec.caller), refused.retry_after_s or _RETRY_AFTER_S
    )


def _deadline(refused: Refused, _: JobSpec) -> SteploomError:
    return DeadlineMissed(refused.message, refused.predicted_s)


def _unavailable(refused: Refused, _: JobSpec) -> SteploomError:
    return Unavailable(refused.message, refused.retry_after_s or _RETRY_AFTER_S)


def _poison(refused: Refused, spec: JobSpec) -> SteploomError:
    """The worker's words go to the log alone, under the error id."""
    error_id = secrets.token_hex(6)
    extra = about_job(spec, error_id=error_id)
    log.error("error id %s: job %s makes the model fail: %s", error_id, spec.job_id, refused.message, extra=extra)
    return JobFailed(error_id)


_ERRORS: dict[Cause, Callable[[Refused, JobSpec], SteploomError]] = {
    Cause.QUEUE_FULL: _exhausted(QueueFull, "tier:{tier}"),
    Cause.CALLER_QUEUE_FULL: _exhausted(QueueFull, "token:{caller}/queue"),
    Cause.NO_SLOT: _exhausted(Exhausted, "slots"),
    Cause.DEADLINE: _deadline,
    Cause.NO_WORKER: _unavailable,
    Cause.DRAINING: _unavailable,
    Cause.POISON: _poison,
}
