"""The plain models' side of a batcher: scheduler, driver, links to hosts and service, put together and taken apart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import grpc.aio

from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.driver import PlainDriver
from steploom_batcher.plain.host_link import HostLink
from steploom_batcher.plain.scheduler import PlainScheduler
from steploom_batcher.plain.service import News, PlainBatcherService
from steploom_batcher.worker_link import Backoff
from steploom_common.internal import Internal
from steploom_protos.batcher.v1 import plain_pb2_grpc

_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 1.0


class PlainSide:
    """Make it on a running event loop.

    Args:
        config: the `[plain]` table.
        hosts: addresses to dial; none: there are no plain models, and nothing is done.
        internal: how hosts are reached.
        has_workers: whether there are engine workers beside them.

    Raises:
        ConfigError: a host would be reached in the clear over a network.
    """

    def __init__(self, config: PlainConfig, hosts: Sequence[str], internal: Internal, has_workers: bool) -> None:
        for address in hosts:
            internal.credentials(address)
        self.driver = PlainDriver(PlainScheduler(config), asyncio.get_running_loop())
        self._news = News()
        self.links = [
            HostLink(
                address,
                self.driver,
                Backoff(_MIN_BACKOFF_S, _MAX_BACKOFF_S, random.Random()),
                internal,
                config.batch_timeout_s,
                self._news.tell,
            )
            for address in dict.fromkeys(hosts)
        ]
        self.service = PlainBatcherService(self.driver, self.links, self._news, has_workers)

    def __repr__(self) -> str:
        return f"PlainSide({self.driver!r}, {self.links!r})"

    @property
    def can_serve(self) -> bool:
        """A host is up."""
        return any(link.is_up for link in self.links)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves it with the rest."""
        plain_pb2_grpc.add_PlainBatcherServicer_to_server(self.service, server)

    def start(self) -> None:
        """Begins to dial."""
        for link in self.links:
            link.start()

    def drain(self) -> None:
        """Takes no requests any more."""
        self.service.drain()

    async def stop(self) -> None:
        """Ends what is left, and the links."""
        self.driver.cancel_all()
        await asyncio.sleep(0)
        await asyncio.gather(*(link.close() for link in self.links))
        self.driver.close()
