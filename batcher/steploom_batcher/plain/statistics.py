"""What each version of a plain model has done since the batcher's start, in Triton's terms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from steploom_batcher.plain.types import Cause


@dataclass(slots=True)
class Total:
    """How often something was done, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """`count` times more, so long each."""
        self.count += count
        self.ns += ns * count


@dataclass(frozen=True, slots=True)
class Times:
    """Of one batch, in nanoseconds, as its host tells them."""

    wait_ns: int  # for an instance
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(slots=True)
class Compute:
    """The parts of running batches."""

    input: Total = field(default_factory=Total)
    infer: Total = field(default_factory=Total)
    output: Total = field(default_factory=Total)

    def add(self, times: Times, count: int = 1) -> None:
        """For a batch, or for each of its requests."""
        self.input.add(times.input_ns, count)
        self.infer.add(times.infer_ns, count)
        self.output.add(times.output_ns, count)


@dataclass(slots=True)
class ModelStatistics:
    """Of one version of a model."""

    last_unix_ms: int = 0  # when its last request ran; 0: none has
    rows: int = 0  # of requests that have their outputs
    batches: int = 0  # that ran
    success: Total = field(default_factory=Total)  # from arrival to answer
    fail: Total = field(default_factory=Total)  # the same, of those without outputs
    queue: Total = field(default_factory=Total)  # of those that have their outputs
    compute: Compute = field(default_factory=Compute)  # for each request that has its outputs
    by_rows: dict[int, Compute] = field(default_factory=dict)  # for each batch
    ended: Counter[str] = field(default_factory=Counter)  # requests without outputs, by cause

    def batch_ran(self, rows: int, times: Times, unix_ms: int) -> None:
        """A batch has been run, whatever came of its requests."""
        self.batches += 1
        self.last_unix_ms = unix_ms
        self.by_rows.setdefault(rows, Compute()).add(times)

    def answered(self, rows: int, waited_s: float, ran_s: float, times: Times) -> None:
        """A request of that batch has its outputs."""
        waited_ns = int(1e9 * waited_s)
        self.rows += rows
        self.queue.add(waited_ns + times.wait_ns)
        self.compute.add(times)
        self.success.add(waited_ns + int(1e9 * ran_s))

    def failed(self, cause: str, seconds: float) -> None:
        """A request has ended without outputs."""
        self.fail.add(int(1e9 * seconds))
        self.ended[cause] += 1


FAILED = "failed"  # the model could not run it
INVALID = "invalid"  # the host found it not to be as the model's configuration says

CAUSES = (*(cause.value for cause in Cause), FAILED, INVALID)
