"""The plain scheduler held against what must be so of it, whatever happens and in whatever order."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from steploom_batcher.plain.config import PlainSchedulerConfig
from steploom_batcher.plain.scheduler import PlainScheduler
from steploom_batcher.plain.settings import BatchSettings, QueuePolicy
from steploom_batcher.plain.types import Batch, Item, Outcome, Refused, Version, Work

MODEL = Version("m", 1)
AGING_S, GRACE_S = 3.0, 8.0

policies = st.builds(
    QueuePolicy,
    is_delayed=st.booleans(),
    timeout_s=st.sampled_from([math.inf, 1.0, 2.5]),
    allows_override=st.booleans(),
    max_queue_size=st.sampled_from([0, 3]),
)


@st.composite
def some_settings(draw: st.DrawFn) -> BatchSettings:
    max_rows = draw(st.integers(1, 8))
    keeps_order = draw(st.booleans())
    policy = draw(policies)
    return BatchSettings(
        max_rows=max_rows,
        is_batched=draw(st.sampled_from([True, True, True, False])),
        preferred=draw(st.frozensets(st.integers(1, max_rows), max_size=2)),
        delay_s=draw(st.sampled_from([0.0, 0.5, 2.0])),
        keeps_order=keeps_order,
        num_levels=0 if keeps_order else draw(st.sampled_from([0, 3])),
        default_level=2,
        default_policy=QueuePolicy() if keeps_order and policy.is_delayed else policy,
    )


class Machine(RuleBasedStateMachine):
    @initialize(of=some_settings(), instances=st.integers(1, 2))
    def begin(self, of: BatchSettings, instances: int) -> None:
        self.settings, self.instances = of, instances
        config = PlainSchedulerConfig(max_queued=50, max_priority_wait_s=AGING_S, host_grace_s=GRACE_S)
        self.scheduler = PlainScheduler(config)
        self.now = 0.0
        self.hosts: set[str] = set()
        self.items: dict[int, Item] = {}  # that were taken, and have not ended
        self.since: dict[int, float] = {}
        self.running: dict[int, Batch] = {}
        self.ended: Counter[int] = Counter()
        self.released: list[int] = []
        self.has_failed: set[int] = set()  # that were in a batch which came to nothing
        self.num_items = 0
        self.come_up("a")

    @rule(host=st.sampled_from("ab"))
    def come_up(self, host: str) -> None:
        self.hosts.add(host)
        self.scheduler.offer(host, MODEL, self.settings, self.instances)
        self.go()

    @rule(host=st.sampled_from("ab"))
    def be_lost(self, host: str) -> None:
        self.hosts.discard(host)
        for batch in [batch for batch in self.running.values() if batch.host == host]:
            del self.running[batch.batch_id]
            self.has_failed |= set(batch.items)
        self.scheduler.lose(host, self.now)
        self.go()

    @rule(
        count=st.integers(1, 5), rows=st.integers(1, 9), key=st.sampled_from("xy"), priority=st.integers(0, 4),
        timeout_s=st.sampled_from([0.0, 0.7, 9.0]), left_s=st.sampled_from([math.inf, math.inf, 1.2]),
    )  # fmt: skip
    def come(self, count: int, rows: int, left_s: float, **fields: Any) -> None:
        for _ in range(count):
            self.num_items += 1
            item = Item(self.num_items, MODEL, rows, deadline=self.now + left_s, **fields)
            if not isinstance(self.scheduler.submit(item, self.now), Refused):
                self.items[item.item_id] = item
                self.since[item.item_id] = self.now
        self.go()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.items:
            self.scheduler.cancel(data.draw(st.sampled_from(sorted(self.items))))
            self.go()

    @rule(data=st.data(), outcome=st.sampled_from([*[Outcome.ANSWERED] * 4, Outcome.FAILED, Outcome.NOT_RUN]))
    def finish(self, data: st.DataObject, outcome: Outcome) -> None:
        if not self.running:
            return
        batch = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if outcome is not Outcome.ANSWERED:
            self.has_failed |= set(batch.items)
        self.scheduler.finish(batch.batch_id, outcome, self.now)
        self.go()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (wake_at := self.scheduler.wake_at()) <= until:
            assert wake_at >= self.now
            self.now = wake_at
            self.go()
        self.now = until

    def go(self) -> None:
        """What the scheduler says now, held against what it may say."""
        work = self.scheduler.next_batches(self.now)
        for item_id in [*(dropped.item_id for dropped in work.dropped), *work.released]:
            self.ended[item_id] += 1
            del self.items[item_id]
        for batch in work.batches:
            self.check(batch)
            self.running[batch.batch_id] = batch
        self.released += work.released
        again = self.scheduler.next_batches(self.now)
        assert again == Work()

    def check(self, batch: Batch) -> None:
        items = [self.items[item_id] for item_id in batch.items]
        assert batch.host in self.hosts
        assert batch.rows == sum(item.rows for item in items) <= self.settings.max_rows
        assert all(item.deadline > self.now for item in items)
        if self.settings.is_batched:
            assert len({item.key for item in items}) == 1
        else:
            assert len(items) == 1
        if self.has_failed & set(batch.items):
            assert len(items) == 1  # it runs alone
            return
        if self.settings.num_levels > 1:
            self.check_aging(batch)

    def check_aging(self, batch: Batch) -> None:
        """No request goes before one that has waited for the bound, unless the older one's batch waits for company."""
        run = {item_id for other in self.running.values() for item_id in other.items}
        aged = [
            item_id
            for item_id in self.items
            if item_id not in run | self.has_failed and self.since[item_id] + AGING_S <= self.now
        ]
        if aged and self.settings.delay_s < AGING_S:
            assert batch.items[0] == min(aged)

    @invariant()
    def everything_ends_once(self) -> None:
        if hasattr(self, "ended"):
            assert all(count == 1 for count in self.ended.values())
            assert self.scheduler.num_items == len(self.items) - len(self.held())

    @invariant()
    def no_instance_idles_while_somebody_has_waited_for_the_delay(self) -> None:
        if not hasattr(self, "running") or not self.hosts:
            return
        by_host = Counter(batch.host for batch in self.running.values())
        if all(by_host[host] >= self.instances for host in self.hosts):
            return
        run = {item_id for batch in self.running.values() for item_id in batch.items}
        idle = [item_id for item_id in self.items if item_id not in run]
        held = self.held()
        assert all(self.now < self.since[item_id] + self.settings.delay_s for item_id in idle if item_id not in held), (
            idle
        )

    def held(self) -> set[int]:
        """Answered, and held back by an older request."""
        return set(self.scheduler._models[MODEL].queue.order.held())  # what no caller can see yet

    @invariant()
    def order_is_kept(self) -> None:
        if hasattr(self, "settings") and self.settings.keeps_order:
            assert self.released == sorted(self.released)

    def teardown(self) -> None:
        """Whatever has come ends, once hosts answer."""
        if not hasattr(self, "hosts"):
            return
        self.come_up("a")
        for _ in range(1000):
            for batch_id in list(self.running):
                del self.running[batch_id]
                self.scheduler.finish(batch_id, Outcome.ANSWERED, self.now)
            self.go()
            if not self.items:
                break
            if not self.running:
                self.wait(1.0)
        assert not self.items
        assert self.scheduler.wake_at() == math.inf


TestPlainScheduler = Machine.TestCase
TestPlainScheduler.settings = settings(
    max_examples=100, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
