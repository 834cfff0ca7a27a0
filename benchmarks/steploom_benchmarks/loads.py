"""What is asked of every server: how large a request is, what its model costs, and how requests come."""

from __future__ import annotations

import random
from dataclasses import dataclass

_NUM_PAYLOADS = 16  # different ones in turn, so that an answer to another request is noticed


@dataclass(frozen=True)
class Load:
    """One model, and requests for it."""

    name: str
    title: str
    num_bytes: int  # of a request, and of its answer
    cost_ms: float = 0.0  # of a batch
    cost_per_item_ms: float = 0.0
    delay_ms: float = 2.0  # for which a batch waits for company, where the sweep finds nothing better
    max_batch: int = 8
    callers: int = 64  # of the closed loop
    share: float = 0.0  # of the capacity that comes, in an open loop; 0: a closed one

    @property
    def is_open(self) -> bool:
        """Requests come when they come, whatever has been answered."""
        return self.share > 0

    @property
    def capacity(self) -> float:
        """Requests a second of one instance with full batches; 0 where the model costs nothing."""
        batch_s = (self.cost_ms + self.cost_per_item_ms * self.max_batch) / 1000
        return self.max_batch / batch_s if batch_s else 0.0

    @property
    def rate(self) -> float:
        """Requests a second of the open loop."""
        return self.share * self.capacity

    def payloads(self, seed: int = 0) -> list[bytes]:
        """Random bytes, none of them all zero."""
        source = random.Random(seed)
        return [b"\x01" + source.randbytes(self.num_bytes - 1) for _ in range(_NUM_PAYLOADS)]


LOADS = {
    load.name: load
    for load in (
        Load("small", "identity, 1 KB in and out, 64 callers in a closed loop", 1024),
        Load("image", "identity, 512 x 512 x 3 bytes in and out, 64 callers in a closed loop", 512 * 512 * 3),
        Load(
            "costly",
            "20 ms and 2 ms an item, 1 KB, Poisson arrivals at 70 % of the capacity",
            1024,
            cost_ms=20.0,
            cost_per_item_ms=2.0,
            delay_ms=5.0,
            share=0.7,
        ),
    )
}
