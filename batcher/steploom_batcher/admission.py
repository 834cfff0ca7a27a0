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
        self, spec: JobSpec, costs: JobCosts, workers: Sequence[Worker], num_queued: int, num_own: int, now: float
    ) -> Admitted | Refused:
        """Args:
        workers: those that serve the job's key; none while a lost one is expected back.
        num_queued: jobs of the tier that wait for a slot.
        num_own: those of them that are of the job's caller.
        """
        has_slot = any(worker.free_slots for worker in workers)
        tier = self._config.tiers[spec.tier]
        bound = tier.max_queued_per_token if spec.caller else 0
        if bound and not has_slot and num_own >= bound:
            message = f"{num_own} jobs of tier {spec.tier!r} wait already that are of token {spec.caller!r}"
            drained_s = self._backlog.total_s / max(1, len(workers)) / max(1, num_queued)
            return Refused(Cause.CALLER_QUEUE_FULL, message, retry_after_s=max(0.05, drained_s))
        if not has_slot and num_queued >= tier.max_queued:
            drained_s = self._backlog.total_s / max(1, len(workers)) / max(1, num_queued)
            message = f"{num_queued} jobs of tier {spec.tier!r} wait already"
            return Refused(Cause.QUEUE_FULL, message, retry_after_s=max(0.05, drained_s))
        time_s = spec.deadline - now
        alone_s = costs.total(costs.latency_s, spec.steps)
        work_s = costs.total(costs.work_s, spec.steps)
        num_workers = max(1, len(workers))
        ahead_s = self._ahead_s(spec, work_s, num_workers, now) / num_workers
        predicted_s = max(alone_s, ahead_s + work_s)
        # alone on an idle device the prediction is sure; the more work is ahead, the more may come in between
        at_worst_s = predicted_s + self._config.margin * ahead_s
        if at_worst_s > time_s:
            message = f"cannot finish in {max(0.0, time_s):.3f} s: up to {at_worst_s:.3f} s are predicted"
            return Refused(Cause.DEADLINE, message, retry_after_s=ahead_s, predicted_s=at_worst_s)
        slot_s = 0.0 if has_slot else _next_slot_s(workers, num_queued)
        if slot_s + alone_s > time_s:
            message = f"no slot in time: the next one for this job is predicted in {slot_s:.3f} s"
            return Refused(Cause.NO_SLOT, message, retry_after_s=slot_s, predicted_s=slot_s + alone_s)
        return Admitted(max(predicted_s, slot_s + alone_s))

    def due(self, spec: JobSpec, now: float) -> float:
        """When a job that comes now is due: at its deadline, or when its tier owes an answer if that is sooner.

        What orders jobs is this, so that a caller who would wait for ever does not.
        """
        return min(spec.deadline, now + self._config.tiers[spec.tier].deadline_s)

    def _ahead_s(self, spec: JobSpec, work_s: float, num_workers: int, now: float) -> float:
        """Work that will run before the job: its tier's that is due before, and what other tiers get meanwhile."""
        own_s = self._backlog.due_before(spec.tier, self.due(spec, now))
        others = (tier for tier in self._backlog.tiers if tier != spec.tier)
        return own_s + sum(self._meanwhile_s(tier, spec, own_s + work_s, num_workers, now) for tier in others)

    def _meanwhile_s(self, tier: str, spec: JobSpec, own_s: float, num_workers: int, now: float) -> float:
        """What another tier runs while `own_s` of the job's tier is done: what is due before, or its weight's share.

        A share is of use only to a tier that has work: what it has now, and what arrives for it at the present rate.
        """
        due_s = self._backlog.due_before(tier, self.due(spec, now))
        if not self._config.fairness:
            return due_s
        share_s = own_s * self._config.tiers[tier].weight / self._config.tiers[spec.tier].weight
        rate = min(0.99, self._backlog.rate(tier, now) / num_workers)
        has_s = (self._backlog.of(tier) + rate * own_s) / (1.0 - rate)
        return max(due_s, min(share_s, has_s))


def _next_slot_s(workers: Sequence[Worker], num_queued: int) -> float:
    """Seconds until a slot comes free behind `num_queued` others: running jobs end one by one as their work is done."""
    running = [job.work_left_s for worker in workers for job in worker.jobs.values()]
    if not running:
        return 0.0
    return sum(running) / len(running) * (num_queued + 1) / len(workers)
