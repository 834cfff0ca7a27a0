"""Shared memory of this host that clients have registered, for tensors in and out.

Bytes are copied by reads and writes of the file, not through a map: a client that shortens its memory meanwhile gets an
error, where a map would end the process.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from steploom_common.arena import is_arena
from steploom_common.errors import Exhausted, Exists, InvalidRequest, NotFound, Unsupported, Violation

DIRECTORY = Path("/dev/shm")  # where shm_open keeps its objects

_KEY = re.compile(r"/?([^/\0]{1,255})")
_MAX_NAME = 200  # characters
_RETRY_S = 1.0


@dataclass(frozen=True)
class Stretch:
    """A part of a region, by its name."""

    region: str
    offset: int  # bytes, within the region
    size: int  # bytes


class Descriptor:
    """An open file, closed when the last user is done: a copy on another thread may outlive the region."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True)
class Region:
    """A part of a memory object that is open."""

    name: str
    key: str  # of the object
    offset: int  # bytes, within the object
    size: int  # bytes
    file: Descriptor


class Regions:
    """Registers, reads and writes. Reads and writes may run on any thread.

    Args:
        max_regions: registered at once; 0: none, and nothing is ever opened.
        directory: of the objects; no name leads out of it.
    """

    def __init__(self, max_regions: int, directory: Path = DIRECTORY) -> None:
        self._max_regions = max_regions
        self._directory = directory
        self._regions: dict[str, Region] = {}

    def __repr__(self) -> str:
        return f"Regions({len(self._regions)}/{self._max_regions})"

    @property
    def is_enabled(self) -> bool:
        """Whether clients may register any."""
        return self._max_regions > 0

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Opens a memory object under a name.

        Raises:
            SteploomError: switched off, a name that is taken, too many, no such object, or not within it.
        """
        if not self.is_enabled:
            raise Unsupported("shared memory is switched off; gateway.shared_memory_regions says how many there may be")
        if name in self._regions:
            raise Exists(f"shared memory region {name[:_MAX_NAME]!r} is registered already")
        if len(self._regions) >= self._max_regions:
            message = f"{len(self._regions)} shared memory regions are registered"
            raise Exhausted(message, "gateway.shared_memory_regions", _RETRY_S)
        if not 1 <= len(name) <= _MAX_NAME:
            raise _invalid("name", f"has {len(name)} characters, must have 1 to {_MAX_NAME}")
        file = self._opened(key)
        _check_within(file, offset, size)
        self._regions[name] = Region(name, key, offset, size, file)

    def unregister(self, name: str) -> None:
        """Forgets a region; nothing where there is none of that name. An empty name: all of them."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def listed(self, name: str) -> list[Region]:
        """The region of a name; all for an empty one.

        Raises:
            NotFound: there is none of that name.
        """
        return [self._region(name)] if name else list(self._regions.values())

    def check(self, stretch: Stretch) -> None:
        """Whether a stretch lies within its region.

        Raises:
            NotFound: there is no such region.
            ValueError: it does not; says by which bound.
        """
        self._within(stretch)

    def read(self, stretch: Stretch) -> bytes:
        """A copy of what lies there.

        Raises:
            NotFound: there is no such region.
            ValueError: it is not within the region, or the object has become shorter.
        """
        region = self._within(stretch)
        data = os.pread(region.file.number, stretch.size, region.offset + stretch.offset)
        if len(data) < stretch.size:
            raise ValueError(f"lies beyond the end of {region.key[:_MAX_NAME]!r}, which has become shorter")
        return data

    def write(self, stretch: Stretch, data: bytes) -> None:
        """Puts bytes at the start of a stretch.

        Raises:
            NotFound: there is no such region.
            ValueError: they do not fit, or the object has become shorter.
        """
        region = self._within(stretch)
        if len(data) > stretch.size:
            raise ValueError(f"has {len(data)} bytes, must have at most {stretch.size} for its shared memory")
        start = region.offset + stretch.offset
        if os.fstat(region.file.number).st_size < start + len(data):  # a write would make it longer again
            raise ValueError(f"lies beyond the end of {region.key[:_MAX_NAME]!r}, which has become shorter")
        view = memoryview(data)
        while view:
            written = os.pwrite(region.file.number, view, start)
            view, start = view[written:], start + written

    def _region(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFound("shared memory region", name[:_MAX_NAME], sorted(self._regions)[:20])
        return region

    def _within(self, stretch: Stretch) -> Region:
        region = self._region(stretch.region)
        if stretch.offset + stretch.size > region.size:
            raise ValueError(
                f"has bytes {stretch.offset} to {stretch.offset + stretch.size} of shared memory region "
                f"{region.name!r}, which has {region.size}"
            )
        return region

    def _opened(self, key: str) -> Descriptor:
        """The object, to read and write."""
        match = _KEY.fullmatch(key)
        name = match[1] if match else ""
        if name in ("", ".", "..") or is_arena(name):  # an arena holds the pictures of all callers
            raise _invalid("key", "must be a slash and the name of a memory object, without further slashes")
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = Descriptor(os.open(self._directory / name, flags))
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else "no name of a file"
            raise _invalid("key", f"cannot be opened: {problem}") from None
        if not stat.S_ISREG(os.fstat(file.number).st_mode):
            raise _invalid("key", "is no memory object")
        return file


def _check_within(file: Descriptor, offset: int, size: int) -> None:
    length = os.fstat(file.number).st_size
    if size < 1:
        raise _invalid("byte_size", "is 0, must be at least 1")
    if offset + size > length:
        raise _invalid("byte_size", f"ends at byte {offset + size} of the memory object, which has {length}")


def _invalid(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(Violation(field, problem))
