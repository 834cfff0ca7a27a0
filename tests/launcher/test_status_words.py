"""What `steploom status` says of a worker."""

from __future__ import annotations

import pytest

from steploom.status import worker_state
from steploom_protos.batcher.v1.batcher_pb2 import StatusResponse
from steploom_protos.worker.v1.worker_pb2 import Progress

WorkerStatus = StatusResponse.WorkerStatus


@pytest.mark.parametrize(
    ("worker", "words"),
    [
        (WorkerStatus(is_up=True), "up"),
        (WorkerStatus(is_up=True, progress=Progress(done=40, total=40)), "up"),
        (WorkerStatus(is_up=True, progress=Progress(done=12, total=40)), "up, 12 of 40 forms recorded"),
        (WorkerStatus(is_up=True, is_leaving=True, progress=Progress(done=12, total=40)), "leaving"),
        (WorkerStatus(), "down: not reached yet"),
        (WorkerStatus(last_error="gone", progress=Progress(done=12, total=40)), "down: gone"),
    ],
)
def test_a_worker_that_still_records_says_how_far_it_is(worker: WorkerStatus, words: str) -> None:
    assert worker_state(worker) == words
