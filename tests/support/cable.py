"""What lies between a caller and a service: it can be cut, held, or made thin."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 16 * 1024  # bytes
_LINGER_NOT = struct.pack("ii", 1, 0)  # a close then is a reset, as of a process that dies


class Cable:
    """Carries the bytes of TCP connections to a port of this host.

    Args:
        port: of the service.
    """

    def __init__(self, port: int) -> None:
        self.port = 0  # to call instead of the service's, once laid
        self.answer_s = 0.0  # seconds that each chunk of the answers takes
        self.is_open = asyncio.Event()  # answers come through
        self.is_open.set()
        self._target = port
        self._ends: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Resets every connection."""
        for end in self._ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            end.transport.abort()
        self._ends.clear()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A caller has come."""
        back, forth = await asyncio.open_connection("127.0.0.1", self._target, limit=_CHUNK)
        self._ends += [writer, forth]
        self._tasks |= {
            asyncio.create_task(self._carry(reader, forth, is_answer=False)),
            asyncio.create_task(self._carry(back, writer, is_answer=True)),
        }

    async def close(self) -> None:
        """Ends what is left."""
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_answer: bool) -> None:
        with suppress(OSError):
            while chunk := await source.read(_CHUNK):
                if is_answer:
                    await self.is_open.wait()
                    await asyncio.sleep(self.answer_s)
                sink.write(chunk)
                await sink.drain()
        sink.close()


@asynccontextmanager
async def laid(port: int) -> AsyncIterator[Cable]:
    """A cable to a port of this host, for the length of a `with` block."""
    cable = Cable(port)
    server = await asyncio.start_server(cable.connected, "127.0.0.1", 0, limit=_CHUNK)
    cable.port = server.sockets[0].getsockname()[1]
    try:
        yield cable
    finally:
        server.close()
        await cable.close()
