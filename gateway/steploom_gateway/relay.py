"""The batcher's refusals and failures, as the caller sees them."""

from __future__ import annotations

import grpc
import grpc.aio

from steploom_common.errors import SteploomError, Unavailable

_PUSHBACK = "grpc-retry-pushback-ms"
_DETAILS = "grpc-status-details-bin"


class Relayed(SteploomError):
    """A status of the batcher, with its message and details as they came."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details() or "")
        self.status = error.code()
        self._trailers = _trailers(error)

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._trailers


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection broke, or the batcher ended: its own UNAVAILABLE carries a push-back."""
    if error.code() is grpc.StatusCode.CANCELLED:
        return True
    return error.code() is grpc.StatusCode.UNAVAILABLE and _PUSHBACK not in dict(_trailers(error))


def relayed(error: grpc.aio.AioRpcError) -> SteploomError:
    """What to answer: the batcher's own status unchanged, or UNAVAILABLE where the batcher was lost."""
    if is_lost(error):
        return Unavailable("the batcher cannot be reached; it is expected back")
    return Relayed(error)


def _trailers(error: grpc.aio.AioRpcError) -> tuple[tuple[str, str | bytes], ...]:
    metadata = error.trailing_metadata() or ()
    return tuple((key, value) for key, value in metadata if key in (_PUSHBACK, _DETAILS))
