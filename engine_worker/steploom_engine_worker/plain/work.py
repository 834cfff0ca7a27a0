"""A batch on its way through the host, and the answer of one that has failed."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from steploom_common.logs import about
from steploom_engine_worker.plain.errors import WrongItem, WrongOutput
from steploom_protos.worker.v1 import plain_pb2 as pb

log = logging.getLogger(__name__)

Reply = Callable[[bytes], None]  # takes an ExecutedBatches, serialised; on any thread


class Work:
    """A batch that has come.

    Args:
        batch: as it came.
        reply: hears of its end, once.
        arrived_ns: of `time.monotonic_ns`, when its message came.
    """

    __slots__ = ("arrived_ns", "batch", "reply")

    def __init__(self, batch: pb.Batch, reply: Reply, arrived_ns: int) -> None:
        self.batch = batch
        self.reply = reply
        self.arrived_ns = arrived_ns

    def refuse(self, kind: pb.ErrorKind, message: str) -> None:
        """Nothing of it is run."""
        answer = pb.ExecutedBatches()
        done = answer.done.add(batch_id=self.batch.batch_id, wait_ns=time.monotonic_ns() - self.arrived_ns)
        done.error.kind = kind
        done.error.message = message
        self.reply(answer.SerializeToString())


def tell(error: pb.ItemError, cause: BaseException, work: Work) -> None:
    """Puts into `error` what callers may know of a failure; the log gets the rest."""
    if isinstance(cause, WrongItem):
        error.kind, error.message = pb.ERROR_KIND_INVALID, str(cause)
    elif isinstance(cause, WrongOutput):
        log.warning("%s: %s", work.batch.model, cause)
        error.kind, error.message = pb.ERROR_KIND_OUTPUT, str(cause)
    else:
        error.kind, error.error_id = pb.ERROR_KIND_FAILED, secrets.token_hex(6)
        error.message = f"the model failed on this request; error id {error.error_id}"
        model, requests = work.batch.model, [item.request_id for item in work.batch.items]
        extra = about(error_id=error.error_id, model=model, request_ids=requests)
        words = "error id %s: model %s, requests %s"
        log.error(words, error.error_id, model, ", ".join(requests), exc_info=cause, extra=extra)
