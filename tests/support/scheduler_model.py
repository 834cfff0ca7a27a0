"""A worker as naive as can be, and helpers, for tests of the scheduler.

The model worker knows nothing of plans: it holds which job is in which slot and how far that job has come, and checks
every tick it is given against that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from steploom_batcher.types import Entry, JobSpec, Key, Outcome, Stage, Status, Tick, WorkerProfile

KEY = Key("model", (4, 32, 32))
COSTS = {
    Stage.ENCODE: {1: 0.02, 2: 0.03, 4: 0.05},
    Stage.DENOISE: {1: 0.010, 2: 0.012, 3: 0.014, 6: 0.020, 12: 0.032, 24: 0.056},
    Stage.DECODE: {1: 0.02, 2: 0.03, 4: 0.05},
}


def profile(worker_id: str = "w0", num_slots: int = 8, key: Key = KEY) -> WorkerProfile:
    """A worker with the costs above."""
    return WorkerProfile(worker_id, key, num_slots, COSTS)


def spec(
    job_id: str, tier: str = "pro", steps: int = 3, rows: int = 3, deadline: float = 1000.0, key: Key = KEY
) -> JobSpec:
    """A job that is easily met unless told otherwise."""
    return JobSpec(job_id, key, tier, steps, rows, deadline)


@dataclass
class ModelWorker:
    """Runs ticks in order; one with a poisoned job in its denoise stage fails, one with a job that overflows names it.

    Every job of a tick that ran has moved, those that it names too: ticks behind it were planned to find them there.
    """

    profile: WorkerProfile
    poisoned: set[str]
    overflows: dict[str, tuple[Stage, int]] = field(default_factory=dict)  # from which stage and step on
    queue: list[Tick] = field(default_factory=list)
    slots: dict[int, tuple[str, Stage | None, int]] = field(default_factory=dict)  # job, next stage, next step
    is_out_of_step: bool = False  # a tick did not run, and others that were in flight with it are not back

    def check(self, tick: Tick, live: dict[str, JobSpec]) -> None:
        """What must hold of every tick when it is planned."""
        slots = [entry.slot for entry in tick.entries]
        jobs = [entry.job_id for entry in tick.entries]
        assert tick.entries
        assert len(set(slots)) == len(slots)
        assert len(set(jobs)) == len(jobs)
        assert all(0 <= slot < self.profile.num_slots for slot in slots)
        assert all(job in live for job in jobs), "a job that has ended is in a tick"
        assert all(live[job].key == tick.key == self.profile.key for job in jobs), "a tick mixes keys"
        rows = sum(live[job].rows if tick.stage is Stage.DENOISE else 1 for job in jobs)
        assert rows == tick.rows <= tick.bucket
        assert tick.bucket in self.profile.costs[tick.stage]

    def run(self, steps: dict[str, int]) -> tuple[Tick, Outcome]:
        """Executes the oldest tick; `steps` says how many every job has that was ever admitted."""
        tick = self.queue.pop(0)
        outcome = self._execute(tick, steps)
        has_run = outcome.status is Status.OK
        assert outcome.status is not Status.SKIPPED or self.is_out_of_step, "a tick is skipped, and none had failed"
        self.is_out_of_step = bool(self.queue) and (self.is_out_of_step or not has_run)
        return tick, outcome

    def _execute(self, tick: Tick, steps: dict[str, int]) -> Outcome:
        for entry in tick.entries:
            if tick.stage is Stage.ENCODE:
                self.slots[entry.slot] = (entry.job_id, Stage.ENCODE, 0)
        for entry in tick.entries:
            owner, stage, step = self.slots[entry.slot]
            assert owner == entry.job_id, f"slot {entry.slot} is {owner}'s, not {entry.job_id}'s"
            if (stage, step) != (tick.stage, entry.step):
                return Outcome(Status.SKIPPED)
        if tick.stage is Stage.DENOISE and any(entry.job_id in self.poisoned for entry in tick.entries):
            return Outcome(Status.FAILED, error="poison")
        for entry in tick.entries:
            self._advance(entry.slot, steps[entry.job_id])
        bad = [entry.slot for entry in tick.entries if self._overflows(tick, entry)]
        return Outcome(
            Status.OK, self.profile.costs[tick.stage][tick.bucket], failures=dict.fromkeys(bad, "not finite")
        )

    def _overflows(self, tick: Tick, entry: Entry) -> bool:
        return entry.job_id in self.overflows and (tick.stage, entry.step) >= self.overflows[entry.job_id]

    def _advance(self, slot: int, steps: int) -> None:
        job, stage, step = self.slots[slot]
        if stage is Stage.ENCODE:
            self.slots[slot] = (job, Stage.DENOISE, 0)
        elif stage is Stage.DENOISE:
            self.slots[slot] = (job, Stage.DENOISE, step + 1) if step + 1 < steps else (job, Stage.DECODE, 0)
        else:
            self.slots[slot] = (job, None, 0)
