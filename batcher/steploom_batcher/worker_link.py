"""The connection to one worker's address: kept up for ever, each loss answered by a new try after a back-off."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count

import grpc
import grpc.aio

from steploom_batcher.conversation import Conversation, Listener, Session
from steploom_batcher.device_use import DeviceUse
from steploom_batcher.messages import Command, Ready, Report, TickReport
from steploom_batcher.types import Tick
from steploom_batcher.worker_wire import ProtocolError, commands_to_wire, ready_from_wire, report_from_wire
from steploom_common.internal import PLAIN, Internal
from steploom_common.patience import Overdue
from steploom_protos.worker.v1 import worker_pb2 as pb
from steploom_protos.worker.v1 import worker_pb2_grpc

log = logging.getLogger(__name__)


Dial = Callable[[str], AbstractAsyncContextManager[Session]]
"""Opens a session to an address. Raises ConnectionError with a reason that a person can read."""


class Backoff:
    """Pauses between tries: doubling from `min_s` to `max_s`, each shortened by up to a half at random."""

    def __init__(self, min_s: float, max_s: float, rng: random.Random) -> None:
        self._min_s, self._max_s = min_s, max(min_s, max_s)
        self._rng = rng
        self._failures = 0

    def reset(self) -> None:
        """After a success."""
        self._failures = 0

    def next_s(self) -> float:
        """The pause after one more failure."""
        longest = min(self._max_s, self._min_s * 2.0 ** min(self._failures, 62))
        self._failures += 1
        return longest * self._rng.uniform(0.5, 1.0)


_OVERDUE = Overdue()


class WorkerLink:
    """Dials an address again and again until it is closed. While the worker there leaves, its successor is dialled too.

    Args:
        address: of the worker; also its name towards the scheduler, so that a restarted process is the same worker.
        listener: hears of everything.
        backoff: pauses between tries.
        dial: opens a session.
        overdue: when a worker that owes a tick's end counts as lost.
        on_tick_done: hears of each tick that is back, with the address.
    """

    def __init__(
        self,
        address: str,
        listener: Listener,
        backoff: Backoff,
        dial: Dial,
        overdue: Overdue = _OVERDUE,
        on_tick_done: Callable[[str, Tick, TickReport], None] | None = None,
    ) -> None:
        self.address = address
        self.last_error = "not reached yet"  # empty while up
        self.use = DeviceUse()  # since the link was made, whatever process answered
        self._listener = listener
        self._backoff = backoff
        self._dial = dial
        self._overdue = overdue
        self._on_tick_done = on_tick_done
        self._live: list[Conversation] = []  # the latest last; those before it leave
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"WorkerLink({self.address}, {'up' if self.is_up else self.last_error})"

    @property
    def is_up(self) -> bool:
        """The worker takes ticks."""
        return bool(self._live)

    @property
    def is_leaving(self) -> bool:
        """It takes no more jobs, and nobody has taken its place yet."""
        return bool(self._live) and self._live[-1].is_leaving

    @property
    def ready(self) -> Ready | None:
        """What the latest process has said of itself; None: none is up."""
        return self._live[-1].ready if self._live else None

    @property
    def name(self) -> str:
        """Of the latest process, towards the scheduler."""
        return self._live[-1].name if self._live else self.address

    @property
    def num_owed(self) -> int:
        """Ticks that are sent and without an answer."""
        return sum(conversation.num_owed for conversation in self._live)

    def start(self) -> None:
        """Begins to dial."""
        self._task = asyncio.create_task(self._keep_up(), name=f"link {self.address}")

    async def close(self) -> None:
        """Ends the streams and the tries."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _keep_up(self) -> None:
        sessions: set[asyncio.Task[str]] = set()
        try:
            while True:
                leaving = asyncio.Event()
                session = asyncio.create_task(self._run_session(leaving), name=f"session {self.address}")
                sessions.add(session)
                session.add_done_callback(sessions.discard)
                if await _is_first(leaving, session):
                    continue  # whoever takes its place is awaited beside it
                error = session.result()
                if error != self.last_error:  # a loss is the listener's to log, one more try that fails is no news
                    log.warning("worker %s cannot be reached: %s", self.address, error)
                if not self._live:
                    self.last_error = error
                await asyncio.sleep(self._backoff.next_s())
        finally:
            for session in sessions:
                session.cancel()
            await asyncio.gather(*sessions, return_exceptions=True)

    async def _run_session(self, leaving: asyncio.Event) -> str:
        """One session, from dialling to its loss; gives why it ended. Sets `leaving` when the worker takes no more."""
        conversation, error = None, "closed"
        try:
            async with self._dial(self.address) as session:
                conversation = self._greet(session, leaving)
                await conversation.run()
                error = "it has left"
        except (ConnectionError, ProtocolError, ValueError) as problem:
            error = str(problem)
        except Exception as problem:
            log.exception("worker %s: the session is given up", self.address)
            error = repr(problem)
        finally:
            if conversation is not None:
                self._live.remove(conversation)
                self.last_error = "" if self._live else error
                self._listener.worker_down(conversation.name, error)
        return error

    def _tick_done(self, tick: Tick, report: TickReport) -> None:
        if self._on_tick_done is not None:
            self._on_tick_done(self.address, tick, report)

    def _greet(self, session: Session, leaving: asyncio.Event) -> Conversation:
        """Raises:
        ValueError: the worker cannot be used.
        """
        used = {conversation.name for conversation in self._live}
        names = (f"{self.address}+{number}" if number else self.address for number in count())
        name = next(name for name in names if name not in used)
        conversation = Conversation(
            name, session, self._listener, self._overdue, self.use, self._tick_done, leaving
        )  # fmt: skip
        self.use.reconnected()
        self._listener.worker_up(name, session.ready, conversation, self.address)
        self._live.append(conversation)
        self.last_error = ""
        self._backoff.reset()
        return conversation


async def _is_first(event: asyncio.Event, task: asyncio.Task[str]) -> bool:
    """Whether an event is set before a task is done."""
    wait = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({wait, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        wait.cancel()
    return event.is_set() and not task.done()


class GrpcSession:
    """A `Worker/Drive` stream."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.Command, pb.Report], ready: Ready) -> None:
        self.ready = ready
        self._call = call

    async def write(self, commands: Sequence[Command]) -> None:
        """See `Session`."""
        try:
            await self._call.write(commands_to_wire(commands))
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(_words(error)) from error
        except asyncio.InvalidStateError:
            raise ConnectionError("the stream has ended") from None

    async def read(self) -> Report:
        """See `Session`."""
        try:
            report = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(_words(error)) from error
        if report is grpc.aio.EOF:
            raise ConnectionError("the worker closed the stream")
        assert isinstance(report, pb.Report)
        return report_from_wire(report)


@asynccontextmanager
async def dial_grpc(address: str, internal: Internal = PLAIN) -> AsyncIterator[Session]:
    """Opens the stream, with the certificates that there are now, and waits for the worker's first words."""
    # no shared subchannels: gRPC's own back-off of the last try must not delay this one
    async with internal.channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = worker_pb2_grpc.WorkerStub(channel).Drive()
        try:
            try:
                first = await call.read()
            except grpc.aio.AioRpcError as error:
                raise ConnectionError(_words(error)) from error
            if first is grpc.aio.EOF:
                raise ConnectionError("the worker closed the stream before it was ready")
            yield GrpcSession(call, ready_from_wire(first))  # type: ignore[arg-type]
        finally:
            call.cancel()


def _words(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
