"""The process: binds, warms up, serves, and ends in order."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from steploom_common.arena import default_directory
from steploom_common.internal import PLAIN, Internal
from steploom_common.rpc import INTERNAL_OPTIONS, ErrorInterceptor, Shutdown, bind
from steploom_engine_worker.engine import Costs, Engine
from steploom_engine_worker.service import WorkerService
from steploom_engine_worker.worker import LIMITS, Limits, Worker
from steploom_protos.worker.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
_POLL_S = 0.05  # between looks at whether the slots are empty
_JOIN_S = 10.0  # for the tick under way, once asked to stop
_HANG_UP_S = 2.0  # for a batcher to end its stream once no slot holds a job: what it has sent before is on its way


class WorkerServer:
    """A worker behind gRPC.

    Args:
        address: to listen on; host:port or unix:/path.
        worker_id: unique among the workers of a batcher.
        build: makes the engine and measures its costs.
        drain_s: seconds for jobs in slots to end once asked to stop.
        internal: how the batcher reaches us.
        limits: of what the worker's threads do.
    """

    def __init__(
        self,
        address: str,
        worker_id: str,
        build: Callable[[], tuple[Engine, Costs]],
        drain_s: float,
        internal: Internal = PLAIN,
        limits: Limits = LIMITS,
    ) -> None:
        self._internal = internal
        self._address = address
        self._drain_s = drain_s
        self.worker = Worker(worker_id, build, default_directory(_runtime_directory(address)), limits)
        self._health = HealthServicer()

    async def run(self, shutdown: Shutdown) -> bool:
        """Serves until the shutdown is asked for or the worker ends.

        Returns:
            Whether the driving thread has ended: if not, the process must be ended by force.

        Raises:
            BindError: the address cannot be had.
            ConfigError: it would be listened on in the clear over a network.
            Exception: what kept the engine from starting, or what ended it.
        """
        server = grpc.aio.server(options=INTERNAL_OPTIONS, interceptors=[ErrorInterceptor()])
        worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(self.worker), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._set_health(False)
        bind(server, self._address, self._internal.server_credentials(self._address))
        await server.start()
        self.worker.start()
        try:
            await self._serve(shutdown)
        finally:
            await self._set_health(False)
            has_ended = await asyncio.to_thread(self.worker.stop, 0.0 if shutdown.forced.is_set() else _JOIN_S)
            await server.stop(grace=None)
        if self.worker.ended.done():
            self.worker.ended.result()  # a device that was lost on the way out is told too
        return has_ended

    async def _serve(self, shutdown: Shutdown) -> None:
        if await _first(self.worker.ready, shutdown):
            ready = self.worker.ready.result()
            log.info("ready: %s on %s, listening on %s", ready.engine, ready.device, self._address)
            log.info("memory: %s", ready.memory)
            await self._set_health(True)
            if await _first(self.worker.ended, shutdown):
                self.worker.ended.result()
                return
        log.info("stopping: %s", self.worker)
        await self._set_health(False)
        self.worker.leave()
        if not await shutdown.grace(self._drained(), self._drain_s):
            log.warning("jobs are left behind, and start again elsewhere: %s", self.worker)

    async def _drained(self) -> None:
        """Returns when no job is left and the batcher has hung up, or says nothing more."""
        idle_s = 0.0
        while not self.worker.ended.done():
            idle_s = idle_s + _POLL_S if self.worker.is_idle else 0.0
            if idle_s and (not self.worker.is_driven or idle_s > _HANG_UP_S):
                return
            await asyncio.sleep(_POLL_S)

    async def _set_health(self, is_serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def _first(future: Future[Any], shutdown: Shutdown) -> bool:
    """Whether `future` is done before the shutdown is asked for."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    future.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(done.set))
    waits = [asyncio.create_task(event.wait()) for event in (done, shutdown.requested)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return future.done()


def _runtime_directory(address: str) -> Path:
    """The folder of the socket; a temporary one where there is none."""
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:")).parent
    return Path(tempfile.gettempdir())
