"""As much of HTTP/1.1 as a caller of a model needs, and no more: it must cost little beside the servers."""

from __future__ import annotations

import asyncio
from typing import Self

_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"


class Answer:
    """One answer, parsed as its bytes come in."""

    def __init__(self) -> None:
        self.status = 0
        self.keeps_open = True
        self._data = bytearray()
        self._length = -1  # of the body; -1: not known yet
        self._is_chunked = False
        self._body = bytearray()  # of chunks

    def feed(self, data: bytes) -> bytes | None:
        """The whole body with its last bytes; None before.

        Raises:
            ValueError: it is not HTTP/1.1 of a kind that is known here.
        """
        self._data += data
        if not self.status and not self._take_head():
            return None
        if self._is_chunked:
            return self._take_chunks()
        return bytes(self._data) if len(self._data) >= self._length else None

    def _take_head(self) -> bool:
        end = self._data.find(_HEAD_END)
        if end < 0:
            return False
        first, *lines = bytes(self._data[:end]).split(_LINE_END)
        del self._data[: end + len(_HEAD_END)]
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise ValueError(f"no status line: {first[:80]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self.keeps_open = headers.get(b"connection", b"").lower() != b"close"
        self._is_chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if not self._is_chunked:
            if b"content-length" not in headers:
                raise ValueError("an answer without a length")
            self._length = int(headers[b"content-length"])
        self.status = int(words[1])
        return True

    def _take_chunks(self) -> bytes | None:
        while (end := self._data.find(_LINE_END)) >= 0:
            size = int(bytes(self._data[:end]).partition(b";")[0], 16)
            whole = end + len(_LINE_END) + size + len(_LINE_END)
            if len(self._data) < whole:
                return None
            self._body += self._data[end + len(_LINE_END) : whole - len(_LINE_END)]
            del self._data[:whole]
            if size == 0:
                return bytes(self._body)
        return None


class HttpConnection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answer = Answer()
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def __repr__(self) -> str:
        return f"HttpConnection({'open' if self.is_open else 'closed'})"

    @classmethod
    async def open(cls, port: int) -> Self:
        """To a server on this machine.

        Raises:
            OSError: there is none.
        """
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def post(self, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
        """The status and the body of the answer.

        Raises:
            OSError: the connection was lost.
            ValueError: the answer makes no sense.
        """
        if self._transport is None or not self.is_open:
            raise ConnectionError("the connection is closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._answer = Answer()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.writelines([head.encode(), body])
        return await self._waiting

    def close(self) -> None:
        """Ends it."""
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            body = self._answer.feed(data)
        except ValueError as error:
            self._fail(error)
            self.close()
            return
        if body is None:
            return
        if not self._answer.keeps_open:
            self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((self._answer.status, body))

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_open = False
        self._fail(ConnectionError(f"the connection was lost: {error or 'closed by the server'}"))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
