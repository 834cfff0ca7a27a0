"""The plain scheduler: Triton's settings one by one, and failures."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from steploom_batcher.plain.config import PlainSchedulerConfig
from steploom_batcher.plain.scheduler import PlainScheduler
from steploom_batcher.plain.settings import BatchSettings, QueuePolicy, read_settings
from steploom_batcher.plain.types import Batch, Cause, Item, Outcome, Refused, Version, Work
from steploom_protos.inference import model_config_pb2 as pb

MODEL = Version("m", 1)


class Rig:
    """A scheduler with one model, and what it has said so far."""

    def __init__(self, instances: int = 1, config: PlainSchedulerConfig | None = None, **settings: Any) -> None:
        self.scheduler = PlainScheduler(config or PlainSchedulerConfig())
        self.settings = BatchSettings(**{"max_rows": 8, **settings})
        self.scheduler.offer("h", MODEL, self.settings, instances)
        self.batches: list[Batch] = []
        self.dropped: dict[int, Refused] = {}
        self.released: list[int] = []
        self._ids = itertools.count(1)

    def put(self, now: float = 0.0, **fields: Any) -> int | Refused:
        item = Item(next(self._ids), MODEL, **fields)
        return self.scheduler.submit(item, now) or item.item_id

    def go(self, now: float = 0.0) -> list[tuple[int, ...]]:
        """The batches that go now."""
        work: Work = self.scheduler.next_batches(now)
        self.batches += work.batches
        self.dropped |= {dropped.item_id: dropped.refused for dropped in work.dropped}
        self.released += work.released
        return [batch.items for batch in work.batches]

    def end(self, now: float = 0.0, outcome: Outcome = Outcome.ANSWERED) -> list[tuple[int, ...]]:
        """The first batch that runs ends; those that go then."""
        self.scheduler.finish(self.batches.pop(0).batch_id, outcome, now)
        return self.go(now)


def test_all_that_waits_goes_at_once_when_an_instance_is_free() -> None:
    rig = Rig()
    rig.put()
    assert rig.go() == [(1,)]
    for _ in range(10):
        rig.put()
    assert rig.go() == []
    assert rig.end() == [tuple(range(2, 10))]
    assert rig.end() == [(10, 11)]


def test_instances_run_side_by_side() -> None:
    rig = Rig(instances=2, max_rows=1)
    for _ in range(3):
        rig.put()
    assert rig.go() == [(1,), (2,)]
    assert rig.end() == [(3,)]


def test_rows_count_and_nobody_is_overtaken() -> None:
    rig = Rig()
    for rows in (5, 4, 3):
        rig.put(rows=rows)
    assert rig.go() == [(1,)]
    assert rig.end() == [(2, 3)]
    refused = rig.put(rows=9)
    assert isinstance(refused, Refused)
    assert (refused.cause, refused.message) == (Cause.TOO_LARGE, "has 9 rows, must have at most 8")


def test_a_request_waits_for_company_up_to_the_delay() -> None:
    rig = Rig(delay_s=0.1)
    rig.put(0.0)
    assert rig.go(0.0) == []
    assert rig.scheduler.wake_at() == 0.1
    rig.put(0.05)
    assert rig.go(0.05) == []
    assert rig.scheduler.wake_at() == 0.1
    assert rig.go(0.1) == [(1, 2)]
    for _ in range(8):
        rig.put(0.2)
    assert rig.end(0.2) == [tuple(range(3, 11))]


def test_a_preferred_size_goes_at_once_and_what_is_beyond_it_waits() -> None:
    rig = Rig(instances=9, delay_s=1.0, preferred=frozenset((2, 4)))
    rig.put()
    assert rig.go() == []
    rig.put()
    assert rig.go() == [(1, 2)]
    for _ in range(7):
        rig.put()
    assert rig.go() == [(3, 4, 5, 6), (7, 8)]
    assert rig.scheduler.wake_at() == 1.0
    assert rig.go(1.0) == [(9,)]


def test_without_a_delay_what_is_no_preferred_size_goes_too() -> None:
    rig = Rig(preferred=frozenset((4,)))
    for _ in range(3):
        rig.put()
    assert rig.go() == [(1, 2, 3)]
    for _ in range(6):
        rig.put()
    assert rig.end() == [(4, 5, 6, 7)]
    assert rig.end() == [(8, 9)]


def test_once_the_delay_has_passed_a_batch_is_as_large_as_may_be() -> None:
    rig = Rig(preferred=frozenset((2,)), delay_s=0.1)
    rig.put(0.0)
    rig.put(0.0)
    assert rig.go(0.0) == [(1, 2)]
    for _ in range(7):
        rig.put(0.0)
    assert rig.end(0.2) == [(3, 4, 5, 6, 7, 8, 9)]


def test_other_shapes_close_nobodys_batch() -> None:
    rig = Rig()
    rig.put(key="z")
    rig.go()
    for key in "abab":
        rig.put(key=key)
    assert rig.end() == [(2, 4)]
    assert rig.end() == [(3, 5)]


def test_a_model_without_dynamic_batching_runs_each_request_alone() -> None:
    rig = Rig(instances=2, is_batched=False)
    rig.put(rows=3)
    rig.put(key="other")
    assert rig.go() == [(1,), (2,)]


def test_priorities_are_strict_and_age() -> None:
    config = PlainSchedulerConfig(max_priority_wait_s=5.0)
    rig = Rig(config=config, max_rows=1, num_levels=3, default_level=2)
    rig.put(0.0, priority=2)
    assert rig.go(0.0) == [(1,)]
    for priority in (3, 0, 7, 1):  # 0 and 7: the default, 2
        rig.put(0.0, priority=priority)
    assert rig.end(1.0) == [(5,)]
    assert rig.end(1.0) == [(3,)]
    rig.put(1.0, priority=1)
    assert rig.end(5.0) == [(2,)]  # the oldest of those that have aged
    assert rig.end(5.0) == [(4,)]
    assert rig.end(5.0) == [(6,)]


def test_a_full_queue_refuses_by_level_and_by_the_bound_of_all() -> None:
    rig = Rig(
        config=PlainSchedulerConfig(max_queued=3), instances=1, max_rows=1, num_levels=2, default_level=1,
        policies={1: QueuePolicy(max_queue_size=1)},
    )  # fmt: skip
    rig.put()
    rig.go()
    assert rig.put(priority=1) == 2
    refused = rig.put(priority=1)
    assert isinstance(refused, Refused)
    assert (refused.cause, refused.message) == (Cause.QUEUE_FULL, "1 requests of m wait at priority 1")
    assert refused.retry_after_s > 0
    assert [rig.put(priority=2), rig.put(priority=2)] == [4, 5]
    refused = rig.put(priority=2)
    assert isinstance(refused, Refused)
    assert refused.message == "3 requests of m wait"
    rig.scheduler.cancel(2)
    assert rig.put(priority=1) == 7  # its place is free at once


def test_a_timeout_refuses_or_delays() -> None:
    rejects = Rig(max_rows=1, default_policy=QueuePolicy(timeout_s=1.0))
    rejects.put(0.0)
    rejects.go(0.0)
    rejects.put(0.5)
    assert rejects.scheduler.wake_at() == 1.5
    rejects.go(1.5)
    assert rejects.dropped == {2: Refused(Cause.TIMEOUT, "it waited for 1000 ms in the queue")}
    delays = Rig(max_rows=1, default_policy=QueuePolicy(timeout_s=1.0, is_delayed=True))
    delays.put(0.0)
    delays.go(0.0)
    delays.put(0.0)
    delays.put(0.9)
    assert delays.end(1.5) == [(3,)]
    assert delays.end(1.5) == [(2,)]
    assert not delays.dropped


@pytest.mark.parametrize(
    ("policy", "asked_s", "gets_s"),
    [
        (QueuePolicy(timeout_s=2.0, allows_override=True), 1.0, 1.0),
        (QueuePolicy(timeout_s=2.0, allows_override=True), 3.0, 2.0),
        (QueuePolicy(timeout_s=2.0, allows_override=True), 0.0, 2.0),
        (QueuePolicy(timeout_s=2.0), 1.0, 2.0),
        (QueuePolicy(allows_override=True), 1.0, 1.0),
        (QueuePolicy(), 1.0, math.inf),
    ],
)
def test_a_request_may_shorten_its_timeout_where_that_is_allowed(
    policy: QueuePolicy, asked_s: float, gets_s: float
) -> None:
    assert policy.timeout_of(asked_s) == gets_s


def test_a_deadline_holds_in_the_queue() -> None:
    rig = Rig(max_rows=1)
    rig.put(0.0)
    rig.go(0.0)
    rig.put(0.0, deadline=1.0)
    assert rig.scheduler.wake_at() == 1.0
    assert rig.end(1.0) == []
    assert rig.dropped[2].cause is Cause.DEADLINE
    late = rig.put(2.0, deadline=2.0)
    assert isinstance(late, Refused)
    assert late.cause is Cause.DEADLINE


def test_order_is_kept_where_that_is_asked() -> None:
    rig = Rig(instances=3, max_rows=1, keeps_order=True)
    for _ in range(4):
        rig.put()
    rig.go()
    first, second, third = (batch.batch_id for batch in rig.batches)
    rig.scheduler.finish(third, Outcome.ANSWERED, 0.0)
    rig.go()
    assert rig.released == []
    rig.scheduler.finish(first, Outcome.ANSWERED, 0.0)
    rig.go()
    assert rig.released == [1]
    rig.scheduler.cancel(2)
    rig.scheduler.finish(second, Outcome.ANSWERED, 0.0)
    rig.go()
    assert rig.dropped[2].cause is Cause.CANCELLED
    assert rig.released == [1, 3]


def test_a_batch_that_fails_runs_again_one_by_one_and_only_the_poisonous_one_ends() -> None:
    rig = Rig()
    for _ in range(3):
        rig.put()
    assert rig.go() == [(1, 2, 3)]
    rig.put()
    assert rig.end(outcome=Outcome.FAILED) == [(1,)]
    assert rig.end() == [(2,)]
    assert rig.end(outcome=Outcome.FAILED) == [(3,)]
    assert rig.end() == [(4,)]
    assert rig.released == [1, 2, 3]
    assert rig.dropped == {}


def test_what_a_lost_host_had_runs_again_when_it_is_back_and_twice_at_most() -> None:
    rig = Rig()
    rig.put(0.0)
    rig.put(0.0)
    rig.go(0.0)
    rig.batches.clear()
    rig.scheduler.lose("h", 1.0)
    assert rig.go(1.0) == []
    rig.scheduler.offer("h", MODEL, rig.settings, 1)
    assert rig.go(2.0) == [(1,)]
    assert rig.end(2.0) == [(2,)]
    rig.scheduler.lose("h", 3.0)
    rig.go(3.0)
    assert rig.released == [1]
    assert rig.dropped == {2: Refused(Cause.NO_HOST, "the host of m was lost twice", 1.0)}


def test_another_host_takes_over() -> None:
    rig = Rig()
    rig.put()
    rig.go()
    rig.scheduler.offer("other", MODEL, rig.settings, 1)
    rig.scheduler.lose("h", 0.0)
    assert rig.go() == [(1,)]
    assert rig.batches[-1].host == "other"


def test_a_host_that_does_not_come_back_within_the_grace_fails_what_waits() -> None:
    rig = Rig(config=PlainSchedulerConfig(host_grace_s=10.0))
    rig.scheduler.lose("h", 1.0)
    assert rig.put(2.0) == 1
    assert rig.scheduler.wake_at() == 11.0
    rig.go(11.0)
    assert rig.dropped[1].cause is Cause.NO_HOST
    refused = rig.put(12.0)
    assert isinstance(refused, Refused)
    assert (refused.cause, refused.retry_after_s > 0) == (Cause.NO_HOST, True)


def test_a_model_that_is_taken_out_of_service_ends_what_waits_for_it() -> None:
    rig = Rig(max_rows=1)
    rig.put()
    rig.put()
    rig.go()
    rig.scheduler.withdraw("h", MODEL, "model m is unloaded")
    rig.end()
    assert rig.released == [1]
    assert rig.dropped == {2: Refused(Cause.NO_MODEL, "model m is unloaded", 1.0)}
    refused = rig.put()
    assert isinstance(refused, Refused)
    assert refused.cause is Cause.NO_MODEL


def test_other_settings_hold_for_those_who_wait() -> None:
    rig = Rig(delay_s=10.0)
    rig.put(0.0)
    assert rig.go(0.0) == []
    rig.scheduler.offer("h", MODEL, BatchSettings(max_rows=8), 1)
    assert rig.go(0.1) == [(1,)]


BATCHING = pb.ModelDynamicBatching


@pytest.mark.parametrize(
    ("batching", "problem"),
    [
        (BATCHING(preferred_batch_size=[9]), "preferred_batch_size has 9, must have 1 to 8"),
        (BATCHING(priority_levels=2), "default_priority_level is 0, must be 1 to 2"),
        (
            BATCHING(priority_levels=2, default_priority_level=1, priority_queue_policy={3: pb.ModelQueuePolicy()}),
            "priority_queue_policy has level 3, must have 1 to 2",
        ),
        (
            BATCHING(priority_levels=2, default_priority_level=1, preserve_ordering=True),
            "priority_levels is 2, must be at most 1 with preserve_ordering",
        ),
        (
            BATCHING(
                preserve_ordering=True,
                default_queue_policy=pb.ModelQueuePolicy(timeout_action="DELAY", default_timeout_microseconds=1),
            ),
            "timeout_action must be REJECT with preserve_ordering",
        ),
    ],
)
def test_what_a_configuration_may_not_say(batching: pb.ModelDynamicBatching, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_settings(pb.ModelConfig(max_batch_size=8, dynamic_batching=batching))


def test_what_a_configuration_says() -> None:
    policy = pb.ModelQueuePolicy(
        timeout_action="DELAY", default_timeout_microseconds=2500, allow_timeout_override=True, max_queue_size=7
    )
    batching = BATCHING(
        preferred_batch_size=[4, 8],
        max_queue_delay_microseconds=1500,
        priority_levels=3,
        default_priority_level=2,
        priority_queue_policy={1: policy},
    )
    settings = read_settings(pb.ModelConfig(max_batch_size=8, dynamic_batching=batching))
    assert (settings.full, settings.goes_at, settings.delay_s) == (8, frozenset((4, 8)), 0.0015)
    assert settings.policy(1) == QueuePolicy(True, 0.0025, True, 7)
    assert settings.policy(2) == QueuePolicy()
    assert [settings.level(priority) for priority in (0, 1, 3, 4)] == [2, 1, 3, 2]
    assert not read_settings(pb.ModelConfig(max_batch_size=8)).is_batched
    assert not read_settings(pb.ModelConfig(dynamic_batching=BATCHING())).is_batched


def test_a_model_that_is_closed_runs_what_it_has_and_takes_no_more() -> None:
    rig = Rig(max_rows=1)
    for _ in range(3):
        rig.put()
    assert rig.go() == [(1,)]
    rig.scheduler.close("m")
    assert rig.put() == Refused(Cause.NO_MODEL, "model m is being unloaded", 1.0)
    assert [rig.end(), rig.end(), rig.end()] == [[(2,)], [(3,)], []]
    assert not rig.dropped
    rig.scheduler.reopen("m")
    rig.put()
    assert rig.go() == [(5,)]
