"""ImageService: who may come in, and what is known of those who are."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc.aio

from steploom_common.errors import Exhausted, Unavailable
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.config import GatewayConfig
from steploom_gateway.edit import EditJob, Tools
from steploom_gateway.metrics import Metrics
from steploom_gateway.observation import Observation
from steploom_gateway.validation import check_names, read_edit
from steploom_protos.v1 import image_pb2, image_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_BUSY_RETRY_S = 0.5


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """Edits pictures by way of a batcher.

    Args:
        config: bounds.
        batcher: what it serves is asked before a request is taken.
        tools: what edits use.
        metrics: what is counted.
    """

    def __init__(self, config: GatewayConfig, batcher: BatcherClient, tools: Tools, metrics: Metrics) -> None:
        self._config = config
        self._batcher = batcher
        self._tools = tools
        self._metrics = metrics
        self._is_draining = False
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"ImageService(open={self._num_open}, draining={self._is_draining})"

    @property
    def num_open(self) -> int:
        """Edits that are open now."""
        return self._num_open

    async def Edit(self, request: image_pb2.EditRequest, context: Context) -> image_pb2.EditResponse:
        """The last event of an edit that nobody watches."""
        last = image_pb2.EditEvent()
        async with aclosing(self._edit(request, context, is_watched=False)) as events:
            async for event in events:
                last = event
        return last.done

    async def EditStream(self, request: image_pb2.EditRequest, context: Context) -> AsyncGenerator[image_pb2.EditEvent]:
        """The events of an edit, the picture last."""
        async with aclosing(self._edit(request, context, is_watched=True)) as events:
            async for event in events:
                yield event

    def drain(self) -> None:
        """Refuses new edits from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Returns when no edit is open."""
        await self._idle.wait()

    async def _edit(
        self, request: image_pb2.EditRequest, context: Context, is_watched: bool
    ) -> AsyncGenerator[image_pb2.EditEvent]:
        deadline_unix_s = _deadline(context)
        with Observation(self._metrics, "EditStream" if is_watched else "Edit", deadline_unix_s) as seen:
            catalogue = self._enter()
            try:
                edit = self._taken(request, catalogue, seen)
                async with aclosing(edit.events(deadline_unix_s, is_watched)) as events:
                    async for event in events:
                        yield event
            finally:
                self._leave()

    def _taken(self, request: image_pb2.EditRequest, catalogue: Catalogue, seen: Observation) -> EditJob:
        order = read_edit(request, self._config, catalogue.model.max_steps)
        request.ClearField("image")  # the order has it now; one copy is enough
        seen.request_id = order.request_id or secrets.token_hex(8)
        check_names(order, catalogue)
        seen.tier = order.tier or seen.tier
        return EditJob(self._tools, order, catalogue.model, seen)

    def _enter(self) -> Catalogue:
        if self._is_draining:
            raise Unavailable("the gateway is draining")
        if self._batcher.catalogue is None:
            raise Unavailable("no worker has been up yet")
        if self._num_open >= self._config.max_calls:
            raise Exhausted(f"{self._num_open} edits are open", "gateway.max_calls", _BUSY_RETRY_S)
        self._num_open += 1
        self._idle.clear()
        return self._batcher.catalogue

    def _leave(self) -> None:
        self._num_open -= 1
        if self._num_open == 0:
            self._idle.set()


def _deadline(context: Context) -> float:
    """Seconds since the epoch; 0 where the call has none."""
    remaining_s = context.time_remaining()
    return 0.0 if remaining_s is None else time.time() + remaining_s
