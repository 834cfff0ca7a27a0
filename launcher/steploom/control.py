"""The supervisor's ear: a socket in the runtime folder, for this user alone, on which other commands ask it to act.

One request a connection, a line of JSON; answers are lines of JSON, the last one with `done`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from steploom.exit_codes import CommandError, ExitCode

log = logging.getLogger(__name__)

_REQUEST_BYTES = 64 * 1024

# Takes names of services and who is told how far it is; raises where it cannot be done.
Restart = Callable[[Sequence[str], Callable[[str], None]], Awaitable[None]]


@asynccontextmanager
async def listening(path: Path, restart: Restart) -> AsyncIterator[None]:
    """Answers requests within the block.

    Args:
        path: of the socket.
        restart: what `restart` does.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(**words: str | bool) -> None:
            writer.write(json.dumps(words).encode() + b"\n")

        with suppress(ConnectionError):  # who has asked has gone: what was asked for is done all the same
            try:
                names = _read(await reader.readline())
                await restart(names, lambda line: tell(said=line))
            except Exception as error:
                if not isinstance(error, (ValueError, NotDone)):
                    log.exception("a request could not be answered")
                tell(done=False, said=str(error))
            else:
                tell(done=True)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, sock=_bound(path), limit=_REQUEST_BYTES)
    try:
        yield
    finally:
        server.close()


class NotDone(Exception):
    """What was asked for cannot be done, or not now."""


def _bound(path: Path) -> socket.socket:
    """A socket for its owner alone; the runtime folder's lock says that nobody else listens."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    path.chmod(0o600)
    return bound


def _read(line: bytes) -> list[str]:
    """The services that a request names.

    Raises:
        ValueError: it is no request.
    """
    try:
        request = json.loads(line)
        names = request["restart"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("the request is not understood") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the request is not understood")
    return names


def run_restart(path: Path, workers: Sequence[int]) -> None:
    """`steploom restart`: asks, and prints how far it is until it is done.

    Raises:
        CommandError: nobody listens, or it cannot be done.
    """
    names = [f"worker-{number}" for number in workers]
    for answer in _asked(path, {"restart": names}):
        if "done" not in answer:
            print(answer.get("said", ""), flush=True)
        elif answer["done"]:
            return
        else:
            raise CommandError(str(answer.get("said")), ExitCode.FAILED, "what serves goes on; its log says more")
    raise CommandError("the supervisor has ended", ExitCode.UNAVAILABLE)


def _asked(path: Path, request: object) -> Iterator[dict[str, object]]:
    """The answers to a request."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("r") as lines:
                yield from map(json.loads, lines)
        except OSError:
            hint = "start it with `steploom up`"
            raise CommandError(f"no `steploom up` listens at {path}", ExitCode.UNAVAILABLE, hint) from None
