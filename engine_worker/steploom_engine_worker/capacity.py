"""How many jobs a worker's device holds at once, where the settings leave that open."""

from __future__ import annotations

SLOTS_SHARE = 0.1  # of the device's free memory: a job's state is small, a tick's activations are not
MAX_SLOTS = 256  # more jobs at once only wait for each other


def slots_that_fit(free_bytes: int, each: int) -> int:
    """Jobs whose slots take no more than a part of what is free before weights and graphs: at least one.

    The graphs of a lane share memory, of which the first, the largest, takes nearly all. One that is recorded later
    needs the memory of its own activations beside that for a moment; where that is not to be had, it is given up.

    Args:
        free_bytes: of the device's memory.
        each: bytes of a slot.
    """
    return max(1, min(MAX_SLOTS, int(free_bytes * SLOTS_SHARE) // each))
