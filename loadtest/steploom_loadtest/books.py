"""Whether the counters of a metrics page add up when all is quiet: each request has come once and ended once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

# How a request may end that is neither cancelled nor refused by design, whatever happens to workers.
_FINE = ("OK", "CANCELLED", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
_QUIET = (
    "steploom_gateway_in_flight",
    "steploom_gateway_arena_blocks_used",
    "steploom_batcher_queued",
    "steploom_batcher_running",
    "steploom_worker_slots_used",
)


class Books:
    """The counters of a page.

    Args:
        page: in Prometheus' text format; gateway and batcher have counted from the start of the run.
    """

    def __init__(self, page: str) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self.by_status: Counter[str] = Counter()  # edits that the gateway has answered
        self.outcomes: Counter[str] = Counter()  # of jobs that the batcher has admitted
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                self._sums[sample.name] += sample.value
                if sample.name == "steploom_gateway_requests_total":
                    self.by_status[sample.labels["status"]] += int(sample.value)
                elif sample.name == "steploom_batcher_ended_total":
                    self.outcomes[sample.labels["outcome"]] += int(sample.value)

    @property
    def submitted(self) -> int:
        """Jobs that came to the batcher."""
        return int(self._sums["steploom_batcher_submitted_total"])

    @property
    def refused(self) -> int:
        """Of these, refused."""
        return int(self._sums["steploom_batcher_refused_total"])

    def mistakes(self, told: Mapping[str, int]) -> Iterator[str]:
        """What does not add up, in words.

        Args:
            told: what callers who stayed were told, by status: how many.
        """
        for name in _QUIET:
            if self._sums[name]:
                yield f"{name} is {self._sums[name]:g} when all is quiet, must be 0"
        ended = sum(self.outcomes.values())
        if self.submitted != self.refused + ended:
            yield f"{self.submitted} jobs came, {self.refused} were refused and {ended} ended"
        for status in sorted({*self.by_status, *told} - {*_FINE}):
            gateway, callers = self.by_status[status], told.get(status, 0)
            yield f"requests ended with {status}: {gateway} as the gateway counts, {callers} as callers were told"
        if self.outcomes["failed"]:
            yield f"{self.outcomes['failed']} jobs failed"
        done, cut = self.by_status["OK"], self.by_status["CANCELLED"]
        if told.get("OK", 0) > done:
            yield f"callers got {told['OK']} pictures, the gateway counts {done}"
        if not done <= self.outcomes["finished"] <= done + cut:
            yield f"{self.outcomes['finished']} jobs were drawn, {done} were answered and {cut} calls cancelled"
