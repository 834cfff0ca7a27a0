"""Shared-memory blocks on loan to jobs: none is used again while a worker may still touch it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio

from steploom_common.arena import Arena, Block, Pixels, RegionRef

log = logging.getLogger(__name__)


class Loan:
    """A block of the arena, for one job."""

    def __init__(self, arena: Arena, block: Block) -> None:
        self._arena = arena
        self._block = block

    @property
    def input(self) -> RegionRef:
        """Where the picture that goes in lies."""
        return self._block.input

    @property
    def output(self) -> RegionRef:
        """Where the picture that comes out goes."""
        return self._block.output

    def write(self, pixels: Pixels) -> None:
        """Puts the job's picture into the block."""
        self._arena.write(self._block.input, pixels)

    def read(self, height: int, width: int) -> Pixels:
        """A copy of the picture that the job has drawn."""
        return self._arena.read(self._block.output, height, width)

    def give_back(self) -> None:
        """The block can be lent again."""
        self._arena.give_back(self._block)


class Loans:
    """Lends blocks, and takes them back when the batcher says that they are free.

    Args:
        directory: of the arena; None where the batcher is on another host: nothing is lent then.
        num_blocks: jobs that can have one at once.
        wait_free: returns when no worker touches the regions of a job any more.
        settle_s: seconds for which a block is kept where the batcher cannot say.
    """

    def __init__(
        self,
        directory: Path | None,
        num_blocks: int,
        wait_free: Callable[[str], Awaitable[None]],
        settle_s: float,
    ) -> None:
        self._directory = directory if num_blocks else None
        self._num_blocks = num_blocks
        self._wait_free = wait_free
        self._settle_s = settle_s
        self._arena: Arena | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._is_closed = False  # there is nobody left to ask for what is free, and nothing to lend

    def __repr__(self) -> str:
        return f"Loans({self._arena}, settling={len(self._settling)})"

    @property
    def num_used(self) -> int:
        """Blocks that are lent, or not yet known to be free."""
        return self._arena.num_used if self._arena else 0

    @property
    def num_settling(self) -> int:
        """Blocks of ended jobs that a worker may still touch."""
        return len(self._settling)

    def lend(self, num_bytes: int) -> Loan | None:
        """A block for pictures of `num_bytes`, or None: the pixels then travel in messages."""
        arena = None if self._is_closed else self._arena_for(num_bytes)
        block = arena.borrow() if arena else None
        return Loan(arena, block) if arena and block else None

    def end(self, loan: Loan, job_id: str, is_free: bool) -> None:
        """Ends a loan: at once where the job's end was seen, else when the batcher says so."""
        if is_free or self._is_closed:
            loan.give_back()
            return
        task = asyncio.create_task(self._settle(loan, job_id), name=f"settle {job_id}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def close(self) -> None:
        """Removes the arena. Workers that still have it mapped keep their view of it."""
        self._is_closed = True
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        if self._arena:
            self._arena.close()
            self._arena = None

    async def _settle(self, loan: Loan, job_id: str) -> None:
        try:
            await self._wait_free(job_id)
        except grpc.aio.AioRpcError:  # the batcher is gone: its workers stop at the end of their tick
            await asyncio.sleep(self._settle_s)
        finally:
            loan.give_back()

    def _arena_for(self, num_bytes: int) -> Arena | None:
        """The arena, made at first use, and made anew for a model with larger pictures once nothing is lent."""
        if self._arena and self._arena.block_bytes < num_bytes:
            if self._arena.num_used:
                return None
            self._arena.close()
            self._arena = None
        if self._arena is None and self._directory:
            self._arena = self._make(self._directory, num_bytes)
        return self._arena

    def _make(self, directory: Path, num_bytes: int) -> Arena | None:
        try:
            return Arena(directory, num_bytes, self._num_blocks)
        except OSError as error:
            log.warning("no shared memory in %s, pictures travel in messages: %s", directory, error.strerror)
            self._directory = None
            return None
