"""Why there was no picture, read from errors as the services make them."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from steploom_common import errors
from steploom_loadtest.refusals import cause_of


def sent(error: errors.SteploomError) -> grpc.aio.AioRpcError:
    """As a client gets it."""
    packed = []
    for detail in error.details():
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    status = status_pb2.Status(code=error.status.value[0], message=str(error), details=packed)
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(error.status, grpc.aio.Metadata(), trailers, str(error))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (errors.QueueFull("256 wait", "tier:free", 1.0), "full: tier:free"),
        (errors.Exhausted("none in time", "slots", 1.0), "full: slots"),
        (errors.DeadlineMissed("would take 9 s", 9.0), "deadline cannot be met"),
        (errors.DeadlineMissed("it did not end"), "deadline has passed"),
        (errors.Unavailable("draining"), "unavailable"),
        (errors.JobFailed("abc"), "internal"),
        (errors.InvalidRequest(errors.Violation("steps", "is 0")), "invalid argument"),
    ],
)
def test_causes(error: errors.SteploomError, cause: str) -> None:
    assert cause_of(sent(error)) == cause


@pytest.mark.parametrize("details", [b"", b"no message at all"])
def test_a_refusal_without_details_has_its_status_as_cause(details: bytes) -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", details))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailers, "full")
    assert cause_of(error) == "resource exhausted"
