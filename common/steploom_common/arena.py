"""Pixels between processes of one host without a copy through a socket: a file in memory, cut into equal blocks.

The gateway owns an arena. A job borrows a block for its life; the block's first half holds the picture that came in
and its second half the picture that goes out, so that a job whose worker died can start again from an intact input.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [height, width, 3]

_PREFIX = "steploom-arena-"


@dataclass(frozen=True)
class RegionRef:
    """Where bytes lie: an arena's file, and a stretch of it."""

    path: str
    offset: int  # bytes
    size: int  # bytes


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
        self._map = _create(self.path, 2 * block_bytes * num_blocks)
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
        start = 2 * self.block_bytes * index
        return Block(
            index,
            RegionRef(str(self.path), start, self.block_bytes),
            RegionRef(str(self.path), start + self.block_bytes, self.block_bytes),
        )

    def give_back(self, block: Block) -> None:
        """Ends a loan. The worker must be done with the block.

        Raises:
            ValueError: the block is not borrowed.
        """
        if block.index in self._free or not 0 <= block.index < self._num_blocks:
            raise ValueError(f"block {block.index} of {self!r} is not borrowed")
        self._free.append(block.index)

    def write(self, region: RegionRef, pixels: Pixels) -> None:
        """Puts a picture at the start of a region of this arena."""
        self._map[region.offset : region.offset + pixels.nbytes] = pixels.tobytes()

    def read(self, region: RegionRef, height: int, width: int) -> Pixels:
        """A copy of the picture at the start of a region of this arena."""
        return _picture(self._map, region, height, width).copy()

    def close(self) -> None:
        """Removes the file; maps that others hold stay valid."""
        self.path.unlink(missing_ok=True)
        self._map.close()


class ArenaViews:
    """Arenas of other processes, mapped on first use. `directory` bounds what may be opened."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._maps: dict[str, mmap.mmap] = {}

    def __repr__(self) -> str:
        return f"ArenaViews({self._directory}, mapped={self.num_mapped})"

    @property
    def num_mapped(self) -> int:
        """Arenas that are mapped now; those that were removed go when the next is mapped."""
        return len(self._maps)

    def picture(self, region: RegionRef, height: int, width: int) -> Pixels:
        """The picture in a region, without a copy: writes go to the arena.

        Raises:
            ValueError: a path outside the arena folder, or a region that is too small or outside of the file.
        """
        return _picture(self._mapped(region.path), region, height, width)

    def _mapped(self, path: str) -> mmap.mmap:
        if path not in self._maps:
            file = Path(path).resolve()
            if file.parent != self._directory or not file.name.startswith(_PREFIX):
                raise ValueError(f"{path} is no arena in {self._directory}")
            self._forget_removed()
            with file.open("r+b") as handle:
                self._maps[path] = mmap.mmap(handle.fileno(), 0)
        return self._maps[path]

    def _forget_removed(self) -> None:
        for path in [path for path in self._maps if not Path(path).exists()]:
            del self._maps[path]  # unmapped when the last array over it goes


def remove_stale(directory: Path) -> None:
    """Removes the arenas of processes that are gone."""
    for file in directory.glob(f"{_PREFIX}*"):
        owner = file.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            file.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    """A process that was killed may stay a zombie for long: in a container whose first process reaps nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")  # proc(5)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _picture(memory: mmap.mmap, region: RegionRef, height: int, width: int) -> Pixels:
    size = height * width * 3
    is_within = 0 <= region.offset <= len(memory) - size and size <= region.size
    if height < 1 or width < 1 or not is_within:
        raise ValueError(f"a picture of {height}x{width} does not fit into {region}")
    return np.frombuffer(memory, np.uint8, size, region.offset).reshape(height, width, 3)


def _create(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
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
