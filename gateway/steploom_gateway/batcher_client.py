"""The gateway's end of the batcher: one channel, and a look at its status now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import grpc
import grpc.aio

from steploom_common.internal import PLAIN, Internal
from steploom_gateway.catalogue import AdapterStatus, Catalogue, Model, StageWork
from steploom_gateway.relay import relayed
from steploom_protos.batcher.v1 import batcher_pb2, batcher_pb2_grpc
from steploom_protos.worker.v1 import worker_pb2

log = logging.getLogger(__name__)

SubmitCall = grpc.aio.UnaryStreamCall[batcher_pb2.SubmitRequest, batcher_pb2.JobEvent]

_STATUS_TIMEOUT_S = 5.0
METRICS_TIMEOUT_S = 2.0
_FIRST_RETRY_S = 0.05

_STAGES = {
    "encode": worker_pb2.STAGE_ENCODE,
    "denoise": worker_pb2.STAGE_DENOISE,
    "decode": worker_pb2.STAGE_DECODE,
}


class BatcherClient:
    """Submits jobs, and follows what the batcher serves.

    Args:
        address: unix:/path or host:port.
        poll_s: seconds between looks at its status; failed looks start closer together.
        on_change: told at each change whether work can be done.
        internal: how it is reached.

    Raises:
        ConfigError: it would be reached in the clear over a network.
    """

    def __init__(
        self,
        address: str,
        poll_s: float,
        on_change: Callable[[bool], Awaitable[None]],
        internal: Internal = PLAIN,
    ) -> None:
        self.catalogue: Catalogue | None = None  # the last known; None until a worker has been up
        self.address = address
        self._poll_s = poll_s
        self._on_change = on_change
        self.is_serving = False  # a worker is up, and the batcher takes jobs
        self.has_workers = True  # that the batcher is told to reach, as far as is known
        self._last_problem = ""
        self._look = asyncio.Event()
        self._internal = internal
        self._shown = internal.credentials(address)  # when the channel was made
        self._channel = internal.channel(address)
        self._stub = batcher_pb2_grpc.BatcherStub(self._channel)
        self._poller = asyncio.create_task(self._follow(), name="batcher status")

    def __repr__(self) -> str:
        return f"BatcherClient({self.address}, {'serving' if self.is_serving else 'not serving'})"

    def submit(self, request: batcher_pb2.SubmitRequest, metadata: Sequence[tuple[str, str]] = ()) -> SubmitCall:
        """Starts a job; cancel the call to cancel it."""
        return self._stub.Submit(request, metadata=tuple(metadata))

    async def cancel(self, job_id: str) -> None:
        """Ends a job; returns when no worker touches its regions any more.

        Raises:
            grpc.aio.AioRpcError: the batcher cannot say.
        """
        await self._stub.Cancel(batcher_pb2.CancelRequest(job_id=job_id))

    async def load_adapter(self, model: str, name: str) -> None:
        """Loads an adapter into every worker of a model; returns when requests can have it.

        Raises:
            SteploomError: it is not loaded; as the batcher says.
        """
        await self._change(self._stub.LoadAdapter(batcher_pb2.AdapterRequest(model=model, name=name)))

    async def unload_adapter(self, model: str, name: str) -> None:
        """Offers an adapter no more.

        Raises:
            SteploomError: it stays; as the batcher says.
        """
        await self._change(self._stub.UnloadAdapter(batcher_pb2.AdapterRequest(model=model, name=name)))

    async def _change(self, call: Awaitable[batcher_pb2.AdapterResponse]) -> None:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise relayed(error) from None
        finally:
            await self._refresh()  # whoever asks this gateway next is to find it so

    def look_now(self) -> None:
        """Asks for the status without waiting for its turn: a call has failed."""
        self._look.set()

    async def latest(self) -> Catalogue | None:
        """What the batcher serves, asked now; the last known where it does not answer."""
        await self._refresh()
        return self.catalogue

    async def metrics(self) -> str:
        """What the batcher has counted, in Prometheus' text format.

        Raises:
            grpc.aio.AioRpcError: it does not answer in time.
        """
        answer = await self._stub.Metrics(batcher_pb2.MetricsRequest(), timeout=METRICS_TIMEOUT_S)
        return answer.text

    async def close(self) -> None:
        """Ends the looks and the channel."""
        self._poller.cancel()
        with suppress(asyncio.CancelledError):
            await self._poller
        await self._channel.close()

    async def _follow(self) -> None:
        retry = _FIRST_RETRY_S
        while True:
            self._look.clear()
            had_workers = self.has_workers
            is_serving = await self._refresh()
            if self.has_workers != had_workers and is_serving == self.is_serving:
                await self._on_change(is_serving)  # without workers it is plain models that serve
            if is_serving != self.is_serving:
                self.is_serving = is_serving
                log.info("the batcher at %s is %s", self.address, "serving" if is_serving else "not serving")
                await self._on_change(is_serving)
            retry = _FIRST_RETRY_S if is_serving else min(self._poll_s, 2 * retry)
            with suppress(TimeoutError):  # not wait_for, which may swallow the cancel of `close`
                async with asyncio.timeout(self._poll_s if is_serving else retry):
                    await self._look.wait()

    async def _refresh(self) -> bool:
        try:
            status = await self._stub.Status(batcher_pb2.StatusRequest(), timeout=_STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._report(f"cannot be reached: {error.details()}")
            await self._take_new_certificates()
            return False
        self.has_workers = bool(status.workers)
        if not status.HasField("model"):
            self._report("has no worker yet" if self.has_workers else "serves plain models alone")
            return False
        self._last_problem = ""
        self.catalogue = _catalogue(status)
        return self.catalogue.is_serving

    async def _take_new_certificates(self) -> None:
        """Dials anew where they have changed: a channel keeps those that it was made with."""
        latest = self._internal.credentials(self.address)
        if latest == self._shown:
            return
        old, self._shown = self._channel, latest
        self._channel = self._internal.channel(self.address)
        self._stub = batcher_pb2_grpc.BatcherStub(self._channel)
        await old.close()

    def _report(self, problem: str) -> None:
        """Logs a lasting problem once."""
        if problem != self._last_problem:
            log.warning("the batcher at %s %s", self.address, problem)
        self._last_problem = problem


def _catalogue(status: batcher_pb2.StatusResponse) -> Catalogue:
    info = status.model
    adapters = tuple(adapter.name for adapter in info.adapters)
    model = Model(info.name, info.height, info.width, info.max_steps, adapters, tuple(info.latent_shape))
    return Catalogue(
        model=model,
        tiers=tuple(tier.name for tier in status.tiers),
        is_serving=not status.is_draining and any(worker.is_up for worker in status.workers),
        priorities=tuple(tier.name for tier in sorted(status.tiers, key=lambda tier: -tier.weight)),
        stages={name: _work(status, stage) for name, stage in _STAGES.items()},
        adapters=tuple(_adapter(item) for item in status.adapters),
    )


def _adapter(status: batcher_pb2.AdapterStatus) -> AdapterStatus:
    state = batcher_pb2.AdapterState.Name(status.state).removeprefix("ADAPTER_STATE_")
    return AdapterStatus(status.name, state, status.reason)


def _work(status: batcher_pb2.StatusResponse, stage: worker_pb2.Stage) -> StageWork:
    uses = [use for worker in status.workers for use in worker.stages if use.stage == stage]
    return StageWork(sum(use.ticks for use in uses), sum(use.rows for use in uses))
