"""A child process on a leash: its log with a prefix, its end, and no way to outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from steploom_common.rpc import ASK_TO_END

Sink = Callable[[str], None]  # takes a line of log, without its end

_LEASH = Path(__file__).with_name("leash.py")
_READ_BYTES = 64 * 1024
_LAST_WORDS = 20  # lines of log that are kept for an error message


class Process:
    """A running service. Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, sink: Sink) -> None:
        self._process = process
        self._sink = sink
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._reader = asyncio.create_task(self._read())

    def __repr__(self) -> str:
        return f"Process({self.pid}, returncode={self._process.returncode})"

    @classmethod
    async def start(cls, arguments: Sequence[str], sink: Sink) -> Process:
        """Starts `python ARGUMENTS…`; its output goes to `sink`.

        It has a session of its own, so that Ctrl-C reaches us alone and we choose the order of the end.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(_LEASH), str(os.getpid())),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(process, sink)

    @property
    def pid(self) -> int:
        """Of the service; the leash becomes it."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self._last_words)

    async def wait(self) -> int:
        """Its exit code, negative for a signal, once the process is gone."""
        code = await self._process.wait()
        with suppress(TimeoutError):  # a grandchild may hold the pipe open
            await asyncio.wait_for(self._reader, 1.0)
        return code

    def ask_to_end(self) -> None:
        """Lets it end in order, whether or not somebody else has asked it too."""
        self._signal(ASK_TO_END)

    def kill(self) -> None:
        """SIGKILL, to it and to what it has started."""
        self._signal(signal.SIGKILL)
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(_READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._log(line)
            if len(rest) > _READ_BYTES:  # a line without an end must not fill our memory
                self._log(rest)
                rest = b""
        if rest:
            self._log(rest)

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip("\r")
        self._last_words.append(text)
        with suppress(OSError):  # a full disk: a line is lost, but the service must not wait for us to read on
            self._sink(text)
