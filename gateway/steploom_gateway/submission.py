"""One job at the batcher, and the shared memory that it uses while it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

import grpc.aio
import numpy as np

from steploom_common.arena import Pixels, RegionRef
from steploom_common.errors import SteploomError, Unavailable
from steploom_gateway.batcher_client import BatcherClient, SubmitCall
from steploom_gateway.loans import Loan, Loans
from steploom_gateway.relay import is_lost, relayed
from steploom_protos.batcher.v1 import batcher_pb2
from steploom_protos.worker.v1 import worker_pb2


class Submissions:
    """The jobs that are open at a batcher.

    Args:
        batcher: where they run.
        loans: where their shared memory comes from.
    """

    def __init__(self, batcher: BatcherClient, loans: Loans) -> None:
        self.batcher = batcher
        self.loans = loans
        self.is_ending = False
        self.live: set[Submission] = set()

    def submit(
        self, request: batcher_pb2.SubmitRequest, pixels: Pixels, metadata: Sequence[tuple[str, str]] = ()
    ) -> Submission:
        """A job to run: `request` lacks but the pixels, which are of the model's size; `metadata` go with the call."""
        return Submission(self, request, pixels, metadata)

    def end(self) -> None:
        """Cancels all jobs, now and from now on: their callers get UNAVAILABLE."""
        self.is_ending = True
        for submission in self.live:
            submission.cancel()


class Submission:
    """Runs a job within an `async with` block; leaving the block early cancels it."""

    def __init__(
        self,
        group: Submissions,
        request: batcher_pb2.SubmitRequest,
        pixels: Pixels,
        metadata: Sequence[tuple[str, str]],
    ) -> None:
        self._group = group
        self._request = request
        self._pixels = pixels
        self._metadata = metadata
        self._loan: Loan | None = None
        self._call: SubmitCall | None = None
        self._is_admitted = False
        self._is_free = True  # no worker can touch the regions

    async def __aenter__(self) -> Submission:
        if self._group.is_ending:
            raise _ending()
        self._loan = self._group.loans.lend(self._pixels.nbytes)
        try:
            self._place_pixels()
            self._call = self._group.batcher.submit(self._request, self._metadata)
        except BaseException:
            self._leave()
            raise
        self._is_free = False
        self._group.live.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def cancel(self) -> None:
        """Cancels the job; nothing where it has ended."""
        if self._call:
            self._call.cancel()

    async def next_event(self) -> batcher_pb2.JobEvent | None:
        """The job's next event; None at the end of the stream.

        Raises:
            SteploomError: the batcher's refusal or failure, or UNAVAILABLE where it was lost.
        """
        assert self._call
        try:
            event = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._group.batcher.look_now()
            self._is_free = not self._is_admitted and not is_lost(error)
            raise relayed(error) from None
        except asyncio.CancelledError:
            if self._group.is_ending:
                raise _ending() from None
            raise
        if isinstance(event, batcher_pb2.JobEvent):
            self._is_admitted = True
            return event
        self._is_free = True
        return None

    def picture(self, pixels: worker_pb2.Pixels) -> Pixels:
        """The picture that a `finished` event names.

        Raises:
            SteploomError: it is not where or what it must be.
        """
        height, width = pixels.height, pixels.width
        if pixels.WhichOneof("place") == "inline":
            return inline_picture(pixels)
        if self._loan is None or height * width * 3 > self._loan.output.size:
            raise SteploomError("the batcher names a picture outside of the job's region")
        return self._loan.read(height, width)

    def _leave(self) -> None:
        self._group.live.discard(self)
        self.cancel()
        if self._loan:
            self._group.loans.end(self._loan, self._request.job_id, self._is_free)

    def _place_pixels(self) -> None:
        pixels = self._request.pixels
        pixels.height, pixels.width = self._pixels.shape[:2]
        if self._loan is None:
            pixels.inline = self._pixels.tobytes()
            return
        self._loan.write(self._pixels)
        pixels.region.CopyFrom(_region(self._loan.input))
        self._request.output.CopyFrom(_region(self._loan.output))


def inline_picture(pixels: worker_pb2.Pixels) -> Pixels:
    """The picture within a message.

    Raises:
        SteploomError: its length is not that of its size.
    """
    if len(pixels.inline) != pixels.height * pixels.width * 3:
        raise SteploomError("the batcher sent a picture of a wrong length")
    return np.frombuffer(pixels.inline, np.uint8).reshape(pixels.height, pixels.width, 3)


def _ending() -> Unavailable:
    return Unavailable("the gateway is ending; try again at another one or later")


def _region(region: RegionRef) -> worker_pb2.Region:
    return worker_pb2.Region(path=region.path, offset=region.offset, size=region.size, lease=region.lease)
