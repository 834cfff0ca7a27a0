"""How a model's requests are batched, as its configuration says: Triton's settings as plain data.

What a configuration may not say is refused as Triton refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from steploom_protos.inference import model_config_pb2 as pb

_MICROSECONDS = 1e6
_MAX_LEVELS = 10_000  # of a configuration that means it


@dataclass(frozen=True)
class QueuePolicy:
    """What becomes of requests that wait, for one level of priority."""

    is_delayed: bool = False  # a request whose timeout has passed goes behind the others; else it is refused
    timeout_s: float = math.inf  # that a request may wait
    allows_override: bool = False  # a request may shorten it
    max_queue_size: int = 0  # requests that may wait; 0: any number

    def timeout_of(self, asked_s: float) -> float:
        """For a request that asks for `asked_s` seconds (0: for nothing): it may shorten the policy's alone."""
        return min(self.timeout_s, asked_s) if self.allows_override and asked_s > 0 else self.timeout_s


@dataclass(frozen=True)
class BatchSettings:
    """Of one model."""

    max_rows: int = 1  # of a batch, and so of a request
    is_batched: bool = True  # requests share batches; else each runs alone
    preferred: frozenset[int] = frozenset()  # rows at which a batch goes at once; empty: `max_rows` alone
    delay_s: float = 0.0  # for which a request waits for company
    keeps_order: bool = False  # answers go out as requests came
    num_levels: int = 0  # of priority; 0: one for all
    default_level: int = 0  # of a request that names none
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)  # of levels with one of their own

    @property
    def full(self) -> int:
        """Rows beyond which no batch is filled before its delay has passed."""
        return max(self.preferred, default=self.max_rows)

    @property
    def goes_at(self) -> frozenset[int]:
        """Rows at which a batch goes at once."""
        return self.preferred or frozenset((self.max_rows,))

    def level(self, priority: int) -> int:
        """Of a request that asks for `priority`; 1 is the highest."""
        if not self.num_levels:
            return 1
        return priority if 1 <= priority <= self.num_levels else self.default_level

    def policy(self, level: int) -> QueuePolicy:
        """Of a level."""
        return self.policies.get(level, self.default_policy)


def read_settings(config: pb.ModelConfig) -> BatchSettings:
    """The settings in a model's configuration.

    Raises:
        ValueError: names the field and its bound.
    """
    if config.max_batch_size < 0:
        raise ValueError(f"max_batch_size is {config.max_batch_size}, must be at least 0")
    max_rows = max(1, config.max_batch_size)
    if not config.HasField("dynamic_batching"):
        return BatchSettings(max_rows=max_rows, is_batched=False)
    batching = config.dynamic_batching
    _check_preferred(config)
    _check_levels(batching)
    _check_order(batching)
    return BatchSettings(
        max_rows=max_rows,
        is_batched=config.max_batch_size > 0,
        preferred=frozenset(batching.preferred_batch_size),
        delay_s=batching.max_queue_delay_microseconds / _MICROSECONDS,
        keeps_order=batching.preserve_ordering,
        num_levels=batching.priority_levels,
        default_level=batching.default_priority_level,
        default_policy=_policy(batching.default_queue_policy),
        policies={level: _policy(policy) for level, policy in batching.priority_queue_policy.items()},
    )


def _policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        is_delayed=policy.timeout_action == pb.ModelQueuePolicy.DELAY,
        timeout_s=policy.default_timeout_microseconds / _MICROSECONDS or math.inf,
        allows_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _check_preferred(config: pb.ModelConfig) -> None:
    for size in config.dynamic_batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            raise ValueError(
                f"dynamic_batching.preferred_batch_size has {size}, must have 1 to {config.max_batch_size}"
            )


def _check_levels(batching: pb.ModelDynamicBatching) -> None:
    levels = batching.priority_levels
    if levels > _MAX_LEVELS:
        raise ValueError(f"dynamic_batching.priority_levels is {levels}, must be at most {_MAX_LEVELS}")
    if levels and not 1 <= batching.default_priority_level <= levels:
        default = batching.default_priority_level
        raise ValueError(f"dynamic_batching.default_priority_level is {default}, must be 1 to {levels}")
    for level in batching.priority_queue_policy if levels else ():
        if not 1 <= level <= levels:
            raise ValueError(f"dynamic_batching.priority_queue_policy has level {level}, must have 1 to {levels}")


def _check_order(batching: pb.ModelDynamicBatching) -> None:
    """Order, and what lets requests overtake each other, exclude each other."""
    if not batching.preserve_ordering:
        return
    if batching.priority_levels > 1:
        raise ValueError(
            f"dynamic_batching.priority_levels is {batching.priority_levels}, must be at most 1 with preserve_ordering"
        )
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    if any(
        policy.timeout_action == pb.ModelQueuePolicy.DELAY and policy.default_timeout_microseconds
        for policy in policies
    ):
        raise ValueError("dynamic_batching: timeout_action must be REJECT with preserve_ordering, is DELAY")
