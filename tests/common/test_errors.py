"""The error tree: statuses, details and trailers."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from steploom_common.errors import (
    DeadlineMissed,
    Exhausted,
    Exists,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    QueueFull,
    SteploomError,
    Unavailable,
    Unsupported,
    Violation,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SteploomError("x"), grpc.StatusCode.INTERNAL),
        (InvalidRequest(Violation("a", "is bad")), grpc.StatusCode.INVALID_ARGUMENT),
        (NotFound("tier", "gold", ["free"]), grpc.StatusCode.NOT_FOUND),
        (Exhausted("full", "tier:free", 1.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (DeadlineMissed("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (Unavailable("away"), grpc.StatusCode.UNAVAILABLE),
        (QueueFull("full", "tier:free", 1.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Exists("there"), grpc.StatusCode.ALREADY_EXISTS),
        (Unsupported("not here"), grpc.StatusCode.UNIMPLEMENTED),
        (JobFailed("abc"), grpc.StatusCode.INTERNAL),
        (JobCancelled("gone"), grpc.StatusCode.CANCELLED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_class_has_its_status(error: SteploomError, status: grpc.StatusCode) -> None:
    assert error.status is status
    assert str(error)


def test_all_violations_are_named() -> None:
    error = InvalidRequest(Violation("a.b", "is 1"), Violation("c", "is empty"))
    assert str(error) == "a.b: is 1; c: is empty"
    (detail,) = error.details()
    assert isinstance(detail, error_details_pb2.BadRequest)
    assert [(row.field, row.description) for row in detail.field_violations] == [("a.b", "is 1"), ("c", "is empty")]


@pytest.mark.parametrize(("known", "words"), [([], "there are: none"), (["a"], "there is: a"), (["a", "b"], ": a, b")])
def test_not_found_lists_what_exists(known: list[str], words: str) -> None:
    assert words in str(NotFound("model", "x", known))


def test_retry_hints() -> None:
    retry, quota = Exhausted("full", "tier:free", 1.25).details()
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1250
    assert isinstance(quota, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "tier:free"
    assert list(Unavailable("x", 0.25).trailers()) == [("grpc-retry-pushback-ms", "250")]


def test_refusals_begin_with_the_words_that_clients_of_triton_look_for() -> None:
    assert str(QueueFull("9 jobs wait", "tier:free", 1.0)) == "Exceeds maximum queue size: 9 jobs wait"
    assert str(DeadlineMissed("at step 3 of 9")) == "Request timeout expired: at step 3 of 9"


def test_predicted_finish() -> None:
    assert not DeadlineMissed("late").details()
    (info,) = DeadlineMissed("late", 1.5).details()
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.metadata["predicted_s"] == "1.500"


def test_the_error_id_is_in_the_message() -> None:
    assert "abc123" in str(JobFailed("abc123"))
