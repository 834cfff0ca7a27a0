"""ImageService: who may come in, and what is known of those who are."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc.aio
from opentelemetry.trace import Span, SpanKind, Tracer

from steploom_common.errors import InvalidRequest, QueueFull, Unavailable, Violation
from steploom_common.logs import concerns
from steploom_common.tracing import NO_TRACER, context_in
from steploom_gateway.batcher_client import BatcherClient
from steploom_gateway.caller import current_caller
from steploom_gateway.catalogue import Catalogue
from steploom_gateway.config import GatewayConfig
from steploom_gateway.edit import EditJob, Tools
from steploom_gateway.metrics import Metrics
from steploom_gateway.observation import Observation
from steploom_gateway.retries import Retries, same
from steploom_gateway.validation import REQUEST_ID_PROBLEM, check_names, is_request_id, read_edit
from steploom_protos.v1 import image_pb2, image_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_BUSY_RETRY_S = 0.5
_RETRY_KEY = "idempotency-key"  # metadata that no proxy adds by itself: who sends it means it


@dataclass(frozen=True)
class Asked:
    """What a caller wants, whatever the protocol in which it was said."""

    request: image_pb2.EditRequest  # not checked yet; its picture is taken out
    timeout_s: float | None = None  # from the arrival of the call, beside the call's own deadline; None: none


Reader = Callable[[Catalogue], Awaitable[Asked]]


class ImageService(image_pb2_grpc.ImageServiceServicer):
    """Edits pictures by way of a batcher.

    Args:
        config: bounds.
        batcher: what it serves is asked before a request is taken.
        tools: what edits use.
        metrics: what is counted.
        tracer: of the spans of requests.
    """

    def __init__(
        self, config: GatewayConfig, batcher: BatcherClient, tools: Tools, metrics: Metrics, tracer: Tracer = NO_TRACER
    ) -> None:
        self.retries = Retries(config.retry_window_s, config.retry_bytes, metrics.count_repeat)
        self._config = config
        self._batcher = batcher
        self._tools = tools
        self._metrics = metrics
        self._tracer = tracer
        self.num_turned_away = 0  # edits that came while it drained
        self._is_draining = False
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"ImageService({self.retries!r}, open={self._num_open}, draining={self._is_draining})"

    @property
    def num_open(self) -> int:
        """Edits that are open now."""
        return self._num_open

    @property
    def is_ready(self) -> bool:
        """Whether a request that comes now is likely to be taken."""
        return self._batcher.is_serving and not self._is_draining

    async def Edit(self, request: image_pb2.EditRequest, context: Context) -> image_pb2.EditResponse:
        """The last event of an edit that nobody watches."""
        last = image_pb2.EditEvent()
        retry_id = retry_id_of(context, request.request_id)
        async with aclosing(self.run(_as_it_came(request), context, "Edit", False, retry_id)) as events:
            async for event in events:
                last = event
        return last.done

    async def EditStream(self, request: image_pb2.EditRequest, context: Context) -> AsyncGenerator[image_pb2.EditEvent]:
        """The events of an edit, the picture last."""
        retry_id = retry_id_of(context, request.request_id)
        async with aclosing(self.run(_as_it_came(request), context, "EditStream", True, retry_id)) as events:
            async for event in events:
                yield event

    async def run(
        self, read: Reader, context: Context, method: str, is_watched: bool, retry_id: str = ""
    ) -> AsyncGenerator[image_pb2.EditEvent]:
        """The events of one edit, the picture last: what every protocol of the gateway goes through.

        Args:
            read: makes a request of what came in, knowing what is served; its errors are the caller's, and are counted.
            context: the call that is answered.
            method: the name by which it is counted.
            is_watched: whether progress and previews are sent.
            retry_id: by which the same request is known when it comes again; empty: it always runs.

        Raises:
            SteploomError: what was asked for cannot be, or the batcher's refusal or failure.
        """
        arrival_unix_s = time.time()
        deadline_unix_s = _deadline(context)
        with Observation(self._metrics, method, deadline_unix_s, self._span(context, method)) as seen:
            catalogue = self._enter()
            try:
                asked = await read(catalogue)
                if asked.timeout_s is not None:
                    deadline_unix_s = min(deadline_unix_s or math.inf, arrival_unix_s + asked.timeout_s)
                if retry_id != asked.request.request_id and not is_request_id(retry_id):
                    raise InvalidRequest(Violation(_RETRY_KEY, REQUEST_ID_PROBLEM))
                asked.request.request_id = asked.request.request_id or retry_id
                key = None
                if retry_id and self.retries.is_on:
                    key = await same(current_caller().name, retry_id, asked.request)
                edit = self._taken(asked.request, catalogue, seen)
                start = partial(edit.events, deadline_unix_s, is_watched)
                events = start() if key is None else self.retries.events(key, deadline_unix_s, start)
                async with aclosing(events):
                    async for event in events:
                        seen.tier = event.done.tier or seen.tier  # also of one that another call has started
                        yield event
            finally:
                self._leave()

    def drain(self) -> None:
        """Refuses new edits from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Returns when no edit is open."""
        await self._idle.wait()

    def _taken(self, request: image_pb2.EditRequest, catalogue: Catalogue, seen: Observation) -> EditJob:
        order = read_edit(request, self._config, catalogue.model.max_steps)
        request.ClearField("image")  # the order has it now; one copy is enough
        seen.request_id = order.request_id or secrets.token_hex(8)
        concerns(request_id=seen.request_id)
        check_names(order, catalogue)
        seen.tier = order.tier or seen.tier
        return EditJob(self._tools, order, catalogue.model, seen)

    def _span(self, context: Context, method: str) -> Span:
        """Of a call, within the trace that its caller tells of. Never the current one: generators change contexts."""
        attributes = {"rpc.system": "grpc", "rpc.method": method}
        return self._tracer.start_span(
            method, context_in(context.invocation_metadata()), SpanKind.SERVER, attributes=attributes
        )

    def _enter(self) -> Catalogue:
        if self._is_draining:
            self.num_turned_away += 1
            raise Unavailable("the gateway is draining")
        if self._batcher.catalogue is None:
            raise Unavailable("no worker has been up yet")
        if self._num_open >= self._config.max_calls:
            raise QueueFull(f"{self._num_open} edits are open", "gateway.max_calls", _BUSY_RETRY_S)
        self._num_open += 1
        self._idle.clear()
        return self._batcher.catalogue

    def _leave(self) -> None:
        self._num_open -= 1
        if self._num_open == 0:
            self._idle.set()


def _as_it_came(request: image_pb2.EditRequest) -> Reader:
    async def read(_: Catalogue) -> Asked:
        return Asked(request)

    return read


def retry_id_of(context: Context, request_id: str = "") -> str:
    """By what a request is known when it comes again: what the call says, else its own id; empty: it always runs.

    Args:
        context: the call.
        request_id: of the request, where the protocol means it to be its own.
    """
    return next((str(value) for key, value in context.invocation_metadata() or () if key == _RETRY_KEY), request_id)


def _deadline(context: Context) -> float:
    """Seconds since the epoch; 0 where the call has none."""
    remaining_s = context.time_remaining()
    return 0.0 if remaining_s is None else time.time() + remaining_s
