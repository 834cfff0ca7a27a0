"""The caller's HTTP: answers in pieces, chunks, lost connections; and BentoML's messages."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from steploom_benchmarks import bento_messages
from steploom_benchmarks.callers import CallError, HttpCaller
from steploom_benchmarks.http_connection import Answer

Respond = Callable[[bytes], bytes]  # from the body of a request to all of the answer's bytes


def plain(body: bytes, status: str = "200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status.encode(), len(body), headers, body)


@asynccontextmanager
async def server(respond: Respond) -> AsyncIterator[int]:
    """Answers on a free port; an empty answer closes the connection."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                answer = respond(await reader.readexactly(length))
                writer.write(answer)
                await writer.drain()
                if not answer:
                    break
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_an_answer_may_come_in_pieces(size: int) -> None:
    data = plain(b"0123456789")
    answer = Answer()
    bodies = [answer.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert bodies[-1] == b"0123456789"
    assert bodies[:-1] == [None] * (len(bodies) - 1)
    assert answer.status == 200


@pytest.mark.parametrize("size", [1, 5, 4096])
def test_chunks_are_put_together(size: int) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"
    answer = Answer()
    bodies = [answer.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert bodies[-1] == b"abc0123456789"


@pytest.mark.parametrize("data", [b"SMTP ready\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nwho knows how long"])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"status line|without a length"):
        Answer().feed(data)


async def test_connections_are_used_again() -> None:
    async with server(plain) as port:
        caller = HttpCaller(port, "/x")
        assert await asyncio.gather(*(caller.call(bytes([at])) for at in range(5))) == [bytes([at]) for at in range(5)]
        assert repr(caller) == "HttpCaller(/x, 5 idle)"
        assert await caller.call(b"again") == b"again"
        assert repr(caller) == "HttpCaller(/x, 5 idle)"
        await caller.close()


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (lambda body: plain(b"too many", "503 Busy"), "HTTP 503: b'too many'"),
        (lambda body: b"", "the connection was lost"),
        (lambda body: b"nonsense\r\n\r\n", "no status line"),
    ],
)
async def test_what_goes_wrong_is_told(respond: Respond, words: str) -> None:
    async with server(respond) as port:
        caller = HttpCaller(port, "/x")
        with pytest.raises(CallError, match=words):
            await caller.call(b"x")
        await caller.close()


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    async with server(lambda body: plain(body, headers=b"Connection: close\r\n")) as port:
        caller = HttpCaller(port, "/x")
        assert await caller.call(b"1") == b"1"
        assert repr(caller) == "HttpCaller(/x, 0 idle)"


def test_an_item_for_bentoml_is_json_that_holds_its_bytes() -> None:
    payload = bytes(range(256))
    items = json.loads(bento_messages.wrapped(payload))["items"]
    assert [base64.b64decode(item) for item in items] == [payload]
    assert bento_messages.unwrapped(json.dumps(items).encode()) == payload


@pytest.mark.parametrize("body", [b"[]", b'["AA==","AA=="]', b'{"items":["AA=="]}', b"[1]", b'["!!"]', b"no json"])
def test_another_answer_of_bentoml_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"no list of one item|no base64|Expecting value"):
        bento_messages.unwrapped(body)
