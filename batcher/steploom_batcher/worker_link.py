"""The connection to one worker's address: kept up for ever, each loss answered by a new try after a back-off."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Protocol

import grpc
import grpc.aio

from steploom_batcher.device_use import DeviceUse
from steploom_batcher.messages import Command, Prepared, Ready, TickReport
from steploom_batcher.roster import Link
from steploom_batcher.types import Tick
from steploom_batcher.worker_wire import (
    ProtocolError,
    commands_to_wire,
    prepared_from_wire,
    ready_from_wire,
    report_from_wire,
)
from steploom_common.internal import PLAIN, Internal
from steploom_protos.worker.v1 import worker_pb2 as pb
from steploom_protos.worker.v1 import worker_pb2_grpc

log = logging.getLogger(__name__)


_MAX_COMMANDS = 16  # in a message: pictures may travel in them, and a message has a bound


class Listener(Protocol):
    """Who is told what happens on a link: the driver."""

    def worker_up(self, name: str, ready: Ready, link: Link) -> None:
        """The worker can take ticks. Raises ValueError where it cannot be used."""

    def worker_down(self, name: str, error: str) -> None:
        """It is lost."""

    def report(self, name: str, report: TickReport) -> None:
        """A tick is done."""

    def prepared(self, name: str, prepared: Prepared) -> None:
        """Ticks of the worker cost less from now on."""


class Session(Protocol):
    """One stream to a worker, from its first answer to its loss; both verbs then raise ConnectionError."""

    ready: Ready

    async def write(self, commands: Sequence[Command]) -> None:
        """Sends one message; returns when the transport takes more."""

    async def read(self) -> TickReport | Prepared:
        """The next report."""


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


class WorkerLink:
    """Dials an address again and again until it is closed.

    Args:
        address: of the worker; also its name towards the scheduler, so that a restarted process is the same worker.
        listener: hears of everything.
        backoff: pauses between tries.
        dial: opens a session.
        tick_timeout_s: a worker that owes a tick's end for longer counts as lost.
        on_tick_done: hears of each tick that is back, with the address.
    """

    def __init__(
        self,
        address: str,
        listener: Listener,
        backoff: Backoff,
        dial: Dial,
        tick_timeout_s: float = 120.0,
        on_tick_done: Callable[[str, Tick, TickReport], None] | None = None,
    ) -> None:
        self.address = address
        self.last_error = "not reached yet"  # empty while up
        self.ready: Ready | None = None  # while up
        self._listener = listener
        self._backoff = backoff
        self._dial = dial
        self._tick_timeout_s = tick_timeout_s
        self._on_tick_done = on_tick_done
        self.use = DeviceUse()  # since the link was made, whatever process answered
        self._owed: dict[int, Tick] = {}  # sent, and without an answer
        self._owed_since = 0.0  # when the oldest of them may have begun
        self._outbox: deque[Command] = deque()
        self._outbox_filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"WorkerLink({self.address}, {'up' if self.is_up else self.last_error})"

    @property
    def is_up(self) -> bool:
        """The worker takes ticks."""
        return self.ready is not None

    def start(self) -> None:
        """Begins to dial."""
        self._task = asyncio.create_task(self._keep_up(), name=f"link {self.address}")

    async def close(self) -> None:
        """Ends the stream and the tries."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def send(self, commands: list[Command]) -> None:
        """Puts commands in line for the one writer."""
        if not self._owed:
            self._owed_since = asyncio.get_running_loop().time()
        self._owed |= {command.tick_id: command for command in commands if isinstance(command, Tick)}
        self._outbox += commands
        self._outbox_filled.set()

    async def _keep_up(self) -> None:
        while True:
            error = await self._run_session()
            if error != self.last_error:  # a loss is the listener's to log, a try that fails like the last is no news
                log.warning("worker %s cannot be reached: %s", self.address, error)
            self.last_error = error
            await asyncio.sleep(self._backoff.next_s())

    async def _run_session(self) -> str:
        """One session, from dialling to its loss; returns why it ended."""
        error = "closed"
        try:
            async with self._dial(self.address) as session:
                self._outbox.clear()
                self._owed.clear()
                self.use.reconnected()
                self._listener.worker_up(self.address, session.ready, self)
                self.ready, self.last_error = session.ready, ""
                self._backoff.reset()
                await self._talk(session)
        except (ConnectionError, ProtocolError, ValueError) as problem:
            error = str(problem)
        except Exception as problem:
            log.exception("worker %s: the session is given up", self.address)
            error = repr(problem)
        finally:
            if self.ready is not None:
                self.ready, self.last_error = None, error
                self._listener.worker_down(self.address, error)
        return error

    async def _talk(self, session: Session) -> None:
        """Reads, writes and watches until one of them raises."""
        tasks = [
            asyncio.create_task(part(session), name=self.address) for part in (self._read, self._write, self._watch)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, session: Session) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            report = await session.read()
            self._owed_since = clock()
            if isinstance(report, Prepared):
                if self.ready is not None:
                    self.ready = replace(self.ready, progress=report.progress, memory=report.memory)
                self._listener.prepared(self.address, report)
                continue
            tick = self._owed.pop(report.tick_id, None)
            if tick is not None:
                self.use.add(tick, report)
                if self._on_tick_done is not None:
                    self._on_tick_done(self.address, tick, report)
            self._listener.report(self.address, report)

    async def _watch(self, _: Session) -> None:
        """Keepalive sees a dead process; this sees one whose driving thread hangs."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._tick_timeout_s / 4)
            if self._owed and clock() - self._owed_since > self._tick_timeout_s:
                raise ConnectionError(f"no answer to a tick for {self._tick_timeout_s:g} s")

    async def _write(self, session: Session) -> None:
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                await session.write([self._outbox.popleft() for _ in range(min(len(self._outbox), _MAX_COMMANDS))])


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

    async def read(self) -> TickReport | Prepared:
        """See `Session`."""
        try:
            report = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(_words(error)) from error
        if report is grpc.aio.EOF:
            raise ConnectionError("the worker closed the stream")
        assert isinstance(report, pb.Report)
        return prepared_from_wire(report) if report.HasField("prepared") else report_from_wire(report)


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
