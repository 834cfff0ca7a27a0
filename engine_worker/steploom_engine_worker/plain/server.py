"""The process: binds, loads its models, serves, and ends in order."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from steploom_common.arena import ArenaViews, default_directory
from steploom_common.internal import PLAIN, Internal
from steploom_common.rpc import INTERNAL_OPTIONS, ErrorInterceptor, Shutdown, bind
from steploom_engine_worker.plain.config import HostConfig
from steploom_engine_worker.plain.host import Host
from steploom_engine_worker.plain.loaded import LoadedModel
from steploom_engine_worker.plain.repository import Repository, strangers
from steploom_engine_worker.plain.service import SERVICE, ModelHostService, add_to_server

log = logging.getLogger(__name__)

_POLL_S = 0.05  # between looks at whether batches are open
_CLOSE_S = 10.0  # for models to close, once no batch is open


class HostServer:
    """A model host behind gRPC.

    Args:
        address: to listen on; host:port or unix:/path.
        host_id: unique to the process.
        config: settings.
        internal: how the batcher reaches us.

    Raises:
        NotADirectoryError: the repository is no folder.
    """

    def __init__(self, address: str, host_id: str, config: HostConfig, internal: Internal = PLAIN) -> None:
        self._address = address
        self._host_id = host_id
        self._config = config
        self._internal = internal
        self._repository = Repository(Path(config.repository))
        self._views = ArenaViews(default_directory(_runtime_directory(address)))
        self._health = HealthServicer()

    async def run(self, shutdown: Shutdown) -> None:
        """Serves until the shutdown is asked for, or the host cannot go on. Threads of models may run on afterwards.

        Raises:
            BindError: the address cannot be had.
            ConfigError: it would be listened on in the clear over a network.
            Exception: a device is lost, or the repository cannot be read.
        """
        broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        host = Host(self._repository, self._views, partial(_tell, broken, asyncio.get_running_loop()))
        server = grpc.aio.server(options=INTERNAL_OPTIONS, interceptors=[ErrorInterceptor()])
        add_to_server(ModelHostService(host, self._host_id), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._set_health(False)
        bind(server, self._address, self._internal.server_credentials(self._address))
        await server.start()
        loading = asyncio.create_task(self._load(host, broken))
        try:
            await _first(broken, shutdown)
            log.info("stopping: %s", host)
            loading.cancel()
            host.drain()
            await self._set_health(False)
            if not broken.done():
                await shutdown.grace(_drained(host), self._config.drain_s)
                await shutdown.grace(_ended(host.stop()), _CLOSE_S)
        finally:
            loading.cancel()
            await server.stop(grace=None)
        if broken.done():
            raise broken.result()

    async def _load(self, host: Host, broken: asyncio.Future[BaseException]) -> None:
        try:
            for line in await asyncio.to_thread(strangers, self._repository):
                log.warning("%s", line)
            await host.load_all(self._config.load or None)
        except OSError as error:
            _set(broken, error)
            return
        log.info("ready: %s, listening on %s", host, self._address)
        await self._set_health(True)

    async def _set_health(self, is_serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)


async def _first(broken: asyncio.Future[BaseException], shutdown: Shutdown) -> None:
    """Until the shutdown is asked for, or something is broken."""
    requested = asyncio.create_task(shutdown.requested.wait())
    waits: set[asyncio.Future[Any]] = {broken, requested}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        requested.cancel()


async def _drained(host: Host) -> None:
    while host.num_open:  # noqa: ASYNC110 - the other side is threads
        await asyncio.sleep(_POLL_S)


async def _ended(models: Sequence[LoadedModel]) -> None:
    await asyncio.gather(*(model.ended() for model in models))


def _tell(broken: asyncio.Future[BaseException], loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """From a thread of an instance; nothing where the loop is gone."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, broken, error)


def _set(broken: asyncio.Future[BaseException], error: BaseException) -> None:
    if not broken.done():
        broken.set_result(error)


def _runtime_directory(address: str) -> Path:
    """The folder of the socket; a temporary one where there is none."""
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:")).parent
    return Path(tempfile.gettempdir())
