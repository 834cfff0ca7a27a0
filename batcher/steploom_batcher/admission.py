"""Whether a job is taken: a queue bound, a slot in time, a deadline that can be met."""

from __future__ import annotations

from collections.abc import Sequence

from steploom_batcher.config import SchedulerConfig
from steploom_batcher.fairness import Backlog
from steploom_batcher.job import JobCosts
from steploom_batcher.policy import Worker
from steploom_batcher.types import Admitted, Cause, JobSpec, Refused


class Admission:
    """Predicts a job's finish before it is taken, and refuses what cannot end well."""

    def __init__(self, config: SchedulerConfig, backlog: Backlog) -> None:
        self._config = config
        self._backlog = backlog

    def decide(
        self, spec: JobSpec, costs: JobCosts, workers: Sequence[Worker], num_queued: int, now: float
    ) -> Admitted | Refused:
        """Args:
        workers: those that serve the job's key; none while a lost one is expected back.
        num_queued: jobs of the tier that wait for a slot.
        """
        has_slot = any(worker.free_slots for worker in workers)
        tier = self._config.tiers[spec.tier]
        if not has_slot and num_queued >= tier.max_queued:
            drained_s = self._backlog.total_s / max(1, len(workers)) / max(1, num_queued)
            message = f"Exceeds maximum queue size: {num_queued} jobs of tier {spec.tier!r} wait already"
            return Refused(Cause.QUEUE_FULL, message, retry_after_s=max(0.05, drained_s))
        alone_s = costs.total(costs.latency_s, spec.steps)
        work_s = costs.total(costs.work_s, spec.steps)
        ahead_s = self._backlog.due_before(spec.deadline) / max(1, len(workers))
        predicted_s = max(alone_s, ahead_s + work_s)
        if now + predicted_s > spec.deadline:
            message = f"cannot finish in {max(0.0, spec.deadline - now):.3f} s: {predicted_s:.3f} s are predicted"
            return Refused(Cause.DEADLINE, message, retry_after_s=ahead_s, predicted_s=predicted_s)
        slot_s = 0.0 if has_slot else _next_slot_s(workers, num_queued)
        if now + slot_s + alone_s > spec.deadline:
            message = f"no slot in time: the next one for this job is predicted in {slot_s:.3f} s"
            return Refused(Cause.NO_SLOT, message, retry_after_s=slot_s, predicted_s=slot_s + alone_s)
        return Admitted(max(predicted_s, slot_s + alone_s))


def _next_slot_s(workers: Sequence[Worker], num_queued: int) -> float:
    """Seconds until a slot comes free behind `num_queued` others: running jobs end one by one as their work is done."""
    running = [job.work_left_s for worker in workers for job in worker.jobs.values()]
    if not running:
        return 0.0
    return sum(running) / len(running) * (num_queued + 1) / len(workers)
