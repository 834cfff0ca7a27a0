"""A queue of this gateway's own: requests go from here to the model hosts, in batches and without a process between."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from steploom_batcher.plain.causes import refusal_error
from steploom_batcher.plain.config import PlainConfig
from steploom_batcher.plain.side import PlainSide
from steploom_batcher.plain.statistics_wire import statistics_to_wire
from steploom_batcher.plain.types import Item, Refused, Version
from steploom_common.internal import Internal
from steploom_gateway.plain.model import PlainModel
from steploom_gateway.plain.request import PlainOrder
from steploom_gateway.plain.runner import updated
from steploom_gateway.plain.tensor_memory import Loan, TensorMemory
from steploom_protos.batcher.v1 import plain_pb2 as batcher_pb
from steploom_protos.worker.v1 import plain_pb2 as host_pb


class OwnQueue:
    """See `runner.Runner`.

    Args:
        config: the `[plain]` table.
        hosts: addresses of model hosts; none: there are no plain models.
        internal: how they are reached.
        on_change: told after each change of what is served.
        directory: of shared memory for large tensors, where the hosts are on this machine.

    Raises:
        ConfigError: a host would be reached in the clear over a network.
    """

    def __init__(
        self,
        config: PlainConfig,
        hosts: Sequence[str],
        internal: Internal,
        on_change: Callable[[], None],
        directory: Path,
    ) -> None:
        is_local = all(address.startswith("unix:") for address in hosts)
        self.memory = TensorMemory(
            directory if is_local else None, config.shared_memory_bytes, config.shared_memory_from_bytes
        )
        self.models: dict[str, PlainModel] = {}
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._side = PlainSide(config, hosts, internal, self._changed)
        self._driver = self._side.driver
        self._side.start()

    def __repr__(self) -> str:
        return f"OwnQueue({self._side!r})"

    @property
    def is_up(self) -> bool:
        """See `Runner`."""
        return bool(self._side.links) and not self._side.is_draining

    @property
    def num_open(self) -> int:
        """See `Runner`."""
        return self._driver.num_requests

    async def run(self, model: str, version: int, order: PlainOrder, left_s: float) -> host_pb.ItemDone:
        """See `Runner`."""
        layout = order.layout
        item = Item(
            item_id=0,
            model=Version(model, version),
            rows=layout.rows,
            key=layout.key,
            priority=order.priority,
            timeout_s=order.timeout_us / 1e6,
            deadline=self._loop.time() + left_s if left_s else math.inf,
        )
        future: asyncio.Future[host_pb.ItemDone] = self._loop.create_future()

        loan = self.memory.borrow(order.num_bytes, len(layout.shapes))

        def answer(end: host_pb.ItemDone | Refused) -> None:
            if loan is not None:  # no host holds it any more
                if not (isinstance(end, Refused) or future.done()):
                    _fetch(end, loan)
                loan.give_back()
            if future.done():  # its caller has gone
                return
            if isinstance(end, Refused):
                future.set_exception(refusal_error(end))
            else:
                future.set_result(end)

        payload = host_pb.Item()
        order.write(payload, loan)
        item_id = self._driver.submit(item, payload, answer)
        try:
            return await future
        except asyncio.CancelledError:
            self._driver.cancel(item_id)
            raise

    async def statistics(self) -> batcher_pb.PlainStatistics:
        """See `Runner`."""
        return statistics_to_wire(self._driver)

    async def load(self, request: host_pb.LoadRequest) -> None:
        """See `Runner`."""
        await self._side.load(request)

    async def unload(self, request: host_pb.UnloadRequest) -> None:
        """See `Runner`."""
        await self._side.unload(request)

    async def index(self) -> host_pb.IndexResponse:
        """See `Runner`."""
        return await self._side.index()

    def drain(self) -> None:
        """See `Runner`."""
        self._side.drain()

    async def close(self) -> None:
        """See `Runner`."""
        await self._side.stop()
        self.memory.close()

    def _changed(self) -> None:
        self.models = updated(self.models, self._side.models)
        self._on_change()


def _fetch(done: host_pb.ItemDone, loan: Loan) -> None:
    """Outputs that lie in shared memory come into the answer."""
    for tensor in done.outputs:
        if tensor.HasField("region"):
            tensor.data = loan.get(tensor.region)
            tensor.ClearField("region")
