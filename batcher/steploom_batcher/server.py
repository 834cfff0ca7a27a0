"""The batcher as a whole: scheduler, driver, links and service put together, and taken apart in order."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from opentelemetry.trace import Tracer

from steploom_batcher.config import BatcherConfig
from steploom_batcher.driver import Driver
from steploom_batcher.messages import TickReport
from steploom_batcher.metrics import BatcherMetrics
from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.service import News, PlainBatcherService
from steploom_batcher.plain.side import PlainSide
from steploom_batcher.recent_ticks import RecentTicks
from steploom_batcher.scheduler import Scheduler
from steploom_batcher.service import BatcherService
from steploom_batcher.traces import JobTraces
from steploom_batcher.types import Tick
from steploom_batcher.worker_link import Backoff, Dial, WorkerLink, dial_grpc
from steploom_common.internal import PLAIN, Internal
from steploom_common.rpc import INTERNAL_OPTIONS, ErrorInterceptor, Shutdown, bind
from steploom_common.tracing import NO_TRACER
from steploom_protos.batcher.v1 import batcher_pb2_grpc, plain_pb2_grpc

log = logging.getLogger(__name__)

SERVICE_NAME = "steploom.batcher.v1.Batcher"
_NO_PLAIN = PlainConfig()
_LAST_WORDS_S = 1.0  # for ticks in flight, and for answers that are on their way, when everything has ended


class BatcherServer:
    """Make it on a running event loop.

    Args:
        config: the `[batcher]` table.
        listen: host:port or unix:/path.
        workers: addresses to dial.
        internal: how workers are reached, and others reach us.
        tracer: of the spans of jobs.
        plain: the `[plain]` table.
        hosts: addresses of model hosts to dial.

    Raises:
        ConfigError: a worker would be reached in the clear over a network.
    """

    def __init__(
        self,
        config: BatcherConfig,
        listen: str,
        workers: Sequence[str],
        internal: Internal = PLAIN,
        tracer: Tracer = NO_TRACER,
        plain: PlainConfig = _NO_PLAIN,
        hosts: Sequence[str] = (),
    ) -> None:
        for address in workers:
            internal.credentials(address)
        self._internal = internal
        dial = partial(dial_grpc, internal=internal)
        self._config = config
        self._listen = listen
        self._health = health_aio.HealthServicer()
        self._health_tasks: set[asyncio.Task[None]] = set()
        self.driver = Driver(Scheduler(config), asyncio.get_running_loop(), on_change=self._publish_health)
        self.metrics = BatcherMetrics()
        self._traces = JobTraces(tracer)
        self._recent = RecentTicks()
        self.links = [self._link(address, dial) for address in dict.fromkeys(workers)]
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=INTERNAL_OPTIONS)
        service = BatcherService(config, self.driver, self.links, self.metrics, self._traces, self._recent)
        batcher_pb2_grpc.add_BatcherServicer_to_server(service, self._server)
        self._news = News()
        self.plain = PlainSide(plain, hosts, internal, self._plain_changed)
        plain_pb2_grpc.add_PlainBatcherServicer_to_server(PlainBatcherService(self.plain, self._news), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def _link(self, address: str, dial: Dial) -> WorkerLink:
        backoff = Backoff(self._config.min_backoff_s, self._config.max_backoff_s, random.Random())
        return WorkerLink(address, self.driver, backoff, dial, self._config.overdue, self._tick_done)

    def _tick_done(self, worker: str, tick: Tick, report: TickReport) -> None:
        self.metrics.tick_done(worker, tick, report)
        self._traces.tick_done(worker, tick, report)
        self._recent.tick_done(worker, tick, report)

    async def start(self) -> None:
        """Listens, and begins to dial the workers.

        Raises:
            BindError: the address is taken.
            ConfigError: it would be listened on in the clear over a network.
        """
        self._publish_health()
        bind(self._server, self._listen, self._internal.server_credentials(self._listen))
        await self._server.start()
        for link in self.links:
            link.start()
        self.plain.start()
        log.info("listening on %s", self._listen)

    async def run(self, shutdown: Shutdown) -> None:
        """Serves until asked to end; then stops admission, drains within the grace, cancels what is left, closes."""
        await self.start()
        try:
            await shutdown.requested.wait()
            log.info("draining %d jobs", self.driver.num_jobs)
            self.driver.drain()
            self.plain.drain()
            all_idle = asyncio.gather(self.driver.idle(), self.plain.driver.idle())
            if not await shutdown.grace(all_idle, self._config.drain_s):
                log.warning("%d jobs are cut short", self.driver.num_jobs + self.plain.driver.num_requests)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Cancels what is left, gives the workers a moment to let go of it, and closes everything."""
        self.driver.cancel_all()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.driver.idle(), _LAST_WORDS_S)
        self.driver.close()
        await asyncio.gather(*(link.close() for link in self.links), self.plain.stop())
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_LAST_WORDS_S)
        await asyncio.gather(*self._health_tasks)

    def _plain_changed(self) -> None:
        self._news.tell()
        self._publish_health()

    def _publish_health(self) -> None:
        """In order: the servicer's lock is fair. Without workers it is the model hosts that count."""
        can_serve = self.driver.can_serve if self.links else self.plain.is_up
        task = asyncio.ensure_future(self._set_health(can_serve))
        self._health_tasks.add(task)
        task.add_done_callback(self._health_tasks.discard)

    async def _set_health(self, can_serve: bool) -> None:
        statuses = health_pb2.HealthCheckResponse.ServingStatus
        status = statuses.Value("SERVING" if can_serve else "NOT_SERVING")
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)
