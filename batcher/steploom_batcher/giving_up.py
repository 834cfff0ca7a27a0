"""When a job is given up: past its deadline, or when it surely cannot make it any more."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from steploom_batcher.job import Job, State

# A job is given up before its deadline only when even half of the predicted remaining time would be too long: the
# prediction may be wrong, and a job that is given up cannot be brought back.
_SURE = 0.5

_SPARE = 64  # entries of jobs that have ended which the heap may hold, beside as many as live


class GivingUp:
    """The moment of each job, earliest first.

    Args:
        jobs: those that live, by id; the scheduler's own.
    """

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = jobs
        self._heap: list[tuple[float, int, str]] = []  # when, sequence, job

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, job: Job) -> None:
        """Notes a job that is new, or has further to go than before."""
        heapq.heappush(self._heap, _entry(job))
        if len(self._heap) > 2 * len(self._jobs) + _SPARE:  # far deadlines of jobs that have long ended
            self._heap = sorted(_entry(item) for item in self._jobs.values())

    def due(self, now: float) -> Iterable[Job]:
        """Jobs to give up now. One whose last tick is in flight is let finish."""
        return self._due(now) if self._heap and self._heap[0][0] <= now else ()

    def _due(self, now: float) -> Iterator[Job]:
        while self._heap and self._heap[0][0] <= now:
            _, _, job_id = heapq.heappop(self._heap)
            job = self._jobs.get(job_id)
            if job is None or job.state is State.LEAVING or job.stage is None:
                continue
            if _hopeless_at(job) > now:
                self.watch(job)  # it has made progress since
                continue
            yield job

    def next_at(self) -> float | None:
        """When to look again."""
        while self._heap and self._heap[0][2] not in self._jobs:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


def _entry(job: Job) -> tuple[float, int, str]:
    return _hopeless_at(job), job.sequence, job.spec.job_id


def _hopeless_at(job: Job) -> float:
    return job.spec.deadline - _SURE * job.remaining_s
