"""What files say, read again when they change; while they are wrong, what was read before stays in use."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from steploom_common.settings import ConfigError

log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Reread(Generic[Value]):
    """A value that was read from files.

    A look at files that have not changed costs a `stat` of each, so whoever is about to use the value looks first.

    Args:
        paths: the files.
        read: reads them all; raises `ConfigError` where one is wrong.

    Raises:
        ConfigError: a file is wrong now.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], Value]) -> None:
        self._paths = [path for path in paths if path]
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._stamps()  # before reading: a change meanwhile is seen at the next look
        self._value = read()

    def __repr__(self) -> str:
        return f"Reread({', '.join(self._paths)})"

    def current(self) -> Value:
        """What the files say, or said before they became wrong. From any thread; a wrong change is logged once."""
        if self._lock.acquire(blocking=False):  # else another thread is at it, and what there is will do
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._value = self._read()
        except ConfigError as error:
            log.error("%s; what was read before stays in use", error)
        else:
            log.info("read again: %s", ", ".join(self._paths))

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116  follows links: a mounted secret is one
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
