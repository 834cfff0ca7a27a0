"""The plain models' side of a service: scheduler, driver and links to hosts, put together and taken apart.

It runs where the queue is: in a gateway, or in a batcher that several gateways share.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar

from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.driver import PlainDriver
from steploom_batcher.plain.host_link import HostLink
from steploom_batcher.plain.scheduler import PlainScheduler
from steploom_batcher.worker_link import Backoff
from steploom_common.errors import Exists, Unavailable
from steploom_common.internal import Internal
from steploom_protos.worker.v1 import plain_pb2 as pb
from steploom_protos.worker.v1 import plain_pb2_grpc

Answer = TypeVar("Answer")
Stub: TypeAlias = "plain_pb2_grpc.ModelHostAsyncStub"

_UNLOADING = "it is being unloaded"  # a reason
_NEWS_S = 5.0  # for a host to tell that it serves a model no more, once it has unloaded it
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 1.0


class PlainSide:
    """Make it on a running event loop.

    Args:
        config: the `[plain]` table.
        hosts: addresses to dial; none: there are no plain models, and nothing is done.
        internal: how hosts are reached.
        on_change: told after each change of what is served.

    Raises:
        ConfigError: a host would be reached in the clear over a network.
    """

    def __init__(
        self, config: PlainConfig, hosts: Sequence[str], internal: Internal, on_change: Callable[[], None]
    ) -> None:
        for address in hosts:
            internal.credentials(address)
        self.driver = PlainDriver(PlainScheduler(config), asyncio.get_running_loop())
        self.is_draining = False
        self._on_change = on_change
        self._drain_s = config.drain_s
        self._unloading: dict[str, asyncio.Task[pb.UnloadResponse]] = {}  # by name of the model
        self._changed = asyncio.Event()  # set, and replaced, when a host serves something else
        self.links = [
            HostLink(
                address,
                self.driver,
                Backoff(_MIN_BACKOFF_S, _MAX_BACKOFF_S, random.Random()),
                internal,
                config.batch_timeout_s,
                self._host_changed,
            )
            for address in dict.fromkeys(hosts)
        ]

    def __repr__(self) -> str:
        return f"PlainSide({self.driver!r}, {self.links!r})"

    @property
    def is_up(self) -> bool:
        """A host is up, and requests are taken."""
        return not self.is_draining and any(link.is_up for link in self.links)

    @property
    def models(self) -> list[pb.HostedModel]:
        """What all hosts serve, by name: READY where one does and it stays, with the instances of all."""
        merged: dict[str, pb.HostedModel] = {}
        for link in self.links:
            for name, model in link.models.items():
                known = merged.get(name)
                if known is None or (known.state != model.state == pb.MODEL_STATE_READY):
                    merged[name] = pb.HostedModel()
                    merged[name].CopyFrom(model)
                elif known.state == model.state == pb.MODEL_STATE_READY:
                    known.instances += model.instances
        for name in self._unloading:
            if name in merged:
                merged[name].state, merged[name].reason = pb.MODEL_STATE_UNLOADING, _UNLOADING
        return [merged[name] for name in sorted(merged)]

    def newest(self, name: str) -> int:
        """The newest version of a model that a host serves; 0: none does."""
        return max((version for link in self.links for version in _versions(link, name)), default=0)

    def start(self) -> None:
        """Begins to dial."""
        for link in self.links:
            link.start()

    def drain(self) -> None:
        """Takes no requests any more."""
        self.is_draining = True
        self.driver.drain()
        self._on_change()

    async def stop(self) -> None:
        """Ends what is left, and the links."""
        for task in self._unloading.values():
            task.cancel()
        self.driver.cancel_all()
        await asyncio.sleep(0)
        await asyncio.gather(*(link.close() for link in self.links))
        self.driver.close()

    async def load(self, request: pb.LoadRequest) -> pb.LoadResponse:
        """On every host.

        Raises:
            Exists: it is being unloaded.
            Unavailable: none is up.
            grpc.aio.AioRpcError: one refuses.
        """
        self._check_rests(request.name)
        return (await self._on_all(lambda stub: stub.Load(request)))[0]

    async def unload(self, request: pb.UnloadRequest) -> pb.UnloadResponse:
        """On every host, once what waits has run, or `drain_s` has passed; it goes on where its caller gives up.

        New requests are refused meanwhile. Raises as `load`.
        """
        name = request.name
        self._check_rests(name)
        self._stubs()
        task = self._unloading[name] = asyncio.create_task(self._unload(request), name=f"unload {name}")
        task.add_done_callback(lambda _: self._end_unload(name))
        return await asyncio.shield(task)

    async def index(self) -> pb.IndexResponse:
        """Of the first host that is up: all have the same models. Raises as `load`."""
        index = await self._stubs()[0].Index(pb.IndexRequest())
        for entry in index.entries:
            if entry.name in self._unloading and entry.state == pb.MODEL_STATE_READY:
                entry.state, entry.reason = pb.MODEL_STATE_UNLOADING, _UNLOADING
        return index

    async def _unload(self, request: pb.UnloadRequest) -> pb.UnloadResponse:
        is_idle = self.driver.close_model(request.name)
        self._on_change()
        with suppress(TimeoutError):
            await asyncio.wait_for(is_idle.wait(), self._drain_s)
        answer = (await self._on_all(lambda stub: stub.Unload(request)))[0]
        with suppress(TimeoutError):  # the answer and the news come by different streams
            async with asyncio.timeout(_NEWS_S):
                while self._is_served(request.name):
                    await self._changed.wait()
        return answer

    def _end_unload(self, name: str) -> None:
        task = self._unloading.pop(name)
        if not task.cancelled():
            task.exception()  # its caller may have gone
        self.driver.reopen_model(name)
        self._on_change()

    def _check_rests(self, name: str) -> None:
        if name in self._unloading:
            raise Exists(f"model {name!r} is being unloaded")

    def _is_served(self, name: str) -> bool:
        return any(link.is_up and _versions(link, name) for link in self.links)

    def _host_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change()

    def _stubs(self) -> list[Stub]:
        stubs = [link.stub for link in self.links if link.stub is not None]
        if not stubs:
            raise Unavailable("no model host is up" if self.links else "no model host is configured")
        return stubs

    async def _on_all(self, call: Callable[[Stub], Awaitable[Answer]]) -> list[Answer]:
        return list(await asyncio.gather(*(call(stub) for stub in self._stubs())))


def _versions(link: HostLink, name: str) -> Sequence[int]:
    model = link.models.get(name)
    return model.versions if model is not None and model.state == pb.MODEL_STATE_READY else ()
