"""The gateway as a whole: its parts, and the order in which they start and end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry.trace import Tracer

from steploom_batcher.plain.config import PlainConfig
from steploom_common.internal import PLAIN, Internal
from steploom_common.rpc import ErrorInterceptor, Shutdown, bind
from steploom_common.runtime import is_local
from steploom_common.tls import server_tls
from steploom_common.tracing import NO_TRACER
from steploom_gateway.batcher_client import METRICS_TIMEOUT_S, BatcherClient
from steploom_gateway.batcher_metrics import RelayedMetrics
from steploom_gateway.config import GatewayConfig
from steploom_gateway.edit import Tools
from steploom_gateway.gate import Gate
from steploom_gateway.loans import Loans
from steploom_gateway.metrics import Metrics, MetricsServer
from steploom_gateway.oip import service as oip
from steploom_gateway.oip.metrics import TritonMetrics
from steploom_gateway.oip.regions import Regions
from steploom_gateway.plain.inference import PlainInference
from steploom_gateway.plain.own_queue import OwnQueue
from steploom_gateway.plain.runner import Runner
from steploom_gateway.plain.shared_queue import SharedQueue
from steploom_gateway.pool import CodecPool
from steploom_gateway.scrape import Asked
from steploom_gateway.service import ImageService
from steploom_gateway.submission import Submissions
from steploom_gateway.validation import image_bounds
from steploom_protos.inference.grpc_service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from steploom_protos.v1 import image_pb2, image_pb2_grpc

log = logging.getLogger(__name__)

SERVICE_NAME = image_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name

_NO_PLAIN = PlainConfig()
_QUIET_TURNS = 20  # of the loop without a new call, after which none is on its way
_LAST_TURNS = 200  # of the loop at most, while calls come without a pause
_TURN_S = 0.01
_LAST_WORDS_S = 1.0  # for answers that are on their way when the server ends


class Gateway:
    """Start with `start`, end with `drain` and `close`; `close` alone ends it at once.

    Args:
        config: settings; `batcher` must be set.
        arena_dir: folder of the shared memory.
        internal: how the batcher is reached.
        tracer: of the spans of requests.
        plain: the `[plain]` table.
        hosts: addresses of hosts of plain models, where their queue is here.

    Raises:
        ConfigError: the file of tokens is wrong, or the batcher would be reached in the clear over a network.
    """

    def __init__(
        self,
        config: GatewayConfig,
        arena_dir: Path,
        internal: Internal = PLAIN,
        tracer: Tracer = NO_TRACER,
        plain: PlainConfig = _NO_PLAIN,
        hosts: Sequence[str] = (),
    ) -> None:
        self._config = config
        self.metrics = Metrics()
        self.gate = Gate(config.tokens, config.max_calls_per_token, self.metrics.count_refused)
        self._health = health.aio.HealthServicer()
        self.batcher = BatcherClient(config.batcher, config.poll_s, self._set_serving, internal)
        is_local = config.batcher.startswith("unix:")
        self.loans = Loans(arena_dir if is_local else None, config.arena_blocks, self.batcher.cancel, config.settle_s)
        self.codec = CodecPool(config.codec_threads, image_bounds(config), self.metrics.observe_codec)
        self._submissions = Submissions(self.batcher, self.loans)
        tools = Tools(self.codec, self._submissions, config.preview_side)
        self.service = ImageService(config, self.batcher, tools, self.metrics, tracer)
        regions = Regions(config.shared_memory_regions)
        self._changes: set[asyncio.Task[None]] = set()
        self.plain_runner: Runner = (
            SharedQueue(config.batcher, internal, self._plain_changed)
            if plain.queue == "batcher"
            else OwnQueue(plain, hosts, internal, self._plain_changed, arena_dir)
        )
        self.plain = PlainInference(config, self.plain_runner, regions, lambda: self.batcher.has_workers)
        self.inference = oip.InferenceService(
            config, self.batcher, self.service, self.metrics.tally, regions, self.plain
        )
        guards = [ErrorInterceptor(config.unread_s), self.gate]
        self._server = grpc.aio.server(interceptors=guards, options=_server_options(config))
        self._metrics_server: MetricsServer | None = None
        self.port = 0  # once started
        self.metrics.watch_arena(lambda: self.loans.num_used)
        loop = asyncio.get_running_loop()
        plain_counts = Asked(self.plain.counts, METRICS_TIMEOUT_S, loop)
        self.metrics.show_also(TritonMetrics(lambda: self.batcher.catalogue, self.metrics.tally, plain_counts))
        self.metrics.show_also(RelayedMetrics(Asked(self.batcher.metrics, METRICS_TIMEOUT_S, loop)))

    def __repr__(self) -> str:
        return f"Gateway({self._config.listen}, {self.service!r}, {self.batcher!r}, {self.loans!r})"

    @property
    def metrics_port(self) -> int:
        """The port of the metrics; 0 without."""
        return self._metrics_server.port if self._metrics_server else 0

    async def start(self) -> None:
        """Listens.

        Raises:
            BindError: an address cannot be had.
            ConfigError: a file that a setting names is wrong.
        """
        image_pb2_grpc.add_ImageServiceServicer_to_server(self.service, self._server)
        add_GRPCInferenceServiceServicer_to_server(self.inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, oip.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._set_serving(False)
        self.port = bind(self._server, self._config.listen, server_tls(self._config.tls, "gateway.tls"))
        if self._config.local_listen:
            bind(self._server, self._config.local_listen)
        if self._config.metrics_listen:
            self._metrics_server = MetricsServer(self._config.metrics_listen, self.metrics.registry)
        await self._server.start()
        how = "mutual TLS" if self._config.tls.client_ca else "TLS" if self._config.tls else "plain"
        if self._config.tokens and not self._config.tls and not is_local(self._config.listen):
            log.warning(
                "tokens travel in the clear: set gateway.tls, or have TLS ended in front of %s", self._config.listen
            )
        metrics = self._config.metrics_listen or "no port"
        log.info("listening on %s (%s), metrics on %s", self._config.listen, how, metrics)

    async def drain(self, shutdown: Shutdown) -> None:
        """Refuses new edits and lets the open ones end, within the grace; cancels those that are left."""
        await self._health.enter_graceful_shutdown()
        self.service.drain()
        self.plain.drain()
        log.info("draining: %d open", self.service.num_open + self.plain.num_open)
        all_idle = asyncio.gather(self.service.wait_idle(), self.plain.wait_idle())
        if await shutdown.grace(all_idle, self._config.drain_s):
            await self._take_last_calls()
            return
        log.warning("%d requests are cut off", self.service.num_open + self.plain.num_open)
        self._submissions.end()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.service.wait_idle(), _LAST_WORDS_S)

    async def _take_last_calls(self) -> None:
        """Calls that have come to gRPC and not to us yet are refused like the others.

        With gRPC's server they would end with CANCELLED, as if their callers had wished it. Turns are counted and not
        time: a machine that stalls takes time, and leaves turns.
        """
        quiet, seen = 0, self.service.num_turned_away
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(_TURN_S)
            quiet = quiet + 1 if seen == self.service.num_turned_away else 0
            seen = self.service.num_turned_away
            if quiet == _QUIET_TURNS:
                return

    async def close(self) -> None:
        """Ends everything that is left, and removes the shared memory."""
        await self._server.stop(_LAST_WORDS_S)
        self.service.retries.close()
        await self.loans.close()
        await self.plain_runner.close()
        await asyncio.gather(*self._changes)
        await self.batcher.close()
        await asyncio.to_thread(self.codec.close)
        if self._metrics_server:
            await asyncio.to_thread(self._metrics_server.close)

    def _plain_changed(self) -> None:
        task = asyncio.create_task(self._set_serving(self.batcher.is_serving))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _set_serving(self, is_serving: bool) -> None:
        is_serving = is_serving or (self.plain.is_alone and self.plain.is_ready)
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE_NAME, oip.SERVICE_NAME):
            await self._health.set(name, status.SERVING if is_serving else status.NOT_SERVING)
        self.metrics.set_batcher_up(is_serving)


def _server_options(config: GatewayConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
