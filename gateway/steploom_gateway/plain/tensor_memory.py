"""Large tensors between this gateway and model hosts of the same machine: through shared memory, not through messages.

A request borrows a block for its life: its inputs lie at the start, and the host puts its outputs behind them.
"""

from __future__ import annotations

import logging
from pathlib import Path

from steploom_common.arena import Arena, Block
from steploom_protos.worker.v1 import worker_pb2

log = logging.getLogger(__name__)

_SIZES = tuple(2**power for power in (18, 20, 22, 24))  # bytes of a block's inputs, and as many of its outputs
_ALIGNMENT = 64  # bytes, of each tensor


class Loan:
    """A request's block.

    Args:
        arena: it is of.
        block: that is borrowed.
    """

    def __init__(self, arena: Arena, block: Block) -> None:
        self._arena = arena
        self._block = block
        self._used = 0

    @property
    def output(self) -> worker_pb2.Region:
        """Where outputs go."""
        place = self._block.output
        return worker_pb2.Region(path=place.path, offset=place.offset, size=place.size, lease=place.lease)

    def put(self, data: bytes) -> worker_pb2.Region:
        """Copies an input into the block."""
        place = self._block.input
        offset = place.offset + self._used
        self._arena.put(offset, data)
        self._used += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        return worker_pb2.Region(path=place.path, offset=offset, size=len(data))

    def get(self, region: worker_pb2.Region) -> bytes:
        """A copy of an output."""
        return self._arena.get(region.offset, region.size)

    def give_back(self) -> None:
        """Ends the loan: no host touches the block any more."""
        self._arena.give_back(self._block)


class TensorMemory:
    """Args:
    directory: of the shared memory; None: there is none, and all tensors travel in messages.
    max_bytes: of all of it; each size of blocks has an equal share, made at first use.
    min_bytes: of a request's tensors, below which they travel in messages.
    """

    def __init__(self, directory: Path | None, max_bytes: int, min_bytes: int) -> None:
        self._directory = directory
        self._share = max_bytes // len(_SIZES)
        self._min_bytes = min_bytes
        self._arenas: dict[int, Arena | None] = {}  # by size; None: there is no room for any

    def __repr__(self) -> str:
        return f"TensorMemory({self._directory}, used={self.num_used})"

    @property
    def num_used(self) -> int:
        """Blocks that are borrowed now."""
        return sum(arena.num_used for arena in self._arenas.values() if arena)

    def borrow(self, num_bytes: int, num_tensors: int) -> Loan | None:
        """A block for inputs of so many bytes in all; None: they travel in the message."""
        if self._directory is None or num_bytes < self._min_bytes:
            return None
        needed = num_bytes + num_tensors * _ALIGNMENT
        size = next((size for size in _SIZES if size >= needed), None)
        arena = self._arena(size) if size is not None else None
        block = arena.borrow() if arena else None
        return Loan(arena, block) if arena and block else None

    def close(self) -> None:
        """Removes all of it; a host that still has it mapped keeps its view."""
        for arena in self._arenas.values():
            if arena:
                arena.close()
        self._arenas = {}
        self._directory = None

    def _arena(self, size: int) -> Arena | None:
        if size not in self._arenas:
            num_blocks = self._share // (2 * size)
            self._arenas[size] = self._made(size, num_blocks) if num_blocks else None
        return self._arenas[size]

    def _made(self, size: int, num_blocks: int) -> Arena | None:
        assert self._directory
        try:
            return Arena(self._directory, size, num_blocks)
        except OSError as error:
            log.warning("no shared memory in %s, tensors travel in messages: %s", self._directory, error.strerror)
            return None
