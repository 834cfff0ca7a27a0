"""Why a request got no picture, in a word or two: few enough that they can be counted."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


def cause_of(error: Any) -> str:
    """Of a failed call: what was full, or which deadline could not be held; else its status in words."""
    status: grpc.StatusCode = error.code()
    words = status.name.lower().replace("_", " ")
    details = _details(error)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        subject = _subject(details)
        return f"full: {subject}" if subject else words
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        is_foretold = any(row.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for row in details)
        return "deadline cannot be met" if is_foretold else "deadline has passed"
    return words


def _subject(details: list[Any]) -> str:
    """What is full, as the service names it: `tier:free`, `slots`, `token:web/rate`."""
    for row in details:
        if row.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            for violation in error_details_pb2.QuotaFailure.FromString(row.value).violations:
                return str(violation.subject)
    return ""


def _details(error: Any) -> list[Any]:
    """The google.rpc messages of a rich status; none where it cannot be read."""
    try:
        trailers = dict(error.trailing_metadata() or ())
        return list(status_pb2.Status.FromString(trailers.get(_DETAILS, b"")).details)
    except (DecodeError, TypeError):
        return []
