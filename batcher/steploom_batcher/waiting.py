"""Jobs that wait for a slot, ready to be asked for the first of each flow."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from steploom_batcher.fairness import Flow
from steploom_batcher.job import Job, State

_SPARE = 64  # entries of jobs that have left which a heap may hold, beside as many as wait


class WaitingRoom:
    """One heap a flow, by due time. A job that leaves stays in its heap until it comes to the top, or they are many."""

    def __init__(self) -> None:
        self._heaps: dict[Flow, list[tuple[float, int, Job]]] = {}
        self._count = 0
        self._counts: Counter[str] = Counter()  # by tier
        self._counts_of_callers: Counter[tuple[str, str]] = Counter()  # by tier and caller, those with a job alone

    def __repr__(self) -> str:
        return f"WaitingRoom({dict(self._counts)})"

    def __len__(self) -> int:
        return self._count

    def of(self, tier: str) -> int:
        """How many jobs of a tier wait."""
        return self._counts[tier]

    def of_caller(self, tier: str, caller: str) -> int:
        """How many of them are a caller's."""
        return self._counts_of_callers[tier, caller]

    def enter(self, job: Job) -> None:
        """Takes a job whose state is QUEUED."""
        heap = self._heaps.setdefault(job.flow, [])
        heapq.heappush(heap, (job.due, job.sequence, job))
        self._count += 1
        self._counts[job.spec.tier] += 1
        self._counts_of_callers[job.spec.tier, job.spec.caller] += 1
        if len(heap) > 2 * len(self) + _SPARE:
            heap[:] = sorted({entry for entry in heap if entry[2].state is State.QUEUED})

    def leave(self, job: Job) -> None:
        """Lets a job go; its state is no longer QUEUED when `heads` is next asked."""
        self._count -= 1
        self._counts[job.spec.tier] -= 1
        whose = job.spec.tier, job.spec.caller
        self._counts_of_callers[whose] -= 1
        if not self._counts_of_callers[whose]:
            del self._counts_of_callers[whose]

    def heads(self) -> Iterator[Job]:
        """The job of each flow that is due first."""
        for flow, heap in list(self._heaps.items()):
            while heap and heap[0][2].state is not State.QUEUED:
                heapq.heappop(heap)
            if heap:
                yield heap[0][2]
            else:
                del self._heaps[flow]
