"""A process of ours that ends when we do: how it is started, waited for and ended, and what it has said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

_POLL_S = 0.05
_LAST_LINES = 30  # of the log, in messages


class StackError(RuntimeError):
    """A system did not come up, or did not end; the message has the end of its log."""


class Child:
    """A Python module in a process of its own.

    Args:
        name: for messages.
        arguments: of the interpreter, as `-m`, the module and its arguments.
        log: gets what it says.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self._name = name
        self._log = log
        command = (sys.executable, "-P", str(_leash()), str(os.getpid()), *arguments)  # ends with us, however we end
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def __repr__(self) -> str:
        return f"Child({self._name}, pid={self.pid})"

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def wait(self, holds: Callable[[], bool], seconds: float, complaint: str) -> None:
        """Returns when `holds` does.

        Raises:
            StackError: it does not within `seconds`; the message has `complaint`.
        """
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise StackError(f"{self._name} {complaint} after {seconds:g} s:\n{self._last_words()}")
            time.sleep(_POLL_S)

    def check_alive(self) -> None:
        """Raises:
        StackError: it has ended.
        """
        if self._process.poll() is not None:
            raise StackError(f"{self._name} ended with {self._process.returncode}:\n{self._last_words()}")

    def terminate(self) -> None:
        """SIGTERM: drain and end."""
        self._process.terminate()

    def wait_end(self, seconds: float) -> int:
        """The exit code.

        Raises:
            StackError: it still runs after `seconds`.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise StackError(f"{self._name} did not end within {seconds:g} s:\n{self._last_words()}") from None

    def stop(self, seconds: float) -> int:
        """Ends it in order; returns the exit code."""
        if self._process.poll() is None:
            self.terminate()
        return self.wait_end(seconds)

    def kill(self) -> None:
        """Ends it without asking, and all that it has put on a leash."""
        self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        return "\n".join(self.log.splitlines()[-_LAST_LINES:])


def _leash() -> Path:
    """The script that ends what it starts when its parent dies."""
    spec = find_spec("steploom")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("the package steploom is not installed")
    return Path(spec.submodule_search_locations[0]) / "leash.py"
