"""The plain scheduler's vocabulary: what goes in (requests, models, hosts) and what comes out (batches, ends).

Times are seconds of one monotonic clock that the caller reads; the scheduler never does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Cause(Enum):
    """Why a request was refused or has ended without an answer; the values are the metric's labels."""

    QUEUE_FULL = "queue_full"
    TIMEOUT = "timeout"  # of the model's queue, or the request's own
    DEADLINE = "deadline"  # of the call
    TOO_LARGE = "too_large"  # more rows than the model's batch may have
    NO_MODEL = "no_model"  # nobody serves it, or it was taken out of service
    NO_HOST = "no_host"  # the host was lost, and is not back in time
    DRAINING = "draining"
    CANCELLED = "cancelled"


class Version(NamedTuple):
    """One version of a model: what has a queue of its own."""

    name: str
    number: int


@dataclass(slots=True)
class Item:
    """One request, as the scheduler sees it."""

    item_id: int
    model: Version
    rows: int = 1  # along the batch's dimension
    key: Hashable = None  # what must be equal for two requests to share a batch: shapes but for the rows
    priority: int = 0  # 1 is the highest; 0, and levels that do not exist: the model's default
    timeout_s: float = 0.0  # that it may wait, where the model allows that; 0: as the model says
    deadline: float = math.inf  # at which nobody waits for it any more


@dataclass(frozen=True)
class Refused:
    """A request that was not taken."""

    cause: Cause
    message: str
    retry_after_s: float = 0.0  # 0: no hint


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that run together."""

    batch_id: int
    host: str
    model: Version
    items: tuple[int, ...]  # by id, in order
    rows: int
    waited_s: tuple[float, ...]  # of each item, from its arrival until now


@dataclass(frozen=True)
class Dropped:
    """A request that was taken, and ends without an answer."""

    item_id: int
    refused: Refused


@dataclass
class Work:
    """What is to be done after a change."""

    batches: list[Batch] = field(default_factory=list)  # to be sent, in order
    dropped: list[Dropped] = field(default_factory=list)
    released: list[int] = field(default_factory=list)  # items whose answers may go out, in this order


class Outcome(Enum):
    """How a batch ended."""

    ANSWERED = "answered"  # each item has its outputs, or an error of its own
    FAILED = "failed"  # as a whole: nobody knows by whose fault
    NOT_RUN = "not_run"  # the host did not take it
