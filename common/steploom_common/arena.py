"""Pixels between processes of one host without a copy through a socket: a file in memory, cut into equal blocks.

The gateway owns an arena. A job borrows a block for its life; the block's first part holds the picture that came in
and its last part the picture that goes out, so that a job whose worker died can start again from an intact input.

Between the two lies the *lease*: a number that is new with every loan. Who writes the picture that goes out looks at it
first, so that a worker that was given up for lost, and comes to itself after the block was lent again, does not put its
picture into somebody else's.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [height, width, 3]
Memory = NDArray[np.uint8]  # [bytes]

_PREFIX = "steploom-arena-"
_LEASE = struct.Struct("=Q")  # right before an output region; 0: not lent


@dataclass(frozen=True)
class RegionRef:
    """Where bytes lie: an arena's file, and a stretch of it."""

    path: str
    offset: int  # bytes
    size: int  # bytes
    lease: int = 0  # of the loan that the region belongs to; 0: it is only read


@dataclass(frozen=True)
class Block:
    """A job's place in the arena."""

    index: int
    input: RegionRef
    output: RegionRef


def default_directory(runtime_dir: Path) -> Path:
    """A folder in memory where the host has one, else the runtime folder."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else runtime_dir


class Arena:
    """Owns the file; gives out blocks and takes them back. Not for several threads at once.

    Args:
        directory: where the file goes, best a memory file system.
        block_bytes: bytes of one picture, input or output.
        num_blocks: how many jobs can borrow at once.
    """

    def __init__(self, directory: Path, block_bytes: int, num_blocks: int) -> None:
        remove_stale(directory)
        self.path = directory / f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        self.block_bytes = block_bytes
        self._output_at = -(-block_bytes // _LEASE.size) * _LEASE.size + _LEASE.size  # within a block, aligned
        self._stride = 2 * self._output_at
        self._map = _create(self.path, self._stride * num_blocks)
        self._leases = itertools.count(1)
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_blocks = num_blocks

    def __repr__(self) -> str:
        return f"Arena({self.path}, used={self.num_used}/{self._num_blocks})"

    @property
    def num_used(self) -> int:
        """Blocks that are borrowed now."""
        return self._num_blocks - len(self._free)

    def borrow(self) -> Block | None:
        """A block, or None when all are borrowed: the pixels then travel in the message."""
        if not self._free:
            return None
        index = self._free.pop()
        start, lease = self._stride * index, next(self._leases)
        output = RegionRef(str(self.path), start + self._output_at, self.block_bytes, lease)
        _LEASE.pack_into(self._map, output.offset - _LEASE.size, lease)
        return Block(index, RegionRef(str(self.path), start, self.block_bytes), output)

    def give_back(self, block: Block) -> None:
        """Ends a loan. The worker must be done with the block.

        Raises:
            ValueError: the block is not borrowed.
        """
        if block.index in self._free or not 0 <= block.index < self._num_blocks:
            raise ValueError(f"block {block.index} of {self!r} is not borrowed")
        if not self._map.closed:  # at the end of a service a loan may outlive the arena
            _LEASE.pack_into(self._map, block.output.offset - _LEASE.size, 0)
        self._free.append(block.index)

    def write(self, region: RegionRef, pixels: Pixels) -> None:
        """Puts a picture at the start of a region of this arena."""
        self._map[region.offset : region.offset + pixels.nbytes] = pixels.tobytes()

    def read(self, region: RegionRef, height: int, width: int) -> Pixels:
        """A copy of the picture at the start of a region of this arena."""
        return _picture(self._map, region, height, width).copy()

    def put(self, offset: int, data: bytes) -> None:
        """Copies bytes to a place within a block that is borrowed."""
        self._map[offset : offset + len(data)] = data

    def get(self, offset: int, size: int) -> bytes:
        """A copy of bytes within a block that is borrowed."""
        return self._map[offset : offset + size]

    def close(self) -> None:
        """Removes the file; maps that others hold stay valid."""
        self.path.unlink(missing_ok=True)
        self._map.close()


def _nothing(_: Memory) -> None:
    """Nobody is interested."""


class ArenaViews:
    """Arenas of other processes, mapped on first use. On any thread.

    Args:
        directory: bounds what may be opened.
        on_open: hears of an arena that has been mapped, with all of its memory.
        on_close: hears of it before it is let go.
    """

    def __init__(
        self,
        directory: Path,
        on_open: Callable[[Memory], None] = _nothing,
        on_close: Callable[[Memory], None] = _nothing,
    ) -> None:
        self._directory = directory.resolve()
        self._on_open, self._on_close = on_open, on_close
        self._maps: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()  # of the maps

    def __repr__(self) -> str:
        return f"ArenaViews({self._directory}, mapped={self.num_mapped})"

    @property
    def num_mapped(self) -> int:
        """Arenas that are mapped now; those that were removed go when the next is mapped."""
        return len(self._maps)

    def picture(self, region: RegionRef, height: int, width: int) -> Pixels:
        """The picture in a region, without a copy: writes go to the arena.

        Raises:
            ValueError: a path outside the arena folder, a region that is too small or outside of the file, or one whose
                loan has ended.
        """
        with self._lock:
            memory = self._mapped(region.path)
        return _picture(memory, region, height, width)

    def memory(self, region: RegionRef) -> Memory:
        """All bytes of a region, without a copy: writes go to the arena.

        Raises:
            ValueError: a path outside the arena folder, a region outside of the file, or one whose loan has ended.
        """
        with self._lock:
            memory = self._mapped(region.path)
        return _bytes(memory, region, region.size)

    def close(self) -> None:
        """Lets every arena go."""
        with self._lock:
            for path in list(self._maps):
                self._forget(path)

    def _mapped(self, path: str) -> mmap.mmap:
        if path not in self._maps:
            file = Path(path).resolve()
            if file.parent != self._directory or not is_arena(file.name):
                raise ValueError(f"{path} is no arena in {self._directory}")
            self._forget_removed()
            with file.open("r+b") as handle:
                self._maps[path] = mmap.mmap(handle.fileno(), 0)
            self._on_open(np.frombuffer(self._maps[path], np.uint8))
        return self._maps[path]

    def _forget_removed(self) -> None:
        for path in [path for path in self._maps if not Path(path).exists()]:
            self._forget(path)

    def _forget(self, path: str) -> None:
        self._on_close(np.frombuffer(self._maps[path], np.uint8))
        del self._maps[path]  # unmapped when the last array over it goes


def is_arena(name: str) -> bool:
    """Whether a file of this name is an arena, or would be taken for one."""
    return name.startswith(_PREFIX)


def remove_stale(directory: Path) -> None:
    """Removes the arenas of processes that are gone."""
    for file in directory.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or removed meanwhile
            if _is_abandoned(file):
                file.unlink()


def _is_abandoned(file: Path) -> bool:
    """An owner holds a lock as long as it lives: unlike a pid, it means the same in every container."""
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_size > 0  # else it is just being made: its owner takes the lock next
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _picture(memory: mmap.mmap, region: RegionRef, height: int, width: int) -> Pixels:
    size = height * width * 3
    if height < 1 or width < 1 or size > region.size:
        raise ValueError(f"a picture of {height}x{width} does not fit into {region}")
    return _bytes(memory, region, size).reshape(height, width, 3)


def _bytes(memory: mmap.mmap, region: RegionRef, size: int) -> Memory:
    """The first bytes of a region."""
    if size < 0 or not 0 <= region.offset <= len(memory) - size:
        raise ValueError(f"a stretch of {size} bytes does not fit into {region}, whose file has {len(memory)}")
    if region.lease and not _is_lent(memory, region):
        raise ValueError(f"the loan of {region} has ended")
    return np.frombuffer(memory, np.uint8, size, region.offset)


def _is_lent(memory: mmap.mmap, region: RegionRef) -> bool:
    at = region.offset - _LEASE.size
    return at >= 0 and bool(_LEASE.unpack_from(memory, at)[0] == region.lease)


def _create(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the map keeps it, as it keeps the file open
        # allocate now: a full file system is an error here, not a bus error at the first write
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def borrowed(arena: Arena) -> Iterator[Block | None]:
    """A block for the length of a `with` block, or None when all are borrowed."""
    block = arena.borrow()
    try:
        yield block
    finally:
        if block is not None:
            arena.give_back(block)
