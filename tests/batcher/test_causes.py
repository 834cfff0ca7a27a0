"""What the caller of a refused job reads."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from steploom_batcher.causes import failure_error, refusal_error
from steploom_batcher.types import Cause, Failed, JobSpec, Key, Refused
from steploom_common.errors import Exhausted

SPEC = JobSpec("job", Key("model", (4, 8, 8)), "free", 3, 1, 0.0)
Status = grpc.StatusCode


@pytest.mark.parametrize(
    ("cause", "status", "words"),
    [
        (Cause.QUEUE_FULL, Status.RESOURCE_EXHAUSTED, "Exceeds maximum queue size: so it is"),
        (Cause.CALLER_QUEUE_FULL, Status.RESOURCE_EXHAUSTED, "Exceeds maximum queue size: so it is"),
        (Cause.NO_SLOT, Status.RESOURCE_EXHAUSTED, "so it is"),
        (Cause.DEADLINE, Status.DEADLINE_EXCEEDED, "Request timeout expired: so it is"),
        (Cause.NO_WORKER, Status.UNAVAILABLE, "so it is"),
        (Cause.DRAINING, Status.UNAVAILABLE, "so it is"),
    ],
)
def test_refused_at_the_door_or_given_up_later(cause: Cause, status: grpc.StatusCode, words: str) -> None:
    for error in (
        refusal_error(Refused(cause, "so it is"), SPEC),
        failure_error(Failed("job", cause, "so it is"), SPEC),
    ):
        assert (error.status, str(error)) == (status, words)


def test_who_is_meant_by_a_full_queue() -> None:
    spec = replace(SPEC, caller="web")
    subjects = {Cause.QUEUE_FULL: "tier:free", Cause.CALLER_QUEUE_FULL: "token:web/queue"}
    for cause, subject in subjects.items():
        error = refusal_error(Refused(cause, "x"), spec)
        assert isinstance(error, Exhausted)
        assert error.subject == subject


def test_every_cause_has_its_error() -> None:
    assert all(refusal_error(Refused(cause, "x"), SPEC) for cause in Cause)
