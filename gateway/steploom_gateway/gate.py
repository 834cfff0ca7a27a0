"""Who may come in, in front of every service of the port: tokens, quotas, and calls that are for administrators alone.

A method is protected unless it is named here as open, so that a service which is added later is closed to strangers.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from enum import Enum
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio

from steploom_common.errors import Exhausted, PermissionDenied, SteploomError, Unauthenticated
from steploom_common.logs import about
from steploom_common.reread import Reread
from steploom_gateway.caller import Caller, answer_for
from steploom_gateway.quota import Limits, Quota
from steploom_gateway.tokens import TokenConfig, Tokens, read_tokens, recognised

log = logging.getLogger("steploom_gateway.access")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_OIP = "/inference.GRPCInferenceService/"
_SCHEME = "bearer "


class Door(Enum):
    """What a method asks of its callers."""

    OPEN = "nothing: probes carry no token, and learn no more than whether there is service"
    KNOWN = "a token"
    COUNTED = "a token and a place in its quota"
    EACH = "a token; each message takes a place in its quota where it is answered, and its refusal is an answer"
    ADMIN = "a token of an administrator"


_DOORS: dict[str, Door] = {
    f"{_OIP}ModelStreamInfer": Door.EACH,
    **{f"{_OIP}{name}": Door.OPEN for name in ("ServerLive", "ServerReady")},
    **{
        f"{_OIP}{name}": Door.KNOWN
        for name in (
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
        )
    },
    **{
        f"{_OIP}{name}": Door.ADMIN
        for name in (
            *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
            *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
            *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
        )
    },
}
_DOORS_OF_SERVICES = {"/grpc.health.v1.Health/": Door.OPEN, "/grpc.reflection.": Door.KNOWN}


def door_of(method: str) -> Door:
    """What a method, as /package.Service/Method, asks of its callers."""
    by_service = (door for prefix, door in _DOORS_OF_SERVICES.items() if method.startswith(prefix))
    return _DOORS.get(method) or next(by_service, Door.COUNTED)


class Gate(grpc.aio.ServerInterceptor):
    """Stands inside of `ErrorInterceptor`. Without a file of tokens everybody may do everything.

    A call that is refused by its token is refused before its message is read.

    Args:
        path: of the file of tokens; empty: none.
        max_open: requests that one token may have open, where its entry says nothing else; 0: no bound.
        on_refused: told the cause of each refusal.
        clock: seconds, monotonic.

    Raises:
        ConfigError: the file is wrong now.
    """

    def __init__(
        self,
        path: str,
        max_open: int,
        on_refused: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = Reread([path], lambda: read_tokens(path)) if path else None
        self._max_open = max_open
        self._on_refused = on_refused
        self._clock = clock
        self._known: Tokens = {}  # that the quotas are of
        self._quotas: dict[str, Quota] = {}

    def __repr__(self) -> str:
        return f"Gate({self._tokens}, {list(self._quotas.values())})"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        door = door_of(method)
        if handler is None or self._tokens is None or door is Door.OPEN:
            return handler
        try:
            caller, quota = self._identified(handler_call_details.invocation_metadata, method, door)
        except SteploomError as error:
            self._refused(method, "-", error)
            return _refusing(error)
        return _Guarded(self, method, caller, quota if door is Door.COUNTED else None).around(handler)

    @contextmanager
    def entered(self, method: str, name: str, quota: Quota) -> Iterator[None]:
        """Holds a place of a token's quota.

        Raises:
            Exhausted: there is none.
        """
        try:
            quota.enter(self._clock())
        except Exhausted as error:
            self._refused(method, name, error)
            raise
        try:
            yield
        finally:
            quota.leave()

    async def counted(self, requests: AsyncIterator[Any], method: str, name: str, quota: Quota) -> AsyncIterator[Any]:
        """The messages of a stream behind the first; each counts by time as a call does."""
        is_first = True
        async for request in requests:
            if not is_first:
                try:
                    quota.take(self._clock())
                except Exhausted as error:
                    self._refused(method, name, error)
                    raise
            is_first = False
            yield request

    def _identified(self, metadata: Any, method: str, door: Door) -> tuple[Caller, Quota]:
        assert self._tokens
        shown = [value for key, value in metadata or () if key == "authorization"]
        if not shown:
            raise Unauthenticated("no token: send the metadata `authorization: Bearer TOKEN`")
        if len(shown) > 1 or not isinstance(shown[0], str) or not shown[0].lower().startswith(_SCHEME):
            raise Unauthenticated("the metadata `authorization` must come once, as `Bearer TOKEN`")
        tokens = self._tokens.current()
        name = recognised(shown[0][len(_SCHEME) :].strip(), tokens)
        entry = tokens[name]
        if door is Door.ADMIN and not entry.admin:
            raise PermissionDenied(f"token {name!r} is no administrator's")
        quota = self._quota(name, tokens)
        place = partial(self.entered, method, name, quota) if door is Door.EACH else nullcontext
        return Caller(name, entry.tiers, entry.admin, place), quota

    def _quota(self, name: str, tokens: Tokens) -> Quota:
        """That of a token, with the bounds that the file gives it now."""
        now = self._clock()
        if tokens is not self._known:
            self._known = tokens
            self._quotas = {old: quota for old, quota in self._quotas.items() if old in tokens}
            for old, quota in self._quotas.items():
                quota.change(self._limits(tokens[old]), now)
        if name not in self._quotas:
            self._quotas[name] = Quota(f"token:{name}", self._limits(tokens[name]), now)
        return self._quotas[name]

    def _limits(self, entry: TokenConfig) -> Limits:
        return Limits(entry.rate, entry.burst, entry.concurrency or self._max_open)

    def _refused(self, method: str, name: str, error: SteploomError) -> None:
        cause = error.subject.rpartition("/")[2] if isinstance(error, Exhausted) else error.status.name.lower()
        self._on_refused(cause)
        status = error.status.name
        extra = about(method=method, token="" if name == "-" else name, status=status, cause=cause)
        log.info("%s token=%s status=%s cause=%s", method, name, status, cause, extra=extra)


class _Guarded:
    """The handlers of one call that its token lets in.

    Args:
        gate: it is of.
        method: that is called.
        caller: who calls.
        quota: that the call counts in; None: none.
    """

    def __init__(self, gate: Gate, method: str, caller: Caller, quota: Quota | None) -> None:
        self._gate = gate
        self._method = method
        self._caller = caller
        self._quota = quota

    def around(self, handler: Handler) -> Handler:
        """The handler behind the gate."""
        codec = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._answer(handler.unary_unary), *codec)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream), *codec)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(self._answer(handler.stream_unary, is_streamed=True), *codec)
        return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, is_streamed=True), *codec)

    def _answer(self, behaviour: Any, is_streamed: bool = False) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            with self._entered():
                return await behaviour(self._counted(request, is_streamed), context)

        return answer

    def _stream(self, behaviour: Any, is_streamed: bool = False) -> Any:
        if not inspect.isasyncgenfunction(behaviour):  # it writes to the context itself
            return self._answer(behaviour, is_streamed)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._entered():
                async with aclosing(behaviour(self._counted(request, is_streamed), context)) as responses:
                    async for response in responses:
                        yield response

        return stream

    @contextmanager
    def _entered(self) -> Iterator[None]:
        answer_for(self._caller)
        if self._quota is None:
            yield
            return
        with self._gate.entered(self._method, self._caller.name, self._quota):
            yield

    def _counted(self, request: Any, is_streamed: bool) -> Any:
        if not is_streamed or self._quota is None:
            return request
        return self._gate.counted(request, self._method, self._caller.name, self._quota)


def _refusing(error: SteploomError) -> Handler:
    """Ends a call of any kind with `error`; as a stream in both directions, so that nothing of it is read before."""

    async def refuse(requests: Any, context: Any) -> None:
        del requests, context
        raise error

    return grpc.stream_stream_rpc_method_handler(refuse)
